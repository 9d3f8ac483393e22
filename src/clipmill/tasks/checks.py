"""Looking through a task's data before training: one file a layout, an entry here."""

from collections.abc import Callable, Mapping
from pathlib import Path
from clipmill.errors import ConfigError
from clipmill.stage_records import Report
from clipmill.tasks.finetune import FinetuneConfig
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar
from clipmill.errors import BadSampleError, SourceError
from clipmill.errors import ClipmillError, ConfigError
from clipmill.models.checkpoint import read_metadata
from clipmill.models.pretrained import open_encoder
from clipmill.tasks.registry import get_task
from functools import partial
from clipmill.data.labeled.image_folder import ClassFolder
from clipmill.data.labeled.dense import NyuFolder
from clipmill.tasks.depth.config import MAX_DEPTH_METRES
import json
from collections import Counter
from typing import Any
from clipmill.data.labeled.coco import coco_split
from clipmill.images import image_size
import numpy as np
from numpy.typing import NDArray
from clipmill.data.labeled.dense import IGNORED, Ade20kFolder, ade20k_classes

CHECKS: Mapping[str, Callable[[Path, Findings, Report], None]] = {
    "classification": check_classification,
    "depth": check_depth,
    "detection": check_detection,
    "segmentation": check_segmentation,
}
"""By task; each looks at all files of a folder and notes what it finds."""


def check_data(
    task: str,
    folder: Path,
    *,
    encoder: str = "",
    config: FinetuneConfig | None = None,
    model: str = "",
    report: Report,
) -> DataCheck:
    """Everything that is wrong with a folder, rather than the first of it.

    With ``encoder`` and the ``config`` of a fine-tuning, also whether the two fit each other; with
    a task model's URI, whether it was trained for the folder's classes.

    Raises:
        ConfigError: the task has no data to check, or the config is another task's.
    """
    if task not in CHECKS:
        raise ConfigError(
            f"there is no check of data for {task!r}",
            expected=f"one of {', '.join(CHECKS)}",
            action="give the name of a task",
        )
    if config is not None and config.task != task:
        raise ConfigError(
            f"the recipe is one of {config.task}",
            expected=f"a recipe of {task}",
            action="give another recipe",
        )
    findings = Findings()
    CHECKS[task](folder, findings, report)
    if encoder and config is not None:
        check_encoder(config, encoder, folder, findings)
    if model:
        check_model(model, folder, findings)
    return findings.result(task)


MOST_EXAMPLES = 5
ValueT = TypeVar("ValueT")


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """A fault, or something worth knowing, and how often it occurs."""

    reason: str
    """What it is, in a word or two joined by hyphens."""
    is_fatal: bool
    """Whether training would stop there, or at least learn nonsense."""
    count: int
    """How often."""
    examples: tuple[str, ...]
    """The first few, with the file and what was wrong."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataCheck:
    """What a look through a folder found."""

    task: str
    """Name of the task."""
    num_samples: dict[str, int]
    """Samples by split, the faulty ones included."""
    findings: tuple[Finding, ...]
    """The fatal ones first, then by count."""

    @property
    def is_fit(self) -> bool:
        """Whether training can start."""
        return not any(finding.is_fatal for finding in self.findings)


class Findings:
    """Counts faults by reason while files are looked at."""

    def __init__(self) -> None:
        self.num_samples: dict[str, int] = {}
        self._counts: Counter[tuple[str, bool]] = Counter()
        self._examples: dict[tuple[str, bool], list[str]] = defaultdict(list)

    def fault(self, reason: str, example: str) -> None:
        """Note what training can't do with."""
        self._add((reason, True), example)

    def note(self, reason: str, example: str) -> None:
        """Note what is left out, counted, or odd."""
        self._add((reason, False), example)

    def attempt(self, reason: str, work: Callable[[], ValueT], where: str = "") -> ValueT | None:
        """What ``work`` gives; None if it raises SourceError or BadSampleError, which is a fault.

        ``where`` is the file, for an error that doesn't name it.
        """
        try:
            return work()
        except SourceError as error:
            self.fault(reason, error.what)
        except BadSampleError as error:
            self.fault(error.reason, f"{where}: {error.detail}")
        return None

    def result(self, task: str) -> DataCheck:
        """All that was found."""
        found = [
            Finding(reason=key[0], is_fatal=key[1], count=n, examples=tuple(self._examples[key]))
            for key, n in self._counts.items()
        ]
        found.sort(key=lambda f: (not f.is_fatal, -f.count, f.reason))
        return DataCheck(task=task, num_samples=self.num_samples, findings=tuple(found))

    def _add(self, key: tuple[str, bool], example: str) -> None:
        self._counts[key] += 1
        if len(self._examples[key]) < MOST_EXAMPLES:
            self._examples[key].append(example)



def check_encoder(config: FinetuneConfig, encoder: str, folder: Path, findings: Findings) -> None:
    """Build the recipe's objective on the encoder, without memory, and show it an image."""
    import torch

    task = get_task(config.task)
    try:
        start = open_encoder(encoder)
        with torch.device("meta"):
            objective = task.build_objective(config.model, start.config, task.classes(folder))
        for side in task.input_sizes(config.model):
            objective.encoder.validate_image_size(side)
            objective.encoder.eval()(torch.empty(1, 3, side, side, device="meta"))
    except ClipmillError as error:
        findings.fault("encoder", f"{encoder}: {str(error).splitlines()[0]}")
    except AssertionError as error:  # how timm's models refuse a size
        findings.fault("encoder", f"{encoder} can't see the recipe's images: {error}")


def check_model(model: str, folder: Path, findings: Findings) -> None:
    """Compare a task model's classes with the folder's."""
    architecture = read_metadata(model).architecture
    if "task" not in architecture:
        raise ConfigError(
            f"{model} isn't a task model",
            expected="what `clipmill finetune` made",
            action="give the URI of one",
        )
    own = tuple(architecture["classes"])
    theirs = get_task(architecture["task"]).classes(folder)
    if own != theirs:
        pairs = zip(own, theirs, strict=False)
        place = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(own), len(theirs)))
        words = [names[place] if place < len(names) else "nothing" for names in (own, theirs)]
        findings.fault(
            "another-class-list",
            f"{model} has {len(own)} classes and the data {len(theirs)}; class {place} is "
            f"{words[0]!r} there and {words[1]!r} here",
        )



def check_classification(folder: Path, findings: Findings, report: Report) -> None:
    """Decode every picture of both splits."""
    classes: dict[str, tuple[str, ...]] = {}
    for split in ("train", "val"):
        data = findings.attempt("layout", partial(ClassFolder.open, folder, split))
        if data is None:
            continue
        findings.num_samples[split] = len(data)
        classes[split] = data.classes
        for number in set(range(len(data.classes))) - set(data.labels):
            findings.note("class-without-pictures", f"{split}/{data.classes[number]}")
        for i in range(len(data)):
            findings.attempt("unreadable-image", partial(data.image, i))
            report(i + 1, len(data), f"{split} looked at")
    for name in sorted(set(classes.get("val", ())) - set(classes.get("train", ()))):
        findings.fault("class-not-trained", f"val/{name} isn't in train")
    for name in sorted(set(classes.get("train", ())) - set(classes.get("val", ()))):
        if "val" in classes:
            findings.fault("class-not-judged", f"train/{name} isn't in val")



def check_depth(folder: Path, findings: Findings, report: Report) -> None:
    """Look at every image and depth map of both lists."""
    for split in ("train", "test"):
        data = findings.attempt("layout", partial(NyuFolder.open, folder, split))
        if data is None:
            continue
        findings.num_samples[split] = len(data)
        for i in range(len(data)):
            _check_pair(data, i, findings)
            report(i + 1, len(data), f"{split} looked at")


def _check_pair(data: NyuFolder, index: int, findings: Findings) -> None:
    name = str(data.labels[index])
    depth = findings.attempt("depth", lambda: data.depth_HW(index))
    image = findings.attempt("unreadable-image", lambda: data.image_HW3(index))
    if depth is None or image is None:
        return
    if depth.shape != image.shape[:2]:
        findings.fault("depth-of-another-size", f"{name}: {depth.shape}, image {image.shape[:2]}")
    if not (depth > 0).any():
        findings.note("no-depth-known", name)
    elif (depth > MAX_DEPTH_METRES).mean() > 0.5:
        findings.note("mostly-out-of-range", f"{name}: most is farther than {MAX_DEPTH_METRES} m")


_HEADER_BYTES = 1 << 20


def check_detection(folder: Path, findings: Findings, report: Report) -> None:
    """Look at every annotation, and at the header of every image, of both splits."""
    names: dict[str, list[str]] = {}
    for kind in ("train", "val"):
        split = findings.attempt("layout", partial(coco_split, folder, kind))
        if split is None:
            continue
        path = folder / "annotations" / f"instances_{split}.json"
        try:
            content = json.loads(path.read_bytes())
            images = {image["id"]: image for image in content["images"]}
            labels = {c["id"]: str(c["name"]) for c in content["categories"]}
            annotations = list(content["annotations"])
        except (ValueError, KeyError, TypeError) as error:
            findings.fault("not-coco", f"{path}: {type(error).__name__} {error}")
            continue
        names[kind] = [labels[key] for key in sorted(labels)]
        findings.num_samples[split] = len(images)
        if len(images) < len(content["images"]):
            findings.fault("image-id-twice", f"{path}")
        for annotation in annotations:
            _check_annotation(path, annotation, images, labels, findings)
        counts = Counter(a.get("image_id") for a in annotations if isinstance(a, dict))
        for i, (key, image) in enumerate(images.items()):
            if not counts[key]:
                findings.note("image-without-annotation", str(image.get("file_name")))
            _check_image(folder / split, image, findings)
            report(i + 1, len(images), f"{split} looked at")
    if len({tuple(categories) for categories in names.values()}) > 1:
        findings.fault("categories-differ", "the splits' files list different categories")


def _check_annotation(
    path: Path,
    annotation: Any,
    images: dict[Any, Any],
    labels: dict[Any, str],
    findings: Findings,
) -> None:
    where = f"{path.name}: annotation {annotation.get('id')}"
    image = images.get(annotation.get("image_id"))
    if image is None:
        findings.fault("unknown-image", f"{where} has image_id {annotation.get('image_id')}")
    if annotation.get("category_id") not in labels:
        found = annotation.get("category_id")
        findings.fault("unknown-category", f"{where} has category_id {found}")
    if not annotation.get("segmentation"):
        findings.note("no-mask", f"{where} is left out")
    try:
        x, y, width, height = (float(value) for value in annotation["bbox"])
    except (KeyError, TypeError, ValueError):
        findings.fault("no-box", f"{where} has bbox {annotation.get('bbox')}")
        return
    # Comparisons with NaN are false.
    if not (width >= 1 and height >= 1):
        findings.note("degenerate-box", f"{where} is {width} x {height} pixels, and left out")
    elif image is not None and not (
        x >= -1
        and y >= -1
        and x + width <= image["width"] + 1
        and y + height <= image["height"] + 1
    ):
        findings.note("box-out-of-image", f"{where} has bbox {annotation['bbox']}, and is cut")


def _check_image(root: Path, image: dict[str, Any], findings: Findings) -> None:
    path = root / str(image.get("file_name"))
    if not path.is_file():
        findings.fault("missing-image", str(path))
        return

    def size() -> tuple[int, int]:
        with path.open("rb") as file:
            return image_size(file.read(_HEADER_BYTES))

    found = findings.attempt("image", size, str(path))
    stated = (image.get("width"), image.get("height"))
    # A photo that a camera marked as turned has its sides the other way round in the header.
    if found is not None and sorted(found) != sorted(s for s in stated if isinstance(s, int)):
        findings.fault("image-of-another-size", f"{path}: {found}, stated {stated}")



def check_segmentation(folder: Path, findings: Findings, report: Report) -> None:
    """Look at every image and mask of both splits."""
    classes = findings.attempt("layout", lambda: ade20k_classes(folder))
    if classes is None:
        return
    pixels = np.zeros(256, np.int64)
    for split in ("training", "validation"):
        data = findings.attempt("layout", partial(Ade20kFolder.open, folder, split))
        if data is None:
            continue
        findings.num_samples[split] = len(data)
        for i in range(len(data)):
            _check_pair(data, i, findings, pixels if split == "training" else None)
            report(i + 1, len(data), f"{split} looked at")
    if findings.num_samples.get("training"):
        for number, name in enumerate(classes):
            if not pixels[number]:
                findings.note("class-without-pixels", f"{name} ({number}) in training")


def _check_pair(
    data: Ade20kFolder, index: int, findings: Findings, pixels: NDArray[np.int64] | None
) -> None:
    name = str(data.labels[index])
    labels = findings.attempt("mask", lambda: data.classes_HW(index))
    image = findings.attempt("unreadable-image", lambda: data.image_HW3(index))
    if labels is None or image is None:
        return
    if labels.shape != image.shape[:2]:
        findings.fault("mask-of-another-size", f"{name}: {labels.shape}, image {image.shape[:2]}")
    if (labels == IGNORED).all():
        findings.note("nothing-labelled", name)
    if pixels is not None:
        pixels += np.bincount(labels.ravel(), minlength=256)

__all__ = ['CHECKS', 'DataCheck', 'check_data']
