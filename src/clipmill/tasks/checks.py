"""Check a task's data, and its fit to an encoder or a model, before training on it.

A check reads every file of a folder and reports all issues, rather than the first.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from clipmill.data.labeled.coco import coco_split
from clipmill.data.labeled.dense import IGNORED, Ade20kFolder, NyuFolder, ade20k_classes
from clipmill.data.labeled.folder import ImageFolder
from clipmill.errors import BadSampleError, BadSampleReason, ClipmillError, ConfigError, SourceError
from clipmill.images import image_size
from clipmill.models.checkpoint import read_metadata
from clipmill.models.pretrained import open_encoder
from clipmill.stage_records import ProgressCallback
from clipmill.tasks.config import MAX_DEPTH_METRES
from clipmill.tasks.finetune import FinetuneConfig
from clipmill.tasks.training_registry import get_training_task

MAX_EXAMPLES = 5
_HEADER_BYTES = 1 << 20
ValueT = TypeVar("ValueT")


@dataclass(frozen=True, kw_only=True, slots=True)
class Issue:
    """An error or a warning, with how often it occurs."""

    reason: str
    """Identifier of the issue, in snake_case."""
    is_error: bool
    """True if it prevents training, or makes it meaningless."""
    count: int
    """Number of occurrences."""
    examples: tuple[str, ...]
    """First few occurrences, with file and cause."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataReport:
    """Result of checking a folder."""

    task: str
    """Name of the task."""
    num_samples: dict[str, int]
    """Samples by split, including unusable ones."""
    issues: tuple[Issue, ...]
    """Errors first, then by count."""

    @property
    def is_usable(self) -> bool:
        """True if training can start."""
        return not any(issue.is_error for issue in self.issues)

    def to_json(self) -> dict[str, object]:
        """Return plain JSON values."""
        findings = [
            {
                "reason": issue.reason,
                "is_fatal": issue.is_error,
                "count": issue.count,
                "examples": list(issue.examples),
            }
            for issue in self.issues
        ]
        return {
            "task": self.task,
            "num_samples": self.num_samples,
            "findings": findings,
            "is_fit": self.is_usable,
        }


class IssueCounter:
    """Counts issues by reason while files are checked."""

    def __init__(self) -> None:
        self.num_samples: dict[str, int] = {}
        self._counts: Counter[tuple[str, bool]] = Counter()
        self._examples: dict[tuple[str, bool], list[str]] = defaultdict(list)

    def error(self, reason: str, example: str) -> None:
        """Count something that prevents training."""
        self._add((reason, True), example)

    def warn(self, reason: str, example: str) -> None:
        """Count something that is left out or suspicious."""
        self._add((reason, False), example)

    def catch(self, reason: str, read: Callable[[], ValueT], file: str = "") -> ValueT | None:
        """Return what ``read`` returns; None, and an error counted, if it raises.

        SourceError and BadSampleError are caught. ``file`` is named for the latter.
        """
        try:
            return read()
        except SourceError as error:
            self.error(reason, error.what)
        except BadSampleError as error:
            self.error(error.reason, f"{file}: {error.detail}")
        return None

    def result(self, task: str) -> DataReport:
        """Return the report."""
        issues = [
            Issue(reason=key[0], is_error=key[1], count=n, examples=tuple(self._examples[key]))
            for key, n in self._counts.items()
        ]
        issues.sort(key=lambda i: (not i.is_error, -i.count, i.reason))
        return DataReport(task=task, num_samples=self.num_samples, issues=tuple(issues))

    def _add(self, key: tuple[str, bool], example: str) -> None:
        self._counts[key] += 1
        if len(self._examples[key]) < MAX_EXAMPLES:
            self._examples[key].append(example)


def check_data(
    task: str,
    folder: Path,
    *,
    encoder: str = "",
    config: FinetuneConfig | None = None,
    model: str = "",
    report: ProgressCallback,
) -> DataReport:
    """Check a folder in a task's layout.

    With ``encoder`` and the ``config`` of a fine-tuning, also check that they fit each other; with
    a task model's URI, that it was trained for the folder's classes.

    Raises:
        ConfigError: there is no such task, or the config is another task's.
    """
    if task not in CHECKS:
        raise ConfigError(
            f"there is no check of data for {task!r}",
            expected=f"one of {', '.join(CHECKS)}",
            action="give the name of a task",
        )
    if config is not None and config.task != task:
        raise ConfigError(
            f"the recipe is for {config.task}",
            expected=f"a recipe for {task}",
            action="give another recipe",
        )
    issues = IssueCounter()
    CHECKS[task](folder, issues, report)
    if encoder and config is not None:
        check_encoder(config, encoder, folder, issues)
    if model:
        check_model(model, folder, issues)
    return issues.result(task)


def check_encoder(config: FinetuneConfig, encoder: str, folder: Path, issues: IssueCounter) -> None:
    """Run the recipe's encoder on an image, on the meta device."""
    import torch

    task = get_training_task(config.task)
    try:
        source = open_encoder(encoder)
        with torch.device("meta"):
            objective = task.build_objective(config.model, source.config, task.classes(folder))
        for side in task.input_sizes(config.model):
            objective.encoder.validate_image_size(side)
            objective.encoder.eval()(torch.empty(1, 3, side, side, device="meta"))
    except ClipmillError as error:
        issues.error("encoder", f"{encoder}: {str(error).splitlines()[0]}")
    except AssertionError as error:  # timm's models refuse a size so
        issues.error("encoder", f"{encoder} can't take the recipe's images: {error}")


def check_model(model: str, folder: Path, issues: IssueCounter) -> None:
    """Compare a task model's classes with the folder's."""
    architecture = read_metadata(model).architecture
    if "task" not in architecture:
        raise ConfigError(
            f"{model} isn't a task model",
            expected="a model of `clipmill finetune`",
            action="give the URI of one",
        )
    own = tuple(architecture["classes"])
    theirs = get_training_task(architecture["task"]).classes(folder)
    if own != theirs:
        pairs = zip(own, theirs, strict=False)
        index = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(own), len(theirs)))
        differing = [names[index] if index < len(names) else "nothing" for names in (own, theirs)]
        issues.error(
            "another_class_list",
            f"{model} has {len(own)} classes and the data {len(theirs)}; class {index} is "
            f"{differing[0]!r} in the model and {differing[1]!r} in the data",
        )


def check_classification(folder: Path, issues: IssueCounter, report: ProgressCallback) -> None:
    """Check ImageFolder's layout: the same classes in both splits, images that decode."""
    classes: dict[str, tuple[str, ...]] = {}
    for split in ("train", "val"):
        data = issues.catch("layout", partial(ImageFolder.open, folder, split))
        if data is None:
            continue
        issues.num_samples[split] = len(data)
        classes[split] = data.classes
        for number in set(range(len(data.classes))) - set(data.labels):
            issues.warn("class_without_images", f"{split}/{data.classes[number]}")
        for i in range(len(data)):
            issues.catch(BadSampleReason.UNREADABLE_IMAGE, partial(data.image, i))
            report(i + 1, len(data), f"{split} checked")
    for name in sorted(set(classes.get("val", ())) - set(classes.get("train", ()))):
        issues.error("class_not_trained", f"val/{name} isn't in train")
    for name in sorted(set(classes.get("train", ())) - set(classes.get("val", ()))):
        if "val" in classes:
            issues.error("class_not_evaluated", f"train/{name} isn't in val")


def check_depth(folder: Path, issues: IssueCounter, report: ProgressCallback) -> None:
    """Check NYUv2's layout: every image and depth map of both lists."""
    for split in ("train", "test"):
        data = issues.catch("layout", partial(NyuFolder.open, folder, split))
        if data is None:
            continue
        issues.num_samples[split] = len(data)
        for i in range(len(data)):
            _check_depth_pair(data, i, issues)
            report(i + 1, len(data), f"{split} checked")


def _check_depth_pair(data: NyuFolder, index: int, issues: IssueCounter) -> None:
    name = str(data.labels[index])
    depth = issues.catch("depth", lambda: data.depth_HW(index))
    image = issues.catch(BadSampleReason.UNREADABLE_IMAGE, lambda: data.image_HW3(index))
    if depth is None or image is None:
        return
    if depth.shape != image.shape[:2]:
        issues.error("depth_of_another_size", f"{name}: {depth.shape}, image {image.shape[:2]}")
    if not (depth > 0).any():
        issues.warn("no_depth_known", name)
    elif (depth > MAX_DEPTH_METRES).mean() > 0.5:
        issues.warn("mostly_out_of_range", f"{name}: most is farther than {MAX_DEPTH_METRES} m")


def check_detection(folder: Path, issues: IssueCounter, report: ProgressCallback) -> None:
    """Check COCO's layout: every annotation, and every image's header, of both splits."""
    names: dict[str, list[str]] = {}
    for kind in ("train", "val"):
        split = issues.catch("layout", partial(coco_split, folder, kind))
        if split is None:
            continue
        path = folder / "annotations" / f"instances_{split}.json"
        try:
            content = json.loads(path.read_bytes())
            images = {image["id"]: image for image in content["images"]}
            labels = {c["id"]: str(c["name"]) for c in content["categories"]}
            annotations = list(content["annotations"])
        except (ValueError, KeyError, TypeError) as error:
            issues.error("not_coco", f"{path}: {type(error).__name__} {error}")
            continue
        names[kind] = [labels[key] for key in sorted(labels)]
        issues.num_samples[split] = len(images)
        if len(images) < len(content["images"]):
            issues.error("image_id_twice", f"{path}")
        for annotation in annotations:
            _check_annotation(path, annotation, images, labels, issues)
        counts = Counter(a.get("image_id") for a in annotations if isinstance(a, dict))
        for i, (key, image) in enumerate(images.items()):
            if not counts[key]:
                issues.warn("image_without_annotation", str(image.get("file_name")))
            _check_image(folder / split, image, issues)
            report(i + 1, len(images), f"{split} checked")
    if len({tuple(categories) for categories in names.values()}) > 1:
        issues.error("categories_differ", "the splits' files list different categories")


def _check_annotation(
    path: Path,
    annotation: Any,
    images: dict[Any, Any],
    labels: dict[Any, str],
    issues: IssueCounter,
) -> None:
    where = f"{path.name}: annotation {annotation.get('id')}"
    image = images.get(annotation.get("image_id"))
    if image is None:
        issues.error("unknown_image", f"{where} has image_id {annotation.get('image_id')}")
    if annotation.get("category_id") not in labels:
        category = annotation.get("category_id")
        issues.error("unknown_category", f"{where} has category_id {category}")
    if not annotation.get("segmentation"):
        issues.warn("no_mask", f"{where} is left out")
    try:
        x, y, width, height = (float(value) for value in annotation["bbox"])
    except (KeyError, TypeError, ValueError):
        issues.error("no_box", f"{where} has bbox {annotation.get('bbox')}")
        return
    # Comparisons with NaN are false.
    if not (width >= 1 and height >= 1):
        issues.warn("degenerate_box", f"{where} is {width} x {height} pixels, and left out")
    elif image is not None and not (
        x >= -1
        and y >= -1
        and x + width <= image["width"] + 1
        and y + height <= image["height"] + 1
    ):
        issues.warn("box_out_of_image", f"{where} has bbox {annotation['bbox']}, and is cut")


def _check_image(root: Path, image: dict[str, Any], issues: IssueCounter) -> None:
    path = root / str(image.get("file_name"))
    if not path.is_file():
        issues.error(BadSampleReason.MISSING_IMAGE, str(path))
        return

    def size() -> tuple[int, int]:
        with path.open("rb") as file:
            return image_size(file.read(_HEADER_BYTES))

    actual = issues.catch("image", size, str(path))
    stated = (image.get("width"), image.get("height"))
    # A rotated photo (EXIF) has its sides swapped in the header.
    if actual is not None and sorted(actual) != sorted(s for s in stated if isinstance(s, int)):
        issues.error("image_of_another_size", f"{path}: {actual}, stated {stated}")


def check_segmentation(folder: Path, issues: IssueCounter, report: ProgressCallback) -> None:
    """Check ADE20K's layout: every image and mask of both splits."""
    classes = issues.catch("layout", lambda: ade20k_classes(folder))
    if classes is None:
        return
    pixels = np.zeros(256, np.int64)
    for split in ("training", "validation"):
        data = issues.catch("layout", partial(Ade20kFolder.open, folder, split))
        if data is None:
            continue
        issues.num_samples[split] = len(data)
        for i in range(len(data)):
            _check_segmentation_pair(data, i, issues, pixels if split == "training" else None)
            report(i + 1, len(data), f"{split} checked")
    if issues.num_samples.get("training"):
        for number, name in enumerate(classes):
            if not pixels[number]:
                issues.warn("class_without_pixels", f"{name} ({number}) in training")


def _check_segmentation_pair(
    data: Ade20kFolder, index: int, issues: IssueCounter, pixels: NDArray[np.int64] | None
) -> None:
    name = str(data.labels[index])
    labels = issues.catch("mask", lambda: data.classes_HW(index))
    image = issues.catch(BadSampleReason.UNREADABLE_IMAGE, lambda: data.image_HW3(index))
    if labels is None or image is None:
        return
    if labels.shape != image.shape[:2]:
        issues.error("mask_of_another_size", f"{name}: {labels.shape}, image {image.shape[:2]}")
    if (labels == IGNORED).all():
        issues.warn("nothing_labeled", name)
    if pixels is not None:
        pixels += np.bincount(labels.ravel(), minlength=256)


CHECKS: Mapping[str, Callable[[Path, IssueCounter, ProgressCallback], None]] = {
    "classification": check_classification,
    "depth": check_depth,
    "detection": check_detection,
    "segmentation": check_segmentation,
}
"""Check of each task's layout, by the task's name."""
