"""Images with boxes and masks of objects, as COCO describes them; VOC and YOLO are brought to it.

Shapes: H W an image's height and width, M its objects.
"""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipmill.data.labeled.boxes import read_voc, read_yolo, upright_size
from clipmill.data.labeled.options import (
    ClassList,
    DetectionOptions,
    MissingSplitError,
    read_options,
    renumber,
    split_names,
)
from clipmill.errors import SourceError
from clipmill.images import read_rgb

_MIN_POLYGON = 6
"""Numbers of a triangle, the smallest polygon."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Instance:
    """An object, or a crowd of them, of an image."""

    box: tuple[float, float, float, float]
    """x1, y1, x2, y2 in pixels, within the image."""
    label: int
    """Its class, from 0."""
    is_crowd: bool
    """True for a group that isn't annotated one by one."""
    segmentation: Any
    """Polygons, or run lengths, as COCO has them; None if the object has no mask."""

    def mask_HW(self, height: int, width: int) -> NDArray[np.uint8]:
        """1 where the object is, as pycocotools draws it; all 0 without a mask."""
        if self.segmentation is None:
            return np.zeros((height, width), np.uint8)
        return _mask_HW(self.segmentation, height, width)


@dataclass(frozen=True, kw_only=True, slots=True)
class CocoImage:
    """An image with what is in it."""

    id: int
    """COCO's number of it, or its place from 1 where the file's ids aren't numbers."""
    path: Path
    """Its file."""
    height: int
    """Pixels."""
    width: int
    """Pixels."""
    instances: tuple[Instance, ...]
    """Its objects; perhaps none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CocoFolder:
    """Images and their instances, in the order of their ids."""

    images: tuple[CocoImage, ...]
    classes: tuple[str, ...]
    """Names by label."""
    category_ids: tuple[int, ...]
    """Id of each class in ``truth``: COCO's, or its label + 1 where names were given."""
    annotations: Path
    """The file, or folder, that the objects were read from."""
    truth: tuple[dict[str, Any], ...]
    """All annotations with a box, for COCO's own evaluation, numbered from 1."""
    skipped: dict[str, int]
    """Annotations, or their masks (``no_mask``, ``degenerate_polygon``, ``bad_run_lengths``), that
    were left out, by reason."""
    examples: dict[str, str] = field(default_factory=dict)
    """An annotation of each reason."""

    def __len__(self) -> int:
        return len(self.images)

    @property
    def num_masks(self) -> int:
        """Objects with a mask."""
        return sum(o.segmentation is not None for i in self.images for o in i.instances)

    @property
    def num_objects(self) -> int:
        """Objects with a box."""
        return sum(len(image.instances) for image in self.images)

    def image_HW3(self, index: int) -> NDArray[Any]:
        """RGB, uint8; SourceError if it's broken, or not of the size that was annotated.

        An image that EXIF turns is upright if it was annotated so, and as stored otherwise.
        """
        image = self.images[index]
        pixels_HW3 = np.asarray(read_rgb(image.path))
        if pixels_HW3.shape[:2] == (image.width, image.height) != (image.height, image.width):
            pixels_HW3 = np.asarray(read_rgb(image.path, apply_exif=False))
        if pixels_HW3.shape[:2] != (image.height, image.width):
            raise SourceError(
                f"{image.path} is {pixels_HW3.shape[1]} x {pixels_HW3.shape[0]} pixels",
                expected=f"{image.width} x {image.height}, as the annotations say",
                action="restore the image that was annotated, or take it out",
            )
        return pixels_HW3

    def masks_MHW(self, index: int) -> NDArray[np.uint8]:
        """The mask of each instance, 1 where it is."""
        image = self.images[index]
        masks = [o.mask_HW(image.height, image.width) for o in image.instances]
        return np.stack(masks) if masks else np.zeros((0, image.height, image.width), np.uint8)

    @classmethod
    def open(cls, folder: Path, split: str, classes: Sequence[str] | None = None) -> "CocoFolder":
        """The images of a split such as ``train`` or ``train2017``, numbered by ``classes``.

        Boxes without area, or outside their image, are left out of training and counted
        (``skipped``); so are masks that are none. An image without annotations is kept, since
        background is learned too.

        Raises:
            SourceError: a file is missing; an annotation has no box, or names an unknown image or
                category; a category isn't among ``classes``.
        """
        options = read_options(folder, "detection", DetectionOptions)
        path, image_root, content = read_content(folder, split, options)
        categories = _sorted_by_id(content["categories"])
        own = tuple(str(category["name"]) for category in categories)
        if classes is None:
            listed = ClassList.read(folder, options.classes) if options.classes else None
            classes = listed.names if listed else None
        ids = [category["id"] for category in categories]
        numbers = renumber(own, own if classes is None else classes, path)
        labels = dict(zip(ids, numbers, strict=True))
        keeps_ids = classes is None and all(isinstance(key, int) for key in ids)
        names = own if classes is None else tuple(classes)
        category_ids = tuple(ids) if keeps_ids else tuple(range(1, len(names) + 1))
        reader = _Reader(path, category_ids, labels)
        images = _sorted_by_id(content["images"])
        has_numbers = all(isinstance(image["id"], int) for image in images)
        records: dict[Any, _Record] = {}
        for number, image in enumerate(images, start=1):
            if image["id"] in records:
                raise SourceError(
                    f"{path} has the image id {image['id']!r} twice",
                    expected="an id of its own for each image",
                    action="give each image an id of its own",
                )
            file = image_root / str(image["file_name"])
            size = (image.get("width"), image.get("height"))
            if None in size and file.is_file():
                size = upright_size(file)
            records[image["id"]] = _Record(
                id=image["id"] if has_numbers else number, path=file, size=size
            )
        _check_files(path, [record.path for record in records.values()])
        for number, annotation in enumerate(content["annotations"]):
            reader.add(number, annotation, records)
        return cls(
            images=tuple(
                CocoImage(
                    id=record.id,
                    path=record.path,
                    height=int(record.size[1]),
                    width=int(record.size[0]),
                    instances=tuple(record.instances),
                )
                for record in records.values()
            ),
            classes=names,
            category_ids=category_ids,
            annotations=path,
            truth=tuple(reader.truth),
            skipped=dict(reader.skipped),
            examples=reader.examples,
        )


@dataclass(kw_only=True, slots=True)
class _Record:
    id: int
    path: Path
    size: Any
    """Width, height."""
    instances: list[Instance] = field(default_factory=list)


class _Reader:
    """Annotations, checked one by one."""

    def __init__(self, path: Path, category_ids: Sequence[int], labels: dict[Any, int]) -> None:
        self._path = path
        self._category_ids = category_ids
        self._labels = labels
        self.truth: list[dict[str, Any]] = []
        self.skipped: Counter[str] = Counter()
        self.examples: dict[str, str] = {}

    def add(self, number: int, annotation: Any, records: dict[Any, _Record]) -> None:
        if not isinstance(annotation, dict):
            raise self._error(number, {}, f"is {annotation!r}", "an object of COCO's JSON")
        for key, known in (("image_id", records), ("category_id", self._labels)):
            if annotation.get(key) not in known:
                raise self._error(
                    number,
                    annotation,
                    f"has {key} {annotation.get(key)}",
                    f"one that the file lists ({len(known)} of them)",
                )
        record = records[annotation["image_id"]]
        try:
            x, y, width, height = (float(value) for value in annotation["bbox"])
            is_crowd = bool(int(annotation.get("iscrowd") or 0))
            area = annotation.get("area")
        except (KeyError, TypeError, ValueError) as error:
            raise self._error(
                number, annotation, f"has bbox {annotation.get('bbox')}", "x, y, width, height"
            ) from error
        if not all(map(math.isfinite, (x, y, width, height))):
            self._skip("degenerate_box", number, annotation)
            return
        label = self._labels[annotation["category_id"]]
        segmentation, reason = _checked_segmentation(annotation.get("segmentation"), record.size)
        if reason:
            self._skip(reason, number, annotation)
        self.truth.append(
            {
                "id": len(self.truth) + 1,
                "image_id": record.id,
                "category_id": self._category_ids[label],
                "bbox": [x, y, width, height],
                "area": float(width * height if area is None else area),
                "iscrowd": int(is_crowd),
                "segmentation": segmentation,
            }
        )
        box = _box(x, y, width, height, record.size)
        if box is None:
            self._skip("degenerate_box", number, annotation)
            return
        record.instances.append(
            Instance(box=box, label=label, is_crowd=is_crowd, segmentation=segmentation)
        )

    def _skip(self, reason: str, number: int, annotation: dict[str, Any]) -> None:
        self.skipped[reason] += 1
        self.examples.setdefault(reason, self._name(number, annotation))

    def _name(self, number: int, annotation: dict[str, Any]) -> str:
        has_id = "id" in annotation
        return f"annotation {annotation['id']}" if has_id else f"annotation number {number}"

    def _error(
        self, number: int, annotation: dict[str, Any], what: str, expected: str
    ) -> SourceError:
        return SourceError(
            f"{self._path}: {self._name(number, annotation)} {what}",
            expected=expected,
            action="correct the annotation, take it out, or complete the file's lists",
        )


def coco_split(folder: Path, kind: str) -> str:
    """The split of a kind (``train`` or ``val``): with a year, as COCO names it, or without."""
    matches = sorted(folder.glob(f"annotations/instances_{kind}*.json"))
    if len(matches) != 1:
        raise SourceError(
            f"{folder} has {len(matches)} files annotations/instances_{kind}*.json",
            expected="one, such as instances_train2017.json",
            action="give a folder in COCO's layout with one split of each kind",
        )
    return matches[0].stem.removeprefix("instances_")


def coco_classes(folder: Path) -> tuple[str, ...]:
    """Names of the options' list, or of the training split in the order of their ids.

    Where there is no training split, the validation split's.
    """
    options = read_options(folder, "detection", DetectionOptions)
    listed = ClassList.read(folder, options.classes) if options.classes else None
    if listed:
        return listed.names
    try:
        content = read_content(folder, "train", options)[2]
    except SourceError:
        content = read_content(folder, "val", options)[2]
    return tuple(str(category["name"]) for category in _sorted_by_id(content["categories"]))


def read_content(
    folder: Path, split: str, options: DetectionOptions | None = None
) -> tuple[Path, Path, dict[str, Any]]:
    """Return a split's file or folder, the folder of its images, and COCO's content."""
    options = options or read_options(folder, "detection", DetectionOptions)
    names = split_names(split, options.splits)
    layout = options.layout if options.layout != "auto" else _layout(folder)
    if layout == "voc":
        return read_voc(folder, names, options)
    if layout == "yolo":
        return read_yolo(folder, names, options)
    path = _annotation_file(folder, split, names, options)
    stat = path.stat()
    content = _read(path, stat.st_mtime_ns, stat.st_size)
    kind = path.stem.removeprefix("instances_")
    return path, _image_root(folder, path, (kind, *names), options, content), content


def _layout(folder: Path) -> str:
    if any(folder.glob("annotations/instances_*.json")):
        return "coco"
    if (folder / "Annotations").is_dir():
        return "voc"
    if (folder / "data.yaml").is_file() or (folder / "labels").is_dir():
        return "yolo"
    return "coco"


def _annotation_file(
    folder: Path, split: str, names: Sequence[str], options: DetectionOptions
) -> Path:
    patterns = (
        (options.annotations,)
        if options.annotations
        else (
            "annotations/instances_{split}.json",
            "annotations/instances_{split}[0-9]*.json",
            "annotations/{split}.json",
            "{split}/_annotations.coco.json",
            "{split}.json",
        )
    )
    for pattern in patterns:
        for name in names:
            matches = sorted(folder.glob(pattern.format(split=name)))
            if len(matches) > 1:
                raise SourceError(
                    f"{folder} has {len(matches)} files {pattern.format(split=name)}",
                    expected="one, such as instances_train2017.json",
                    action=f"name the split by the option splits in detection.json, such as "
                    f'{{"{split}": "{matches[0].stem.removeprefix("instances_")}"}}',
                )
            if matches:
                return matches[0]
    raise MissingSplitError(
        f"{folder} has no annotations/instances_{split}.json",
        expected=f"COCO's layout: that file, and images below {split}/; or VOC's or YOLO's",
        action="check the folder and the split's name",
    )


def _image_root(
    folder: Path,
    path: Path,
    kinds: Sequence[str],
    options: DetectionOptions,
    content: dict[str, Any],
) -> Path:
    if options.images:
        return folder / options.images.format(split=kinds[0])
    roots = [
        *(root for kind in kinds for root in (folder / kind, folder / "images" / kind)),
        folder / "images",
        path.parent,
        folder,
    ]
    first = next((str(image.get("file_name")) for image in content["images"]), "")
    return next((root for root in roots if first and (root / first).is_file()), roots[0])


@lru_cache(maxsize=2)
def _read(path: Path, mtime_ns: int, num_bytes: int) -> dict[str, Any]:
    del mtime_ns, num_bytes
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8-sig"))
        for part in ("images", "annotations", "categories"):
            content[part] = list(content[part])
        for entry in content["images"]:
            hash(entry["id"]), entry["file_name"]
        for entry in content["categories"]:
            hash(entry["id"]), entry["name"]
    except (ValueError, KeyError, TypeError) as error:
        raise SourceError(
            f"{path} can't be read: {type(error).__name__} {error}",
            expected="COCO's JSON: images with id and file_name, annotations, and categories with "
            "id and name",
            action="download or write the file again",
        ) from error
    return content


def _sorted_by_id(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return entries in the order of their ids; numbers before text."""
    return sorted(
        entries, key=lambda e: (isinstance(e["id"], str), e["id"]) if e["id"] is not None else ()
    )


def _check_files(path: Path, images: Sequence[Path]) -> None:
    missing = [image for image in images if not image.exists()]
    if missing or not images:
        what = f"{missing[0]} is missing" if missing else f"{path} lists no image"
        more = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise SourceError(
            what + more,
            expected="every image that the annotations list",
            action="restore the files, or take them out of the annotations",
        )


def _box(
    x: float, y: float, width: float, height: float, size: tuple[int, int]
) -> tuple[float, float, float, float] | None:
    """x1 y1 x2 y2 within the image; None where less than a pixel's width or height is left."""
    x1, y1 = max(x, 0.0), max(y, 0.0)
    x2, y2 = min(x + width, float(size[0])), min(y + height, float(size[1]))
    return (x1, y1, x2, y2) if x2 - x1 >= 1 and y2 - y1 >= 1 else None


def _checked_segmentation(segmentation: Any, size: tuple[int, int]) -> tuple[Any, str]:
    """Return polygons or run lengths that pycocotools can draw, or None, and the reason."""
    if not segmentation:
        return None, "no_mask"
    if isinstance(segmentation, dict):
        is_whole = _is_whole(segmentation, size)
        return (segmentation, "") if is_whole else (None, "bad_run_lengths")
    if not isinstance(segmentation, list):
        return None, "degenerate_polygon"
    if not isinstance(segmentation[0], list):  # one polygon without its list
        segmentation = [segmentation]
    polygons = [polygon for polygon in segmentation if _is_polygon(polygon)]
    reason = "degenerate_polygon" if len(polygons) < len(segmentation) else ""
    return (polygons or None), reason


def _is_polygon(polygon: Any) -> bool:
    return (
        isinstance(polygon, list)
        and len(polygon) >= _MIN_POLYGON
        and len(polygon) % 2 == 0
        and all(
            isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v)
            for v in polygon
        )
    )


def _is_whole(run_lengths: dict[str, Any], size: tuple[int, int]) -> bool:
    """Return whether run lengths cover an image of that (width, height)."""
    width, height = size
    counts = run_lengths.get("counts")
    if list(run_lengths.get("size") or ()) != [height, width] or not counts:
        return False
    try:
        values = np.array(counts if isinstance(counts, list) else _decoded_counts(counts))
    except (TypeError, ValueError):
        return False
    is_valid = values.dtype.kind == "i" and values.ndim == 1 and bool((values >= 0).all())
    return is_valid and int(values.sum()) == width * height


def _decoded_counts(text: Any) -> NDArray[np.int64]:
    """Return the run lengths of COCO's compressed text (``rleFrString`` in pycocotools' maskApi).

    A number is written in groups of five bits, the lowest first; from the fourth on, as its
    difference to the last but one.
    """
    data = np.frombuffer(text.encode() if isinstance(text, str) else bytes(text), np.uint8)
    groups = data.astype(np.int64) - 48
    last = np.flatnonzero(groups & 0x20 == 0)
    first = np.concatenate([[0], last[:-1] + 1])
    place = np.arange(len(groups)) - np.repeat(first, last - first + 1)
    values = np.add.reduceat((groups & 0x1F) << 5 * place, first)
    values -= np.where(groups[last] & 0x10, np.int64(1) << 5 * (last - first + 1), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def _mask_HW(segmentation: Any, height: int, width: int) -> NDArray[np.uint8]:
    if isinstance(segmentation, dict) and isinstance(segmentation["counts"], list):
        counts = segmentation["counts"]
        values = np.arange(len(counts)) % 2
        return np.repeat(values, counts).astype(np.uint8).reshape(width, height).T
    import warnings

    from pycocotools import mask as coco_mask

    with warnings.catch_warnings():
        # pycocotools knows no NumPy 2 yet, and works with it.
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
        if isinstance(segmentation, list):
            segmentation = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
        decoded: NDArray[np.uint8] = coco_mask.decode(segmentation)
    return decoded
