"""Check a task's data, and its fit to an encoder or a model, before training on it.

A check reads every file of a folder and reports all issues, rather than the first.
"""

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from clipmill.config import Config
from clipmill.data.labeled.boxes import upright_size
from clipmill.data.labeled.coco import CocoFolder, read_content
from clipmill.data.labeled.dense import (
    IGNORED,
    DepthFolder,
    LabeledFolder,
    SegmentationFolder,
    segmentation_classes,
)
from clipmill.data.labeled.folder import ImageFolder
from clipmill.data.labeled.options import MissingSplitError, renumber
from clipmill.errors import BadSampleError, BadSampleReason, ClipmillError, ConfigError, SourceError
from clipmill.images import image_size
from clipmill.models.checkpoint import read_metadata
from clipmill.models.embedding_stats import evenly_spaced_indices
from clipmill.models.pretrained import open_encoder
from clipmill.processes import is_first_rank
from clipmill.stage_records import ProgressCallback, no_progress
from clipmill.tasks.config import MAX_DEPTH_METERS, DepthConfig, DetectionConfig
from clipmill.tasks.training_registry import get_training_task

MAX_EXAMPLES = 5
MIN_CLASSES = 2
"""Classes of a data set that a classifier, of images or of pixels, can tell apart."""
_NUM_QUICK_FILES = 32
_HEADER_BYTES = 1 << 20
# Depth cameras see up to 10 m. Maps of rooms that end before 3 m are rare, before 1.2 m more so.
_FAR_SHARE, _NEAR_METERS, _ROOM_METERS = 0.005, 1.2, 3.0
_DEPTH_UNITS = {100: "centimeters", 256: "KITTI", 1000: "millimeters", 5000: "TUM"}
_logger = logging.getLogger(__name__)
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

    def __init__(self, *, missing_splits_are_errors: bool = True) -> None:
        self._missing_splits_are_errors = missing_splits_are_errors
        self.num_samples: dict[str, int] = {}
        self._counts: Counter[tuple[str, bool]] = Counter()
        self._examples: dict[tuple[str, bool], list[str]] = defaultdict(list)

    @property
    def num_errors(self) -> int:
        """Errors so far."""
        return sum(count for (_, is_error), count in self._counts.items() if is_error)

    def error(self, reason: str, example: str) -> None:
        """Count something that prevents training."""
        self._add((reason, True), example)

    def warn(self, reason: str, example: str, count: int = 1) -> None:
        """Count something that is left out or suspicious."""
        self._add((reason, False), example, count)

    def catch(self, reason: str, read: Callable[[], ValueT], file: str = "") -> ValueT | None:
        """Return what ``read`` returns; None, and an error counted, if it raises.

        SourceError and BadSampleError are caught. ``file`` is named for the latter.
        """
        try:
            return read()
        except MissingSplitError as error:
            if self._missing_splits_are_errors or not self.num_samples:
                self.error(reason, error.what)
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

    def _add(self, key: tuple[str, bool], example: str, count: int = 1) -> None:
        self._counts[key] += count
        if len(self._examples[key]) < MAX_EXAMPLES:
            self._examples[key].append(example)


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckScope:
    """Part of a folder to check, and what it must fit."""

    splits: tuple[str, ...] = ()
    """Splits; empty for those of training and evaluation."""
    limit: int | None = None
    """Files of a split to open, evenly spaced; None for all."""
    classes: tuple[str, ...] | None = None
    """A model's classes, among which the data's must be."""
    config: Config | None = None
    """Config of the task's model."""

    def indices(self, length: int) -> list[int]:
        """Return the indices of a split's files to open."""
        if self.limit is None or self.limit >= length:
            return list(range(length))
        return evenly_spaced_indices(length, self.limit)


EVERYTHING = CheckScope()


def check_before(
    task: str,
    folder: Path,
    *,
    splits: tuple[str, ...],
    config: Config,
    classes: tuple[str, ...] | None = None,
) -> None:
    """Run the cheap part of a check: layout, lists and annotations, and a few files of each split.

    A split that isn't there is passed over, but for the first. Warnings are logged.

    Raises:
        SourceError: the check finds an error; the first one, with the number of others.
    """
    if task not in CHECKS:
        return
    issues = IssueCounter(missing_splits_are_errors=False)
    scope = CheckScope(splits=splits, limit=_NUM_QUICK_FILES, classes=classes, config=config)
    CHECKS[task](folder, issues, no_progress, scope)
    result = issues.result(task).issues
    errors = [issue for issue in result if issue.is_error]
    if not errors:
        for issue in result if is_first_rank() else ():
            _logger.warning("%s (%d): %s", issue.reason, issue.count, issue.examples[0])
        return
    more = sum(issue.count for issue in errors) - 1
    raise SourceError(
        f"{errors[0].examples[0]} ({errors[0].reason})" + (f", and {more} more" if more else ""),
        expected=f"data for {task} without faults",
        action=f"fix the data; clipmill data validate {task} {folder} lists all faults",
    )


def check_data(
    task: str,
    folder: Path,
    *,
    encoder: str = "",
    config: Config | None = None,
    model: str = "",
    report: ProgressCallback,
) -> DataReport:
    """Check a folder in a task's layout.

    With ``encoder`` and the ``config`` of the task's model, also check that they fit each other;
    with a task model's URI, that it was trained for the folder's classes.

    Raises:
        ConfigError: there is no such task.
    """
    if task not in CHECKS:
        raise ConfigError(
            f"there is no check of data for {task!r}",
            expected=f"one of {', '.join(CHECKS)}",
            action="give the name of a task",
        )
    issues = IssueCounter()
    scope = EVERYTHING if config is None else CheckScope(config=config)
    CHECKS[task](folder, issues, report, scope)
    if encoder and config is not None:
        check_encoder(task, config, encoder, folder, issues)
    if model:
        check_model(model, folder, issues)
    return issues.result(task)


def check_encoder(
    task_name: str, config: Config, encoder: str, folder: Path, issues: IssueCounter
) -> None:
    """Run the encoder in the task's model on an image, on the meta device."""
    import torch

    task = get_training_task(task_name)
    try:
        source = open_encoder(encoder)
        with torch.device("meta"):
            objective = task.build_objective(config, source.config, task.classes(folder))
        for side in task.input_sizes(config):
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
    issues.catch("another_class_list", partial(renumber, theirs, own, folder))


def check_classification(
    folder: Path, issues: IssueCounter, report: ProgressCallback, scope: CheckScope = EVERYTHING
) -> None:
    """Check images by class: known classes in each split, images that decode."""
    trained = scope.classes
    for split in scope.splits or ("train", "val"):
        data = issues.catch("layout", partial(ImageFolder.open, folder, split))
        if data is None:
            continue
        issues.num_samples[split] = len(data)
        for number in sorted(set(range(len(data.classes))) - set(data.labels)):
            issues.warn("class_without_images", f"{split}/{data.classes[number]}")
        for path in data.passed_over:
            issues.warn("not_an_image", str(path))
        for i in scope.indices(len(data)):
            issues.catch(BadSampleReason.UNREADABLE_IMAGE, partial(data.image, i))
            report(i + 1, len(data), f"{split} checked")
        if trained is None:
            trained = data.classes
            if len(trained) < MIN_CLASSES:
                issues.error("one_class", f"{folder} has {len(trained)} class")
            continue
        for name in sorted(set(data.classes) - set(trained)):
            issues.error("class_not_trained", f"{split}/{name} isn't in train")
        for name in sorted(set(trained) - set(data.classes)):
            issues.warn("class_not_evaluated", f"train/{name} isn't in {split}")


def check_depth(
    folder: Path, issues: IssueCounter, report: ProgressCallback, scope: CheckScope = EVERYTHING
) -> None:
    """Check every image and depth map of both splits."""
    config = scope.config
    farthest = config.max_depth_meters if isinstance(config, DepthConfig) else MAX_DEPTH_METERS
    for split in scope.splits or ("train", "test"):
        data = issues.catch("layout", partial(DepthFolder.open, folder, split))
        if data is None:
            continue
        issues.num_samples[split] = len(data)
        _warn_passed_over(data, issues)
        assumed: list[_DepthValues] = []
        num_unknown = 0
        for i in scope.indices(len(data)):
            num_unknown += _check_depth_pair(data, i, issues, farthest, assumed)
            report(i + 1, len(data), f"{split} checked")
        if num_unknown == len(scope.indices(len(data))):
            issues.error("no_depth_known", f"{folder}, {split}: no map has a pixel of known depth")
        if assumed:
            _check_assumed_unit(folder, split, assumed, issues)


@dataclass(frozen=True, slots=True)
class _DepthValues:
    """Depth of a map whose unit isn't stated, in meters if it's the millimeter."""

    far_share: float
    """Share beyond the range of cameras for rooms."""
    median: float
    highest: float

    @classmethod
    def of(cls, known_meters: NDArray[Any]) -> "_DepthValues":
        return cls(
            far_share=float((known_meters > MAX_DEPTH_METERS).mean()),
            median=float(np.median(known_meters)),
            highest=float(known_meters.max()),
        )


def _check_assumed_unit(
    folder: Path, split: str, maps: Sequence[_DepthValues], issues: IssueCounter
) -> None:
    """Compare a split's values with rooms: single maps of another unit look like some of them."""
    far = float(np.median([m.far_share for m in maps]))
    median, highest = float(np.median([m.median for m in maps])), max(m.highest for m in maps)
    if far <= _FAR_SHARE and highest >= _ROOM_METERS:
        return
    units = "; ".join(
        f"{scale} ({name}): median {median * 1000 / scale:.3g} m, up to "
        f"{highest * 1000 / scale:.3g} m"
        for scale, name in _DEPTH_UNITS.items()
    )
    text = (
        f"{folder}, {split}: as millimeters the maps have a median of {median:.3g} m, up to "
        f"{highest:.3g} m, and {100 * far:.2g} % is beyond {MAX_DEPTH_METERS:g} m, unlike rooms. "
        f"Set values_per_meter in depth.json, even if it's 1000. By unit: {units}"
    )
    if far > _FAR_SHARE or highest < _NEAR_METERS:
        issues.error("depth_unit", text)
    else:
        issues.warn("depth_unit", text)


def _check_depth_pair(
    data: DepthFolder,
    index: int,
    issues: IssueCounter,
    farthest: float,
    assumed: list[_DepthValues],
) -> bool:
    """Check a map and its image; return whether no depth is known."""
    name = str(data.labels[index])
    read = issues.catch("depth", lambda: data.depth_map(index))
    depth, is_assumed = (None, False) if read is None else read
    if depth is not None and is_assumed and (known := depth[depth > 0]).size:
        assumed.append(_DepthValues.of(known))
    image = issues.catch(BadSampleReason.UNREADABLE_IMAGE, lambda: data.image_HW3(index))
    if depth is None or image is None:
        return False
    has_image_size = depth.shape == image.shape[:2]
    pair = (
        None if has_image_size else issues.catch("depth_of_another_size", lambda: data.pair(index))
    )
    if pair is not None:
        issues.warn("depth_resized", f"{name}: {depth.shape}, image {image.shape[:2]}")
    if not (depth > 0).any():
        issues.warn("no_depth_known", name)
        return True
    if (depth > farthest).mean() > 0.5:
        issues.warn("mostly_out_of_range", f"{name}: most is farther than {farthest} m")
    return False


def check_detection(
    folder: Path, issues: IssueCounter, report: ProgressCallback, scope: CheckScope = EVERYTHING
) -> None:
    """Check every annotation, and every image's header, of both splits."""
    trained = scope.classes
    for split in scope.splits or ("train", "val"):
        read = issues.catch("layout", partial(read_content, folder, split))
        if read is None:
            continue
        path, root, content = read
        num_errors = issues.num_errors
        _check_content(path, content, issues)
        images = content["images"]
        issues.num_samples[split] = len(images)
        for i in scope.indices(len(images)):
            _check_image(root, images[i], issues)
            report(i + 1, len(images), f"{split} checked")
        if issues.num_errors > num_errors:
            continue
        data = issues.catch("layout", partial(CocoFolder.open, folder, split))
        if data is None:
            continue
        for reason, count in data.skipped.items():
            if reason == "degenerate_box":  # counted above
                continue
            issues.warn(reason, f"{path.name}: {data.examples[reason]}", count)
        wants_masks = isinstance(scope.config, DetectionConfig) and scope.config.mask_head
        if split == "train" and wants_masks and data.num_objects and not data.num_masks:
            issues.error(
                "no_object_has_a_mask", f"{path} has boxes only: set model.mask_head=false"
            )
        if trained is None:
            trained = data.classes
        else:
            issues.catch("class_not_trained", partial(renumber, data.classes, trained, path))


def _check_content(path: Path, content: dict[str, Any], issues: IssueCounter) -> None:
    images = {image["id"]: image for image in content["images"]}
    labels = {category["id"]: str(category["name"]) for category in content["categories"]}
    if len(images) < len(content["images"]):
        issues.error("image_id_twice", f"{path}")
    counts: Counter[Any] = Counter()
    for number, annotation in enumerate(content["annotations"]):
        if isinstance(annotation, dict):
            counts[annotation.get("image_id")] += 1
            _check_annotation(path, number, annotation, images, labels, issues)
        else:
            issues.error("not_an_annotation", f"{path}: {annotation!r}")
    for key, image in images.items():
        if not counts[key]:
            issues.warn("image_without_annotation", str(image.get("file_name")))


def _check_annotation(
    path: Path,
    number: int,
    annotation: dict[str, Any],
    images: dict[Any, Any],
    labels: dict[Any, str],
    issues: IssueCounter,
) -> None:
    name = f"annotation {annotation['id']}" if "id" in annotation else f"annotation number {number}"
    where = f"{path.name}: {name}"
    image = images.get(annotation.get("image_id"))
    if image is None:
        issues.error("unknown_image", f"{where} has image_id {annotation.get('image_id')}")
    if annotation.get("category_id") not in labels:
        category = annotation.get("category_id")
        issues.error("unknown_category", f"{where} has category_id {category}")
    try:
        x, y, width, height = (float(value) for value in annotation["bbox"])
    except (KeyError, TypeError, ValueError):
        issues.error("no_box", f"{where} has bbox {annotation.get('bbox')}")
        return
    # Comparisons with NaN are false.
    if not (width >= 1 and height >= 1):
        issues.warn("degenerate_box", f"{where} is {width} x {height} pixels, and left out")
        return
    if image is None or not image.get("width") or not image.get("height"):
        return
    if not (
        x >= -1
        and y >= -1
        and x + width <= float(image["width"]) + 1
        and y + height <= float(image["height"]) + 1
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
    if actual is None or None in stated or actual == stated:
        return
    # A photo that EXIF turns has its sides swapped in the header.
    upright = issues.catch("image", partial(upright_size, path), str(path))
    if upright not in {None, stated}:
        issues.error("image_of_another_size", f"{path}: {actual}, stated {stated}")


def check_segmentation(
    folder: Path, issues: IssueCounter, report: ProgressCallback, scope: CheckScope = EVERYTHING
) -> None:
    """Check every image and mask of both splits."""
    classes = issues.catch("layout", lambda: segmentation_classes(folder))
    if classes is None:
        return
    if len(classes) < MIN_CLASSES:
        issues.error("one_class", f"{folder} lists {len(classes)} class: add one for the rest")
    pixels = np.zeros(256, np.int64)
    for split in scope.splits or ("train", "val"):
        data = issues.catch(
            "layout", partial(SegmentationFolder.open, folder, split, scope.classes)
        )
        if data is None:
            continue
        issues.num_samples[split] = len(data)
        _warn_passed_over(data, issues)
        num_empty = 0
        for i in scope.indices(len(data)):
            num_empty += _check_segmentation_pair(
                data, i, issues, pixels if split == "train" else None
            )
            report(i + 1, len(data), f"{split} checked")
        if num_empty == len(scope.indices(len(data))):
            issues.error("nothing_labeled", f"{folder}, {split}: all pixels are ignored")
    if issues.num_samples.get("train") and scope.limit is None:
        for number, name in enumerate(classes):
            if not pixels[number]:
                issues.warn("class_without_pixels", f"{name} ({number}) in train")


def _check_segmentation_pair(
    data: SegmentationFolder, index: int, issues: IssueCounter, pixels: NDArray[np.int64] | None
) -> bool:
    """Check a mask and its image; return whether no pixel has a class."""
    name = str(data.labels[index])
    labels = issues.catch("mask", lambda: data.classes_HW(index))
    image = issues.catch(BadSampleReason.UNREADABLE_IMAGE, lambda: data.image_HW3(index))
    if labels is None or image is None:
        return False
    if labels.shape != image.shape[:2]:
        issues.catch("mask_of_another_size", lambda: data.pair(index))
    is_empty = bool((labels == IGNORED).all())
    if is_empty:
        issues.warn("nothing_labeled", name)
    if pixels is not None:
        pixels += np.bincount(labels.ravel(), minlength=256)
    return is_empty


def _warn_passed_over(data: LabeledFolder, issues: IssueCounter) -> None:
    for path in data.passed_over:
        issues.warn("file_without_partner", f"{path} is in no pair of image and label")


CHECKS: Mapping[str, Callable[[Path, IssueCounter, ProgressCallback, CheckScope], None]] = {
    "classification": check_classification,
    "depth": check_depth,
    "detection": check_detection,
    "segmentation": check_segmentation,
}
"""Check of each task's data, by the task's name."""
