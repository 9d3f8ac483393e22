"""Boxes of VOC's XML files and of YOLO's text files, as COCO's content."""

import math
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from clipmill.data.labeled.options import (
    IMAGE_SUFFIXES,
    ClassList,
    DetectionOptions,
    MissingSplitError,
    list_files,
)
from clipmill.errors import SourceError
from clipmill.images import exif_orientation

_TURNED = 5
"""EXIF orientations from which on width and height are exchanged."""
_YOLO_BOX = 5


def upright_size(path: Path) -> tuple[int, int]:
    """Return (width, height) of an upright image from its header."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            return (height, width) if exif_orientation(image) >= _TURNED else (width, height)
    except (OSError, ValueError, SyntaxError) as error:
        raise SourceError(
            f"{path} can't be decoded: {error}",
            expected="a whole JPEG, PNG or WebP file",
            action="restore the image, or take it and its label out",
        ) from error


def read_voc(
    folder: Path, names: Sequence[str], options: DetectionOptions
) -> tuple[Path, Path, dict[str, Any]]:
    """Read VOC's layout: ``JPEGImages``, ``Annotations/*.xml``, ``ImageSets/Main/SPLIT.txt``.

    Returns the folder of annotations, that of images, and COCO's content.

    Raises:
        SourceError: a file is missing, or an object has no name or box.
    """
    split, listed = _listed(folder, names, ("ImageSets/Main/{split}.txt", "{split}.txt"))
    image_root = folder / (options.images or "JPEGImages").format(split=split)
    root = folder / (options.annotations or "Annotations").format(split=split)
    images = _images(image_root)
    if listed is None:
        is_split = "{split}" in options.images + options.annotations
        if not is_split:
            raise _no_list_error(folder, names, "ImageSets/Main")
        listed = sorted(path.stem for path in root.glob("*.xml"))
    objects: list[dict[str, Any]] = []
    content: dict[str, Any] = {"images": [], "annotations": objects}
    classes = _voc_classes(root, folder, options)
    ids = {name: number for number, name in enumerate(classes, start=1)}
    for number, name in enumerate(listed, start=1):
        tree = _parsed(root / f"{name}.xml")
        file = images.get(name)
        if file is None:
            raise SourceError(
                f"{image_root / name}.jpg is missing",
                expected="an image for each name of the list",
                action="restore the image, or take its name out of the list",
            )
        width, height = _voc_size(tree) or upright_size(file)
        content["images"].append(
            {
                "id": number,
                "file_name": file.relative_to(image_root).as_posix(),
                "width": width,
                "height": height,
            }
        )
        for element in tree.iter("object"):
            class_name = (element.findtext("name") or "").strip()
            if class_name not in ids:
                raise SourceError(
                    f"{root / name}.xml has an object of the class {class_name!r}",
                    expected=f"one of the {len(ids)} classes listed",
                    action="complete the list of classes, or correct the name",
                )
            box = element.find("bndbox")
            corners = [
                _number(box.findtext(corner)) if box is not None else math.nan
                for corner in ("xmin", "ymin", "xmax", "ymax")
            ]
            x1, y1 = corners[0] - options.first_pixel, corners[1] - options.first_pixel
            objects.append(
                {
                    "id": f"{len(objects) + 1} ({name}.xml)",
                    "image_id": number,
                    "category_id": ids[class_name],
                    "bbox": [x1, y1, corners[2] - x1, corners[3] - y1],
                    "iscrowd": int((element.findtext("difficult") or "0").strip() == "1"),
                }
            )
    content["categories"] = [{"id": number, "name": name} for name, number in ids.items()]
    return root, image_root, content


def read_yolo(
    folder: Path, names: Sequence[str], options: DetectionOptions
) -> tuple[Path, Path, dict[str, Any]]:
    """Read YOLO's layout: ``images/SPLIT``, ``labels/SPLIT/*.txt``, and names in ``data.yaml``.

    ``SPLIT/images`` and ``SPLIT/labels`` do too. A line is a class and a box (center, width and
    height) or a polygon, as shares of the image. Returns as :func:`read_voc`.

    Raises:
        SourceError: a file is missing, or a line can't be read.
    """
    split, image_root = next(
        (
            (name, folder / place.format(split=name))
            for name in names
            for place in (options.images or "images/{split}", "{split}/images")
            if (folder / place.format(split=name)).is_dir()
        ),
        (names[0], folder / "images" / names[0]),
    )
    default = "{split}/labels" if image_root == folder / split / "images" else "labels/{split}"
    root = folder / (options.annotations or default).format(split=split)
    images = _images(image_root)
    if not images:
        raise MissingSplitError(
            f"{image_root} holds no image",
            expected="YOLO's layout: images/SPLIT and labels/SPLIT, or SPLIT/images and "
            "SPLIT/labels",
            action="check the folder and the split's name",
        )
    classes = _yolo_classes(folder, options)
    content: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": n, "name": name} for n, name in classes.items()],
    }
    for number, (name, file) in enumerate(images.items(), start=1):
        size = upright_size(file)
        relative = file.relative_to(image_root).as_posix()
        content["images"].append(
            {"id": number, "file_name": relative, "width": size[0], "height": size[1]}
        )
        labels = root / f"{name}.txt"
        # An image without objects has an empty file, or none.
        lines = labels.read_text().splitlines() if labels.is_file() else []
        for row, line in enumerate(lines, start=1):
            if line.strip():
                content["annotations"].append(
                    {
                        "id": f"{len(content['annotations']) + 1} ({name}.txt, line {row})",
                        "image_id": number,
                        **_yolo_object(labels, row, line, size),
                    }
                )
    return root, image_root, content


def _yolo_object(path: Path, row: int, line: str, size: tuple[int, int]) -> dict[str, Any]:
    width, height = size
    try:
        label, *values = line.split()
        category, numbers = int(float(label)), [float(value) for value in values]
        if len(numbers) == _YOLO_BOX - 1:
            x, y, w, h = numbers
            box = [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]
            return {"category_id": category, "bbox": box}
        is_polygon = len(numbers) > _YOLO_BOX and len(numbers) % 2 == 0
    except ValueError:
        is_polygon = False
    if not is_polygon:
        raise SourceError(
            f"{path}, line {row} can't be read: {line[:100]!r}",
            expected="a class, then x y width height or a polygon, as shares of the image",
            action="correct the line",
        )
    xs, ys = [v * width for v in numbers[::2]], [v * height for v in numbers[1::2]]
    polygon = [value for pair in zip(xs, ys, strict=True) for value in pair]
    left, top = min(xs), min(ys)
    return {
        "category_id": category,
        "bbox": [left, top, max(xs) - left, max(ys) - top],
        "segmentation": [polygon],
    }


def _yolo_classes(folder: Path, options: DetectionOptions) -> dict[int, str]:
    listed = ClassList.read(folder, options.classes)
    if listed:
        return {
            place if entry.id is None else entry.id: entry.name
            for place, entry in enumerate(listed.entries)
        }
    path = folder / "data.yaml"
    if path.is_file():
        import yaml

        try:
            names = yaml.safe_load(path.read_text(encoding="utf-8-sig"))["names"]
            pairs = names.items() if isinstance(names, dict) else enumerate(names)
            return {int(number): str(name) for number, name in pairs}
        except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
            raise SourceError(
                f"{path} can't be read: {type(error).__name__} {error}",
                expected="YAML with `names`: a list, or numbers with names",
                action="correct the file, or write classes.txt with a name a line",
            ) from error
    raise SourceError(
        f"{folder} has no data.yaml and no classes.txt",
        expected="the names of the classes",
        action="write classes.txt with a name a line, in the order of YOLO's numbers",
    )


def _voc_classes(root: Path, folder: Path, options: DetectionOptions) -> tuple[str, ...]:
    """Return the options' list, or the names in all splits' files, sorted."""
    listed = ClassList.read(folder, options.classes)
    if listed:
        return listed.names
    names = {
        (name.text or "").strip()
        for path in sorted(root.glob("*.xml"))
        for name in _parsed(path).iterfind("object/name")
    }
    return tuple(sorted(names))


def _listed(
    folder: Path, names: Sequence[str], places: Sequence[str]
) -> tuple[str, list[str] | None]:
    for name in names:
        for place in places:
            path = folder / place.format(split=name)
            if path.is_file():
                lines = [line.split() for line in path.read_text().splitlines() if line.strip()]
                return name, [line[0] for line in lines]
    return names[0], None


def _images(root: Path) -> dict[str, Path]:
    """Return images by their relative names without a suffix."""
    if not root.is_dir():
        return {}
    return {
        path.relative_to(root).with_suffix("").as_posix(): path
        for path in list_files(root)
        if path.suffix.lower() in IMAGE_SUFFIXES
    }


def _no_list_error(folder: Path, names: Sequence[str], place: str) -> SourceError:
    return MissingSplitError(
        f"{folder} has no {place}/{names[0]}.txt",
        expected="VOC's layout: a list of the split's names",
        action="write the list, or set the options images and annotations in detection.json to "
        "folders with {split}",
    )


def _parsed(path: Path) -> ET.Element:
    try:
        return ET.parse(path).getroot()  # noqa: S314  # expat 2.4.1 and later bound entities
    except (OSError, ET.ParseError) as error:
        raise SourceError(
            f"{path} can't be read: {error}",
            expected="VOC's XML",
            action="restore the file, or take it and its image out",
        ) from error


def _voc_size(tree: ET.Element) -> tuple[int, int] | None:
    """Return (width, height) of an annotation, None where it says nothing or 0."""
    width, height = (_number(tree.findtext(f"size/{side}")) for side in ("width", "height"))
    return (int(width), int(height)) if width >= 1 and height >= 1 else None


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan
