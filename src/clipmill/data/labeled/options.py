"""Options of labeled data: a JSON file ``TASK.json`` in the data's folder, and lists of classes.

The file describes the data, so it travels with them: checks, training and evaluation read the same
options. Without it, layouts are recognized by their folders.
"""

import csv
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from clipmill.config import Config, ConfigT
from clipmill.errors import SourceError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
"""Of the files that are read as images, in lower case."""
CLASS_FILES = (
    "objectInfo150.txt",
    "classes.txt",
    "classes.json",
    "classes.csv",
    "class_dict.csv",
    "labelmap.txt",
    "labels.txt",
)
"""Names under which a list of classes is recognized; the first that exists is read."""

_SPLITS = (("train", "training"), ("val", "validation", "valid"), ("test", "testing"))
_NAME_COLUMNS = ("name", "class", "label", "class_name", "category")
_ID_COLUMNS = ("id", "value", "index", "class_id")
_RGB = 3

Exif = Literal["apply", "ignore"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentationOptions(Config):
    """Layout and numbering of masks: ``segmentation.json``."""

    layout: Literal["auto", "ade20k", "folders", "mmseg", "voc", "cityscapes"] = "auto"
    """Layout of the folders; ``auto`` recognizes it."""
    images: str = ""
    """Folder of the images, with ``{split}`` where the split's name stands; empty for the
    layout's."""
    masks: str = ""
    """Folder of the masks, likewise."""
    image_suffix: str = ""
    """End of the images' names that their masks' lack, such as ``_leftImg8bit.png``; empty for any
    JPEG, PNG or WebP."""
    mask_suffix: str = ""
    """End of the masks' names in its place, such as ``_mask.png``; empty for PNG, TIFF or BMP."""
    splits: dict[str, str] = field(default_factory=dict)
    """Names of the splits ``train``, ``val`` and ``test`` in folders and lists."""
    val_fraction: float = 0.0
    """Share of the images that become ``val``, by a hash of their names, where neither folders nor
    lists have splits."""
    classes: str | tuple[str, ...] = ""
    """File with the list of classes, or their names; empty for the layout's."""
    first_class: int | None = None
    """Value of the first class where the list has no ids: 1 in ADE20K's layout, else 0."""
    ignored: tuple[int, ...] | None = None
    """Values that are neither trained nor evaluated: 0 and 255 in ADE20K's layout, else 255."""
    colors: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    """Red, green and blue of each class, for RGB masks and palettes; a list of classes may have
    them too. Colors of no class are ignored if listed in ``ignored_colors``."""
    ignored_colors: tuple[tuple[int, int, int], ...] = ()
    """Colors that are neither trained nor evaluated."""
    exif: Exif = "apply"
    """``apply`` if masks were drawn on upright images, ``ignore`` if on the stored pixels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DetectionOptions(Config):
    """Layout of boxes and masks of objects: ``detection.json``."""

    layout: Literal["auto", "coco", "voc", "yolo"] = "auto"
    """Layout of the folders; ``auto`` recognizes it."""
    images: str = ""
    """Folder of the images, with ``{split}`` where the split's name stands; empty for the
    layout's."""
    annotations: str = ""
    """COCO's JSON file, or the folder of VOC's XML or YOLO's text files, likewise."""
    splits: dict[str, str] = field(default_factory=dict)
    """Names of the splits ``train``, ``val`` and ``test`` in folders and lists."""
    classes: str | tuple[str, ...] = ""
    """File with the list of classes, or their names; empty for those of the training split."""
    first_pixel: int = 1
    """Coordinate of the first pixel in VOC's XML: 1 as VOC has it, 0 for tools that count from 0.
    Objects marked difficult are crowds: neither trained nor counted as false alarms."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DepthOptions(Config):
    """Layout and scale of depth maps: ``depth.json``."""

    layout: Literal["auto", "nyu", "folders"] = "auto"
    """Lists of pairs (``nyu``), or folders; ``auto`` recognizes it."""
    images: str = ""
    """Folder of the images, with ``{split}`` where the split's name stands; empty for the
    layout's."""
    depth: str = ""
    """Folder of the depth maps, likewise."""
    image_suffix: str = ""
    """End of the images' names that their depth maps' lack; empty for any JPEG, PNG or WebP."""
    depth_suffix: str = ""
    """End of the depth maps' names in its place; empty for PNG, TIFF or NPY."""
    splits: dict[str, str] = field(default_factory=dict)
    """Names of the splits ``train`` and ``test`` in folders and lists."""
    values_per_meter: float | None = None
    """Stored values in a meter: 1000 for integers and 1 for floats by default, 256 for KITTI, 5000
    for TUM, 100 for centimeters."""
    invalid: tuple[float, ...] = (0.0,)
    """Stored values that stand for unknown depth; negative, infinite and NaN ones always do."""
    check_unit: bool = True
    """Refuse maps whose medians (outside 0.3 to 20 m) or ranges no room has, where
    ``values_per_meter`` isn't set."""
    exif: Exif = "apply"
    """``apply`` if depth belongs to upright images, ``ignore`` if to the stored pixels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassificationOptions(Config):
    """List of images and classes: ``classification.json``."""

    layout: Literal["auto", "folders", "table"] = "auto"
    """Folders of classes, or a table of images; ``auto`` recognizes it."""
    table: str = ""
    """CSV or JSON lines with an image's path and class, ``{split}`` where the split's name stands;
    empty for ``{split}.csv``, ``{split}.jsonl`` or ``{split}/metadata.*``."""
    image_column: str = ""
    """Column of the path; empty for the usual names, such as ``file_name``."""
    label_column: str = ""
    """Column of the class; empty for the usual names, such as ``label``."""
    images: str = ""
    """Folder that the paths start from, with ``{split}``; empty for the table's own."""
    splits: dict[str, str] = field(default_factory=dict)
    """Names of the splits ``train``, ``val`` and ``test`` in folders and tables."""
    classes: str | tuple[str, ...] = ""
    """File with the list of classes, or their names; empty for those of the training split. A
    table's whole numbers are places in the list."""


class MissingSplitError(SourceError):
    """A split that a folder doesn't have."""


def read_options(folder: Path, task: str, kind: type[ConfigT]) -> ConfigT:
    """Return the options in ``TASK.json`` of a folder; the defaults where there is none.

    Raises:
        ConfigError: a field is unknown, or of another type.
        SourceError: the file isn't JSON.
    """
    path = folder / f"{task}.json"
    if not path.is_file():
        return kind()
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise SourceError(
            f"{path} can't be read: {error}",
            expected=f"JSON with options of {task}'s labels",
            action="correct the file, or remove it for the defaults",
        ) from error
    return kind.from_json(value, path.name)


def split_names(split: str, splits: Mapping[str, str]) -> tuple[str, ...]:
    """Return the names under which a split is looked for: the options', or the usual ones."""
    for names in _SPLITS:
        if split in names:
            if names[0] in splits:
                return (splits[names[0]],)
            return (split, *(name for name in names if name != split))
    return (splits.get(split, split),)


def is_hidden(path: Path) -> bool:
    """Return whether systems and tools leave such files about: dot files, thumbnails, caches."""
    return any(
        part.startswith((".", "__MACOSX")) or part in {"Thumbs.db", "desktop.ini"}
        for part in path.parts
    )


def list_files(root: Path) -> list[Path]:
    """Return the files below a folder, sorted, without hidden ones."""
    return sorted(
        path for path in root.rglob("*") if path.is_file() and not is_hidden(path.relative_to(root))
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassEntry:
    """A class of a list."""

    name: str
    id: int | None = None
    """Value in masks, or number in annotations; None where the list has none."""
    color: tuple[int, int, int] | None = None
    """Red, green and blue, 0 to 255."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassList:
    """Classes in their order."""

    entries: tuple[ClassEntry, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names in their order."""
        return tuple(entry.name for entry in self.entries)

    @classmethod
    def read(cls, folder: Path, given: str | Sequence[str]) -> Self | None:
        """Return a folder's list: ``given`` names, a file's, or one of :data:`CLASS_FILES`.

        Returns None where nothing is given and there is no such file.

        Raises:
            SourceError: the file is missing, holds no class, or can't be read.
        """
        if given and not isinstance(given, str):
            return cls(entries=tuple(ClassEntry(name=name) for name in given))
        names = [given] if isinstance(given, str) and given else CLASS_FILES
        path = next((folder / name for name in names if (folder / name).is_file()), None)
        if path is None and given:
            raise SourceError(
                f"{folder / str(given)} is missing",
                expected="the list of classes that the options name",
                action="restore the file, or correct the option classes",
            )
        return None if path is None else cls(entries=_read_class_file(path))


def renumber(own: Sequence[str], given: Sequence[str], where: object) -> list[int]:
    """Return the number in ``given`` of each class of ``own``, by name.

    Equal lists keep their numbers, repeated names included.

    Raises:
        SourceError: a name isn't in ``given``, or stands there more than once.
    """
    if tuple(own) == tuple(given):
        return list(range(len(own)))
    for number, name in enumerate(own):
        if given.count(name) == 1:
            continue
        is_unknown = name not in given
        raise SourceError(
            f"{where} has the class {name!r} ({number}), which the model's list of "
            f"{len(given)} classes has {'not' if is_unknown else 'more than once'}",
            expected=f"classes among {_few(given)}",
            action="correct the class's name, or train on data with this class"
            if is_unknown
            else "give the classes different names",
        )
    return [given.index(name) for name in own]


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:10])
    return f"{shown} and {len(names) - 10} more" if len(names) > 10 else shown


def _read_class_file(path: Path) -> tuple[ClassEntry, ...]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.name == "objectInfo150.txt" or path.suffix == ".tsv":
            entries = _ade20k_entries(text)
        elif path.suffix == ".json":
            entries = _json_entries(json.loads(text))
        elif path.suffix == ".csv":
            entries = _csv_entries(text)
        elif path.name == "labelmap.txt":
            entries = _labelmap_entries(text)
        else:
            names = [line.strip() for line in text.splitlines()]
            entries = [ClassEntry(name=name) for name in names if name]
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise SourceError(
            f"{path} can't be read: {type(error).__name__} {error}",
            expected="a list of classes: text with a name a line, JSON, or CSV with a header that "
            "has a column `name`, and perhaps `id`, `r`, `g` and `b`",
            action="correct the file",
        ) from error
    ids = [entry.id for entry in entries if entry.id is not None]
    if not entries or len(set(ids)) < len(ids) or len(ids) not in {0, len(entries)}:
        raise SourceError(
            f"{path} lists {len(entries)} classes with {len(set(ids))} different ids",
            expected="at least one class, and an id of its own for each or for none",
            action="correct the file",
        )
    return tuple(entries)


def _ade20k_entries(text: str) -> list[ClassEntry]:
    rows = [line.split("\t") for line in text.splitlines()[1:] if line.strip()]
    return [ClassEntry(name=row[-1].split(",")[0].strip()) for row in rows]


def _json_entries(value: Any) -> list[ClassEntry]:
    if isinstance(value, dict) and isinstance(value.get("categories"), list):
        value = value["categories"]
    if isinstance(value, dict):
        if all(re.fullmatch(r"-?\d+", str(key)) for key in value):  # id: name
            pairs = sorted((int(key), str(name)) for key, name in value.items())
        else:  # name: id
            pairs = sorted((int(number), str(name)) for name, number in value.items())
        return [ClassEntry(name=name, id=number) for number, name in pairs]
    return [
        ClassEntry(
            name=str(item["name"]),
            id=None if item.get("id") is None else int(item["id"]),
            color=_color(item["color"]) if item.get("color") else None,
        )
        if isinstance(item, dict)
        else ClassEntry(name=str(item))
        for item in value
    ]


def _csv_entries(text: str) -> list[ClassEntry]:
    rows = [row for row in csv.reader(text.splitlines(), skipinitialspace=True) if any(row)]
    header = [cell.strip().lower() for cell in rows[0]]
    name_column = next((c for c in _NAME_COLUMNS if c in header), None)
    if name_column is None:
        if len(header) > 1:
            raise KeyError("name")
        return [ClassEntry(name=row[0].strip()) for row in rows]
    id_column = next((c for c in _ID_COLUMNS if c in header), None)
    entries = []
    for row in rows[1:]:
        cells = dict(zip(header, (cell.strip() for cell in row), strict=False))
        has_color = all(cells.get(channel) for channel in "rgb")
        entries.append(
            ClassEntry(
                name=cells[name_column],
                id=int(cells[id_column]) if id_column else None,
                color=_color([cells[channel] for channel in "rgb"]) if has_color else None,
            )
        )
    return entries


def _labelmap_entries(text: str) -> list[ClassEntry]:
    """CVAT's form: ``name:r,g,b:parts:actions``."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    parts = [line.split(":") for line in lines]
    return [
        ClassEntry(name=part[0].strip(), color=_color(part[1].split(",")) if part[1] else None)
        for part in parts
    ]


def _color(values: Iterable[Any]) -> tuple[int, int, int]:
    if isinstance(values, str):  # "#80ff00"
        values = bytes.fromhex(values.lstrip("#"))
    channels = [int(value) for value in values]
    if len(channels) != _RGB or not all(0 <= channel <= 255 for channel in channels):
        raise ValueError(f"{channels} is no color")
    red, green, blue = channels
    return red, green, blue
