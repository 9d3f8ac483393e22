"""COCO's layout of instances: ``SPLIT/*.jpg`` and ``annotations/instances_SPLIT.json``.

Shapes: H W an image's height and width, M its objects.
"""

import json
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from clipmill.errors import SourceError
from clipmill.images import read_rgb


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
    """Polygons, or run lengths, as COCO has them."""

    def mask_HW(self, height: int, width: int) -> NDArray[np.uint8]:
        """1 where the object is."""
        return _mask_HW(self.segmentation, height, width)


@dataclass(frozen=True, kw_only=True, slots=True)
class CocoImage:
    """An image with what is in it."""

    id: int
    """COCO's number of it."""
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
    """Names in the order of COCO's category ids."""
    category_ids: tuple[int, ...]
    """COCO's id of each class."""
    annotations: Path
    """The JSON file, for COCO's own evaluation."""
    skipped: dict[str, int]
    """Annotations left out, by reason."""

    def __len__(self) -> int:
        return len(self.images)

    def image_HW3(self, index: int) -> NDArray[Any]:
        """RGB, uint8; SourceError if it's broken, or not of the size that was annotated."""
        image = self.images[index]
        pixels_HW3 = np.asarray(read_rgb(image.path))
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
    def open(cls, folder: Path, split: str) -> "CocoFolder":
        """The images of a split such as ``train2017``.

        Boxes without area, or outside their image, are left out and counted (``skipped``); an
        image without annotations is kept, since background is learned too.

        Raises:
            SourceError: a file is missing, or an annotation names an unknown image or category.
        """
        path = folder / "annotations" / f"instances_{split}.json"
        if not path.exists():
            raise SourceError(
                f"{folder} has no annotations/{path.name}",
                expected=f"COCO's layout: that file, and images below {split}/",
                action="check the folder and the split's name",
            )
        content = _read(path)
        categories = sorted(content["categories"], key=lambda c: c["id"])
        labels = {category["id"]: n for n, category in enumerate(categories)}
        by_image: dict[int, list[Instance]] = {image["id"]: [] for image in content["images"]}
        sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
        skipped: Counter[str] = Counter()
        for annotation in content["annotations"]:
            _check(path, annotation, by_image, labels)
            box = _box(annotation["bbox"], *sizes[annotation["image_id"]])
            if box is None:
                skipped["degenerate_box"] += 1
                continue
            if not annotation.get("segmentation"):
                skipped["no_mask"] += 1
                continue
            by_image[annotation["image_id"]].append(
                Instance(
                    box=box,
                    label=labels[annotation["category_id"]],
                    is_crowd=bool(annotation.get("iscrowd", 0)),
                    segmentation=annotation["segmentation"],
                )
            )
        images = tuple(
            CocoImage(
                id=image["id"],
                path=folder / split / image["file_name"],
                height=image["height"],
                width=image["width"],
                instances=tuple(by_image[image["id"]]),
            )
            for image in sorted(content["images"], key=lambda i: i["id"])
        )
        _check_files(path, images)
        return cls(
            images=images,
            classes=tuple(c["name"] for c in categories),
            category_ids=tuple(c["id"] for c in categories),
            annotations=path,
            skipped=dict(skipped),
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
    """Names of the categories in the order of their ids, from the smaller split if it's there."""
    kind = "val" if any(folder.glob("annotations/instances_val*.json")) else "train"
    content = _read(folder / "annotations" / f"instances_{coco_split(folder, kind)}.json")
    return tuple(c["name"] for c in sorted(content["categories"], key=lambda c: c["id"]))


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
        for part in ("images", "annotations", "categories"):
            content[part] = list(content[part])
    except (ValueError, KeyError, TypeError) as error:
        raise SourceError(
            f"{path} can't be read: {error}",
            expected="COCO's JSON: images, annotations and categories",
            action="download or write the file again",
        ) from error
    return content


def _check(
    path: Path, annotation: dict[str, Any], images: dict[int, Any], labels: dict[int, int]
) -> None:
    for key, known in (("image_id", images), ("category_id", labels)):
        if annotation.get(key) not in known:
            raise SourceError(
                f"{path}: annotation {annotation.get('id')} has {key} {annotation.get(key)}",
                expected=f"one that the file lists ({len(known)} of them)",
                action="take the annotation out, or complete the list",
            )


def _check_files(path: Path, images: tuple[CocoImage, ...]) -> None:
    missing = [image.path for image in images if not image.path.exists()]
    if missing or not images:
        what = f"{missing[0]} is missing" if missing else f"{path} lists no image"
        more = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise SourceError(
            what + more,
            expected="every image that the annotations list",
            action="restore the files, or take them out of the annotations",
        )


def _box(bbox: list[float], width: int, height: int) -> tuple[float, float, float, float] | None:
    """x1 y1 x2 y2 within the image; None where less than a pixel's width or height is left."""
    x, y, w, h = (float(value) for value in bbox)
    x1, y1, x2, y2 = max(x, 0.0), max(y, 0.0), min(x + w, width), min(y + h, height)
    # Comparisons with NaN are false, so it is left out too.
    return (x1, y1, x2, y2) if x2 - x1 >= 1 and y2 - y1 >= 1 else None


def _mask_HW(segmentation: Any, height: int, width: int) -> NDArray[np.uint8]:
    if isinstance(segmentation, list):
        canvas = Image.new("L", (width, height))
        for polygon in segmentation:
            ImageDraw.Draw(canvas).polygon(polygon, fill=1)
        return np.asarray(canvas)
    counts = segmentation["counts"]
    if isinstance(counts, list):
        values = np.arange(len(counts)) % 2
        return np.repeat(values, counts).astype(np.uint8).reshape(width, height).T
    from pycocotools import mask as coco_mask

    with warnings.catch_warnings():
        # pycocotools knows no NumPy 2 yet, and works with it.
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
        decoded: NDArray[np.uint8] = coco_mask.decode(segmentation)
    return decoded
