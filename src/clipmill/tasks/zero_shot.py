"""Zero-shot classification: a class is the mean embedding of sentences about it.

Radford et al. 2021, section 3.1. Shapes: B images, C classes, D embedding width.
"""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING
import numpy as np
from numpy.typing import NDArray
from clipmill.data.scoring.clip import ClipTowers, judge_parent
from clipmill.errors import BadSampleError, SourceError
from clipmill.images import decode_rgb
from clipmill.stage_records import Report
from dataclasses import dataclass
from clipmill.config import Config
from clipmill.data.scoring.clip import ClipScoreConfig
from clipmill.errors import ConfigError
from pathlib import Path
from typing import Literal
from clipmill.errors import ConfigError, SourceError
from collections.abc import Iterator
from clipmill.data.labeled.folder import open_folder
from clipmill.data.sources.base import IMAGE_SUFFIXES
from clipmill.data.sources.files import Descriptor, files_digest
from clipmill.data.sources.files import matching_files, relative_names
from clipmill.data.sources.webdataset import CutTarError, Member, members
from clipmill.lineage import Parent
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar
from clipmill.config import digest_json, sha256_bytes
from clipmill.storage import exists, join, write_json

if TYPE_CHECKING:
    from PIL import Image

_BATCH = 64


def zero_shot(config: ZeroShotConfig, data: str, store: str, *, report: Report) -> str:
    """Judge a CLIP on labelled pictures; the URI of the evaluation, under ``store``.

    Metrics: ``top1``, ``top5`` and ``mean_per_class`` (mean recall over the classes that have
    pictures), percent. Pictures that can't be used are left out and counted by reason, as
    ``skipped.REASON``. A result that is there already is returned at once.

    Raises:
        SourceError: there are no pictures, or a label is no class.
        ConfigError: there is no such model, or a template has no place for a name.
    """
    pictures = open_pictures(data, config.split)
    parents = (judge_parent(config.clip, "model"), pictures.parent)
    place = result_place(store, "zero-shot", config, parents, config.classes)
    if is_judged(place):
        return place.uri
    names = class_names(config.classes, pictures.classes)
    if not names:
        raise SourceError(
            f"{data} names no classes",
            expected="classnames.txt beside the tars, or a list of classes",
            action="give one with --classes",
        )
    towers = ClipTowers(config.clip)
    templates = prompt_templates(config.prompts, config.templates)
    classes_CD = class_embeddings(towers, names, templates)
    scores_BC, labels_B, skipped = _scores(towers, classes_CD, pictures, names, report)
    metrics = {k: 100 * v for k, v in accuracies(scores_BC, labels_B).items()}
    metrics |= {f"skipped.{reason}": float(count) for reason, count in sorted(skipped.items())}
    return write_result(place, metrics, {"top1": f"{metrics['top1']:.2f} %"})


def class_embeddings(
    towers: ClipTowers, names: Sequence[str], templates: Sequence[str]
) -> NDArray[np.float32]:
    """Unit vectors (C, D): the mean over templates of unit embeddings, brought to length 1."""
    sentences = [template.replace("{}", name) for name in names for template in templates]
    parts = [
        towers.encode_texts(sentences[start : start + towers.batch_size])
        for start in range(0, len(sentences), towers.batch_size)
    ]
    mean_CD = np.concatenate(parts).reshape(len(names), len(templates), -1).mean(axis=1)
    unit_CD: NDArray[np.float32] = mean_CD / np.linalg.norm(mean_CD, axis=1, keepdims=True)
    return unit_CD


def accuracies(scores_BC: NDArray[np.float32], labels_B: NDArray[np.int64]) -> dict[str, float]:
    """``top1``, ``top5`` and ``mean_per_class``, as shares.

    A tie counts against: another class as near as the right one is taken to be before it. With
    fewer than five classes top5 is 1.
    """
    own_B1 = np.take_along_axis(scores_BC, labels_B[:, None], axis=1)
    rank_B = (scores_BC >= own_B1).sum(axis=1) - 1
    hits = rank_B < 1
    by_class = [hits[labels_B == label].mean() for label in np.unique(labels_B)]
    return {
        "top1": float(hits.mean()),
        "top5": float((rank_B < 5).mean()),
        "mean_per_class": float(np.mean(by_class)),
    }


def _scores(
    towers: ClipTowers,
    classes_CD: NDArray[np.float32],
    pictures: ClassPictures,
    names: Sequence[str],
    report: Report,
) -> tuple[NDArray[np.float32], NDArray[np.int64], Counter[str]]:
    """Similarities (B, C), labels (B,), and the pictures that were left out, by reason."""
    numbers = {name: i for i, name in enumerate(pictures.classes or names)}
    total = len(pictures.files)
    scores: list[NDArray[np.float32]] = []
    labels: list[int] = []
    skipped: Counter[str] = Counter()
    waiting: list[Image.Image] = []

    def judge() -> None:
        scores.append(towers.encode_images(waiting) @ classes_CD.T)
        waiting.clear()
        report(len(labels), max(total, len(labels)), "judged")

    for found in pictures:
        if isinstance(found, BadSampleError):
            skipped[found.reason] += 1
            continue
        label = _number(found.label, numbers, len(names))
        try:
            waiting.append(decode_rgb(found.data))
        except BadSampleError as error:
            skipped[error.reason] += 1
            continue
        labels.append(label)
        if len(waiting) == _BATCH:
            judge()
    if waiting:
        judge()
    if not labels:
        raise SourceError(
            f"none of the data's {sum(skipped.values())} pictures can be used",
            expected="JPEG, PNG or WebP files with labels",
            action=f"mend the data; left out were {dict(skipped)}",
        )
    return np.concatenate(scores), np.array(labels, np.int64), skipped


def _number(label: str, numbers: dict[str, int], num_classes: int) -> int:
    number = numbers.get(label, int(label) if label.isascii() and label.isdigit() else -1)
    if not 0 <= number < num_classes:
        raise SourceError(
            f"a picture has the class {label!r}",
            expected=f"a number from 0 to {num_classes - 1}, or one of the classes' names",
            action="give the list of classes that the data was labelled with",
        )
    return number



@dataclass(frozen=True, kw_only=True, slots=True)
class ZeroShotConfig(Config):
    """Zero-shot classification."""

    clip: ClipScoreConfig = ClipScoreConfig()
    """The CLIP that is judged."""
    prompts: PromptSet = "openai-80"
    """Sentences whose mean embedding stands for a class (Radford et al. 2021, section 3.1.4)."""
    templates: tuple[str, ...] = ()
    """The sentences of ``prompts=given``, each with ``{}`` for the class's name."""
    classes: str = ""
    """Text file of class names, ``imagenet``, or empty for the data's own."""
    split: str = "val"
    """Folder of a picture folder's split; empty where the classes' folders are at the top."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RetrievalConfig(Config):
    """Image-text retrieval."""

    clip: ClipScoreConfig = ClipScoreConfig()
    """The CLIP that is judged."""
    captions_per_image: int = 5
    """Most captions of an image that count (5: Karpathy and Fei-Fei's COCO split)."""
    num_images: int = 0
    """Images that are judged, from the first; 0 for all."""
    outside_fraction: float = 0.0
    """Judge only samples outside this fraction of a dataset, as ``view.fraction`` cuts it: those
    that an encoder trained on the fraction hasn't seen. 0 for all."""

    def __post_init__(self) -> None:
        """Refuse values out of range (ConfigError)."""
        if not 0 <= self.outside_fraction < 1:
            raise ConfigError(
                f"outside_fraction was {self.outside_fraction}",
                expected="0 to below 1",
                action="set it to the view.fraction that the encoder was trained on",
            )


PromptSet = Literal["openai-80", "openai-7", "plain", "given"]
"""OpenAI's 80 sentences for ImageNet, their best 7, a photo alone, or the config's own."""

IMAGENET = "imagenet"
"""In place of a file of class names: OpenAI's names of ImageNet's classes, in wnid order."""


def prompt_templates(prompts: PromptSet, given: tuple[str, ...]) -> tuple[str, ...]:
    """Sentences with ``{}`` where the class's name goes.

    Raises:
        ConfigError: none are given, or one has no ``{}``.
    """
    if prompts == "plain":
        return ("a photo of a {}.",)
    if prompts != "given":
        import open_clip

        known = {
            "openai-80": open_clip.OPENAI_IMAGENET_TEMPLATES,
            "openai-7": open_clip.SIMPLE_IMAGENET_TEMPLATES,
        }[prompts]
        return tuple(str(template("{}")) for template in known)
    wrong = [template for template in given if template.count("{}") != 1]
    if wrong or not given:
        raise ConfigError(
            f"templates were {wrong[0]!r}" if wrong else "templates were empty",
            expected="sentences with one {} each, where the class's name goes",
            action="correct templates, or choose prompts=openai-80",
        )
    return given


def class_names(classes: str, folders: tuple[str, ...]) -> tuple[str, ...]:
    """A name for each of the data's classes, in their order.

    ``classes`` is empty for the data's own names, ``imagenet``, or a text file: a line a class, in
    order of class ids, or ``OWN NAME<tab>WORDS`` in any order.

    Raises:
        SourceError: there is no such file, or it doesn't fit the data's classes.
    """
    if not classes:
        return tuple(name.replace("_", " ") for name in folders)
    if classes == IMAGENET:
        import open_clip

        lines = list(open_clip.IMAGENET_CLASSNAMES)
    else:
        path = Path(classes)
        if not path.is_file():
            raise SourceError(
                f"{classes} is not a file",
                expected=f"a text file with a line a class, or {IMAGENET!r}",
                action="correct the path",
            )
        lines = [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
    if lines and all("\t" in line for line in lines):
        named = dict(line.split("\t", 1) for line in lines)
        missing = [name for name in folders if name not in named]
        if missing:
            raise SourceError(
                f"{classes} names no class {missing[0]!r}",
                expected=f"a line for each of the data's {len(folders)} classes",
                action="add the line",
            )
        return tuple(named[name].strip() for name in folders)
    if len(lines) < len(folders):
        raise SourceError(
            f"{classes} has {len(lines)} names, and the data has {len(folders)} classes",
            expected="a name for each class",
            action="give another list of classes",
        )
    return tuple(lines)


LABEL_KEY = "cls"
"""What WebDataset calls the member that holds a sample's class."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelledImage:
    """A picture's file and its class; one of the two says why it can't be used."""

    data: bytes
    """The image file."""
    label: str
    """The class: its name, or its number as digits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassPictures:
    """A set of labelled pictures, not read yet."""

    classes: tuple[str, ...]
    """Names of the classes, in the order of their ids; empty where only numbers are known."""
    files: tuple[tuple[Path, int], ...] = ()
    """Pictures of a folder, with the number of the class of each."""
    tars: tuple[Path, ...] = ()
    """Or tars of pictures."""
    parent: Parent
    """What it is in a lineage."""

    def __iter__(self) -> Iterator[LabelledImage | BadSampleError]:
        """Every picture, or why a sample has none, in order."""
        for path, label in self.files:
            yield LabelledImage(data=path.read_bytes(), label=str(label))
        for tar in self.tars:
            yield from _samples(tar)


def open_pictures(uri: str, split: str) -> ClassPictures:
    """The pictures at ``uri``: a folder ``[SPLIT/]CLASS/*``, or tars (a folder, glob or file).

    A tar's sample is an image with ``cls``: a class's number, or its name. ``classnames.txt`` in
    the tars' folder, a line a class, gives the classes' names (as clip_benchmark's sets have it).

    Raises:
        SourceError: there are no pictures.
    """
    here = Path(uri)
    if "*" in uri or _holds_tars(here) or _is_plain_tar(here):
        base, found = matching_files(uri, (".tar",))
        tars = relative_names(base, found)
        digest = files_digest(tars.items(), "listing", LABEL_KEY)
        names = (here if here.is_dir() else here.parent) / "classnames.txt"
        classes = names.read_text("utf-8").splitlines() if names.is_file() else []
        return ClassPictures(
            classes=tuple(name.strip() for name in classes if name.strip()),
            tars=tuple(tars.values()),
            parent=Parent(role="data", uri=str(here.absolute()), digest=digest),
        )
    folder, parent = open_folder(uri, "data")
    root = folder / split
    classes = sorted(p.name for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
    files = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((root / name).rglob("*"))
        if path.suffix.lower() in IMAGE_SUFFIXES or path.suffix == ".JPEG"
    ]
    if not files:
        raise SourceError(
            f"{root} has no CLASS/*.jpg, and {uri} no .tar",
            expected="a folder of pictures for each class, or WebDataset tars with `cls`",
            action="check the folder, and the split's name (--set split=... ; empty for none)",
        )
    return ClassPictures(classes=tuple(classes), files=tuple(files), parent=parent)


def _holds_tars(folder: Path) -> bool:
    return folder.is_dir() and any(folder.glob("*.tar"))


def _is_plain_tar(path: Path) -> bool:
    """A tar of samples, rather than a folder packed by ``pack_dir``, which has a digest by it."""
    return path.suffix == ".tar" and path.is_file() and not Path(f"{path}.sha256").exists()


def _samples(tar: Path) -> Iterator[LabelledImage | BadSampleError]:
    file = Descriptor(tar)
    sample: dict[str, Member] = {}
    key = ""
    try:
        for member in members(file, 0, file.size):
            folder, slash, name = member.name.rpartition("/")
            stem, _, kind = name.partition(".")
            if f"{folder}{slash}{stem}" != key and sample:
                yield _read(file, key, sample)
                sample = {}
            key = f"{folder}{slash}{stem}"
            sample.setdefault(kind.lower(), member)
        cut = None
    except CutTarError as error:
        cut = BadSampleError("cut-tar", f"{tar}: {error}")
    if sample:
        yield _read(file, key, sample)
    if cut:
        yield cut


def _read(file: Descriptor, key: str, sample: dict[str, Member]) -> LabelledImage | BadSampleError:
    image = next((m for kind, m in sample.items() if f".{kind}" in IMAGE_SUFFIXES), None)
    label = sample.get(LABEL_KEY)
    if image is None or label is None:
        reason = "missing-image" if image is None else "no-label"
        return BadSampleError(reason, f"{file.path}: {key} has {', '.join(sample)}")
    text = file.read(label.offset, label.size).decode("utf-8", "backslashreplace").strip()
    return LabelledImage(data=file.read(image.offset, image.size), label=text)


_RESULT = "evaluation.json"
ConfigT = TypeVar("ConfigT", ZeroShotConfig, RetrievalConfig)


@dataclass(frozen=True, kw_only=True, slots=True)
class ResultPlace:
    """Where a result goes, and what it was found from."""

    uri: str
    """Under the store, by the digest."""
    digest: str
    """Of what was judged, on what and how."""
    task: str
    """``zero-shot`` or ``retrieval``."""
    recipe: Mapping[str, object]
    """The config's JSON."""
    parents: tuple[Parent, ...]
    """The model and the data."""


def result_place(
    store: str, task: str, config: ConfigT, parents: Sequence[Parent], file: str = ""
) -> ResultPlace:
    """The place of a result; ``file`` is a local file whose content decides it too."""
    # What the model is, is said by its parent; how fast it runs doesn't matter.
    clip = replace(config.clip, model="", weights="", seed=0, batch_size=0, num_threads=0)
    judged = replace(config, clip=clip).to_json()
    content = sha256_bytes(Path(file).read_bytes()) if file and Path(file).is_file() else ""
    digest = digest_json([task, judged, content, sorted([p.role, p.digest] for p in parents)])
    return ResultPlace(
        uri=join(store, "evaluations", digest[:12]),
        digest=digest,
        task=task,
        recipe=config.to_json(),
        parents=tuple(parents),
    )


def is_judged(place: ResultPlace) -> bool:
    """Whether the result is there."""
    return exists(join(place.uri, _RESULT))


def write_result(
    place: ResultPlace, metrics: Mapping[str, float], summary: Mapping[str, str]
) -> str:
    """Write the evaluation, and return its URI."""
    write_json(
        join(place.uri, _RESULT),
        {
            "format": 1,
            "kind": "evaluation",
            "digest": place.digest,
            "task": place.task,
            "recipe": place.recipe,
            "metrics": dict(metrics),
            "num_samples": 0,
            "parents": [p.to_json() for p in place.parents],
            "summary": dict(summary),
        },
    )
    return place.uri
