"""Folders of images with dense labels: masks of classes in five layouts, and depth maps.

Shapes: H image height, W image width.
"""

import csv
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipmill.data.labeled.options import (
    IMAGE_SUFFIXES,
    ClassEntry,
    ClassList,
    DepthOptions,
    MissingSplitError,
    SegmentationOptions,
    list_files,
    read_options,
    renumber,
    split_names,
)
from clipmill.errors import SourceError
from clipmill.images import exif_orientation, read_rgb, upright

IGNORED = 255
MAX_CLASSES: Final = 255
"""Class ids are 0 to 254, since 255 is ignored."""
_NUM_VALUES = 1 << 16
_UNKNOWN = -1
_MASK_SUFFIXES = (".png", ".tif", ".tiff", ".bmp")
_DEPTH_SUFFIXES = (".png", ".tif", ".tiff", ".npy")
# Medians that no image of a room has: depth in meters or centimeters is nearer, in tenths of
# millimeters farther.
_NEAREST_METERS, _FARTHEST_METERS = 0.3, 20.0
_MAX_ASPECT_CHANGE = 0.02

# devkit_semantics/README of VOC2012, and cityscapesscripts.helpers.labels.
_VOC_CLASSES = (
    "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse "
    "motorbike person pottedplant sheep sofa train tvmonitor"
)
_CITYSCAPES_CLASSES = (
    ("road", 7), ("sidewalk", 8), ("building", 11), ("wall", 12), ("fence", 13), ("pole", 17),
    ("traffic light", 19), ("traffic sign", 20), ("vegetation", 21), ("terrain", 22), ("sky", 23),
    ("person", 24), ("rider", 25), ("car", 26), ("truck", 27), ("bus", 28), ("train", 31),
    ("motorcycle", 32), ("bicycle", 33),
)  # fmt: skip
_CITYSCAPES_VOID = (*range(7), 9, 10, 14, 15, 16, 18, 29, 30)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Layout:
    """Folders of a layout of segmentation, and the meaning of its values."""

    images: tuple[str, ...]
    """Folders of images, the first that exists, with ``{split}``."""
    masks: tuple[str, ...]
    """Folders of masks, likewise."""
    lists: tuple[str, ...] = ("{split}.txt", "splits/{split}.txt")
    """Lists of names, where the images' folder has no folder of the split."""
    image_suffix: str = ""
    mask_suffixes: tuple[str, ...] = _MASK_SUFFIXES
    first_class: int = 0
    ignored: tuple[int, ...] = (IGNORED,)
    classes: tuple[ClassEntry, ...] = ()


_LAYOUTS: Final = {
    "ade20k": _Layout(
        images=("images/{split}",),
        masks=("annotations/{split}",),
        first_class=1,
        ignored=(0, IGNORED),
    ),
    "folders": _Layout(
        images=("images/{split}", "images"),
        masks=tuple(
            f"{name}{below}"
            for name in ("masks", "annotations", "labels")
            for below in ("/{split}", "")
        ),
    ),
    "mmseg": _Layout(images=("img_dir/{split}",), masks=("ann_dir/{split}",)),
    "voc": _Layout(
        images=("JPEGImages",),
        masks=("SegmentationClass",),
        lists=("ImageSets/Segmentation/{split}.txt",),
        classes=tuple(ClassEntry(name=name) for name in _VOC_CLASSES.split()),
    ),
    "cityscapes": _Layout(
        images=("leftImg8bit/{split}",),
        masks=("gtFine/{split}",),
        image_suffix="_leftImg8bit.png",
        mask_suffixes=("_gtFine_labelTrainIds.png", "_gtFine_labelIds.png"),
        classes=tuple(ClassEntry(name=name, id=value) for name, value in _CITYSCAPES_CLASSES),
        ignored=(*_CITYSCAPES_VOID, IGNORED),
    ),
}


@dataclass(frozen=True, kw_only=True)
class LabeledFolder:
    """Paths of images and of their labels, in order."""

    images: tuple[Path, ...]
    labels: tuple[Path, ...]
    apply_exif: bool = True
    """True if labels belong to upright images, false if to the stored pixels."""
    passed_over: tuple[Path, ...] = ()
    """Files in the folders of images and labels that belong to no pair."""

    def image_HW3(self, index: int) -> NDArray[Any]:
        """RGB, uint8; SourceError if it can't be decoded."""
        return np.asarray(read_rgb(self.images[index], apply_exif=self.apply_exif))

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True, kw_only=True)
class SegmentationFolder(LabeledFolder):
    """Images with masks of classes, in the layout and with the values that the options say."""

    classes: tuple[str, ...]
    """Names of the classes by number."""
    values: tuple[tuple[int, int], ...]
    """Values of masks, or colors as red << 16 | green << 8 | blue, each with its class's number,
    or ``IGNORED``."""
    has_colors: bool = False
    """True if classes are told by their colors."""
    zero_is_ignored: bool = False
    """True if the value 0 is ignored, as in ADE20K's layout."""

    @classmethod
    def open(
        cls, folder: Path, split: str, classes: Sequence[str] | None = None
    ) -> "SegmentationFolder":
        """The pairs of a split (``train``, ``val`` or ``test``), numbered by ``classes``.

        Raises:
            SourceError: files are missing, or a class isn't among ``classes``.
        """
        options = read_options(folder, "segmentation", SegmentationOptions)
        layout = _layout(folder, options)
        images, labels, passed_over = _mask_pairs(folder, split, options, layout)
        pairs = _checked(folder, _looked_for(options, layout, split), images, labels)
        listed = _class_list(folder, options, layout)
        numbers = renumber(listed.names, listed.names if classes is None else classes, folder)
        table, has_colors, ignored = _value_table(folder, options, layout, listed, numbers, labels)
        return cls(
            **pairs,
            apply_exif=options.exif == "apply",
            passed_over=tuple(passed_over),
            classes=listed.names if classes is None else tuple(classes),
            values=tuple(table.items()),
            has_colors=has_colors,
            zero_is_ignored=0 in ignored and not has_colors,
        )

    def classes_HW(self, index: int) -> NDArray[Any]:
        """Class ids from 0, uint8; ``IGNORED`` where a value is.

        Raises:
            SourceError: the file isn't a map of ids, or has a value of no class.
        """
        path = self.labels[index]
        values_HW = self._colors_HW(path) if self.has_colors else _ids_HW(path)
        classes_HW = self._classes_of(values_HW)
        unknown = classes_HW == _UNKNOWN
        if unknown.any():
            value = int(values_HW[unknown].max())
            shown = f"the color {_channels(value)}" if self.has_colors else f"the value {value}"
            raise SourceError(
                f"{path} has {shown}",
                expected=self._expected_values(),
                action="correct the annotation, list all of its classes, or add the value to the "
                f"option {'ignored_colors' if self.has_colors else 'ignored'} in segmentation.json",
            )
        return classes_HW.astype(np.uint8)

    def pair(self, index: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Image and class ids; SourceError if their sizes differ."""
        image_HW3, classes_HW = self.image_HW3(index), self.classes_HW(index)
        _check_same_size(self.images[index], image_HW3, self.labels[index], classes_HW)
        return image_HW3, classes_HW

    @cached_property
    def _table(self) -> NDArray[np.int16]:
        table = np.full(_NUM_VALUES, _UNKNOWN, np.int16)
        for value, number in self.values:
            table[value] = number
        return table

    def _classes_of(self, values_HW: NDArray[Any]) -> NDArray[np.int16]:
        if not self.has_colors:
            numbers_HW: NDArray[np.int16] = self._table[values_HW]
            return numbers_HW
        keys = np.array(sorted(self.values), np.int64)
        places = np.searchsorted(keys[:, 0], values_HW).clip(max=len(keys) - 1)
        return np.where(keys[places, 0] == values_HW, keys[places, 1], _UNKNOWN).astype(np.int16)

    def _colors_HW(self, path: Path) -> NDArray[np.int64]:
        pixels = _pixels(path, to_rgb=True).astype(np.int64)
        return (pixels[..., 0] << 16) | (pixels[..., 1] << 8) | pixels[..., 2]

    def _expected_values(self) -> str:
        number = len(self.classes)
        if self.has_colors:
            return f"the colors of the {number} classes, or an ignored one"
        known = sorted(value for value, to in self.values if to != IGNORED)
        ignored = sorted(value for value, to in self.values if to == IGNORED)
        if known == list(range(known[0], known[-1] + 1)):
            ranges = f"{known[0]} to {known[-1]}"
        else:
            ranges = ", ".join(map(str, known[:20]))
        shown = ", ".join(map(str, ignored[:20])) or "none"
        return f"{ranges}, the {number} classes listed (ignored: {shown})"


@dataclass(frozen=True, kw_only=True)
class DepthFolder(LabeledFolder):
    """Images with depth maps: listed in ``SPLIT_list.txt`` as NYUv2's, or in folders.

    Files of a ``train`` list lie below the folder, those of ``test`` below
    ``official_splits/test`` if it exists, as MIM-Depth-Estimation has them.
    """

    values_per_meter: float | None = None
    """Stored values in a meter; None for 1000 of integers and 1 of floats."""
    invalid: tuple[float, ...] = (0.0,)
    """Stored values of unknown depth."""
    check_unit: bool = True
    """True to refuse medians that no room has."""

    @classmethod
    def open(cls, folder: Path, split: str) -> "DepthFolder":
        """The pairs of a split (``train`` or ``test``), or a SourceError."""
        options = read_options(folder, "depth", DepthOptions)
        names = split_names(split, options.splits)
        if split in {"val", "test"} and not options.splits.get(split):
            names = (*names, *(name for name in ("test", "val", "validation") if name != split))
        passed_over: list[Path] = []
        listed = [
            folder / f"{name}{end}" for name in names for end in ("_list.txt", ".csv", ".txt")
        ]
        path = next((path for path in listed if path.is_file()), None)
        is_list = options.layout == "nyu" or (
            options.layout == "auto" and (path is not None or not (folder / "depth").is_dir())
        )
        if is_list and not options.depth:
            path = path or folder / f"{split}_list.txt"
            images, labels = _listed_depth(folder, path, split)
            looked_for = path.name
        else:
            images, labels, passed_over = _paired(
                folder,
                names,
                images=(options.images,) if options.images else ("images/{split}", "images"),
                labels=(options.depth,) if options.depth else ("depth/{split}", "depth"),
                lists=("{split}.txt",),
                image_suffix=options.image_suffix,
                label_suffixes=(options.depth_suffix,) if options.depth_suffix else _DEPTH_SUFFIXES,
            )
            looked_for = options.images or f"images/{split}"
        return cls(
            **_checked(folder, looked_for, images, labels),
            apply_exif=options.exif == "apply",
            passed_over=tuple(passed_over),
            values_per_meter=options.values_per_meter,
            invalid=options.invalid,
            check_unit=options.check_unit and options.values_per_meter is None,
        )

    def depth_HW(self, index: int) -> NDArray[Any]:
        """Depth in meters, float32; 0 where it isn't known.

        Raises:
            SourceError: the file isn't a depth map, or its values can't be in the unit.
        """
        return self.depth_map(index)[0]

    def depth_map(self, index: int) -> tuple[NDArray[Any], bool]:
        """The same, and whether millimeters were assumed for its whole numbers."""
        path = self.labels[index]
        values_HW = _depth_values(path)
        if values_HW.ndim != 2 or values_HW.dtype.kind not in "iuf":
            raise SourceError(
                f"{path} is no depth map: shape {values_HW.shape}, {values_HW.dtype}",
                expected="a PNG of one channel of 16 bits, a TIFF of one channel, or an NPY file",
                action="convert it",
            )
        is_float = values_HW.dtype.kind == "f"
        unit = self.values_per_meter or (1 if is_float else 1000)
        known = np.isfinite(values_HW) & (values_HW > 0)
        for value in self.invalid:
            known &= values_HW != value
        depth_HW = np.where(known, values_HW, 0).astype(np.float32) / np.float32(unit)
        if known.any() and self.check_unit:
            median = float(np.median(depth_HW[known]))
            if not _NEAREST_METERS <= median <= _FARTHEST_METERS:
                name = "meter" if is_float else "millimeter"
                raise SourceError(
                    f"{path} has a median depth of {median:.3g} m, if its unit is the {name}",
                    expected=f"{name}s: a median of {_NEAREST_METERS} to {_FARTHEST_METERS} m",
                    action="set the option values_per_meter in depth.json (256 for KITTI, 100 for "
                    "centimeters)",
                )
        return depth_HW, self.check_unit and not is_float

    def pair(self, index: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Image and depth at the image's size: depth of another resolution by nearest pixels.

        Raises:
            SourceError: their shapes differ in proportion too.
        """
        image_HW3, depth_HW = self.image_HW3(index), self.depth_HW(index)
        if depth_HW.shape == image_HW3.shape[:2]:
            return image_HW3, depth_HW
        (height, width), (rows, columns) = image_HW3.shape[:2], depth_HW.shape
        if abs(width * rows / (height * columns) - 1) > _MAX_ASPECT_CHANGE:
            _check_same_size(self.images[index], image_HW3, self.labels[index], depth_HW)
        resized = Image.fromarray(depth_HW).resize((width, height), Image.Resampling.NEAREST)
        return image_HW3, np.asarray(resized)


def segmentation_classes(folder: Path) -> tuple[str, ...]:
    """Class names of a folder's list, or of its layout, in the order of their ids."""
    options = read_options(folder, "segmentation", SegmentationOptions)
    return _class_list(folder, options, _layout(folder, options)).names


def _layout(folder: Path, options: SegmentationOptions) -> _Layout:
    if options.layout != "auto":
        return _LAYOUTS[options.layout]
    if (folder / "leftImg8bit").is_dir():
        return _LAYOUTS["cityscapes"]
    if (folder / "SegmentationClass").is_dir():
        return _LAYOUTS["voc"]
    if (folder / "img_dir").is_dir():
        return _LAYOUTS["mmseg"]
    is_ade20k = (folder / "objectInfo150.txt").is_file() and not (folder / "masks").is_dir()
    if is_ade20k or not ((folder / "images").is_dir() or options.images):
        return _LAYOUTS["ade20k"]
    return _LAYOUTS["folders"]


def _looked_for(options: SegmentationOptions, layout: _Layout, split: str) -> str:
    places = (options.images,) if options.images else layout.images
    end = options.image_suffix or layout.image_suffix or ".jpg"
    return " or ".join(f"{place.format(split=split)}/*{end}" for place in places)


def _class_list(folder: Path, options: SegmentationOptions, layout: _Layout) -> ClassList:
    listed = ClassList.read(folder, options.classes)
    if listed is None and layout.classes:
        listed = ClassList(entries=layout.classes)
    if listed is None and options.colors:
        listed = ClassList(entries=tuple(ClassEntry(name=name) for name in options.colors))
    if listed is None:
        raise SourceError(
            f"{folder / 'objectInfo150.txt'} is missing",
            expected="ADE20K's list of classes (a header, then a tab-separated line a class), or "
            "classes.txt with a name a line, classes.json or classes.csv",
            action="take it from the ADE20K download, or write one for your classes",
        )
    if len(listed.entries) > MAX_CLASSES:
        raise SourceError(
            f"{folder} lists {len(listed.entries)} classes",
            expected=f"at most {MAX_CLASSES}",
            action="take classes out of the list, or merge some",
        )
    return listed


def _value_table(
    folder: Path,
    options: SegmentationOptions,
    layout: _Layout,
    listed: ClassList,
    numbers: Sequence[int],
    labels: Sequence[Path],
) -> tuple[dict[int, int], bool, tuple[int, ...]]:
    """Return the number of each value or color, whether they are colors, and ignored values."""
    colors = {e.name: e.color for e in listed.entries if e.color is not None} | options.colors
    if colors and (options.colors or _is_rgb(labels)):
        missing = [name for name in listed.names if name not in colors]
        if missing:
            raise SourceError(
                f"{folder} has no color of the class {missing[0]!r}",
                expected="a color of each class",
                action="complete the list of classes, or the option colors in segmentation.json",
            )
        table = {_packed(color): IGNORED for color in options.ignored_colors}
        for name, number in zip(listed.names, numbers, strict=True):
            table[_packed(colors[name])] = number
        return table, True, ()
    entries = listed.entries
    first = layout.first_class if options.first_class is None else options.first_class
    ignored = layout.ignored if options.ignored is None else options.ignored
    if options.ignored is None and options.first_class is not None:
        ignored = (*(v for v in range(min(first, IGNORED))), IGNORED)
    has_ids = all(entry.id is not None for entry in entries)
    if has_ids and layout.image_suffix and _has_train_ids(labels):
        has_ids = False
    values = [entry.id if has_ids else first + place for place, entry in enumerate(entries)]
    table = {value: IGNORED for value in ignored if 0 <= value < _NUM_VALUES}
    for value, number in zip(values, numbers, strict=True):
        if value is not None and 0 <= value < _NUM_VALUES and value not in (options.ignored or ()):
            table[value] = number
    return table, False, tuple(value for value, to in table.items() if to == IGNORED)


def _has_train_ids(labels: Sequence[Path]) -> bool:
    return bool(labels) and labels[0].name.endswith("labelTrainIds.png")


def _is_rgb(labels: Sequence[Path]) -> bool:
    """Return whether the first mask is one of colors: RGB, or RGBA."""
    if not labels or not labels[0].is_file():
        return False
    try:
        with Image.open(labels[0]) as image:
            return image.mode in {"RGB", "RGBA"}
    except OSError:
        return False


def _packed(color: Sequence[int]) -> int:
    red, green, blue = color
    return red << 16 | green << 8 | blue


def _channels(value: int) -> tuple[int, int, int]:
    return value >> 16, value >> 8 & 255, value & 255


def _mask_pairs(
    folder: Path, split: str, options: SegmentationOptions, layout: _Layout
) -> tuple[list[Path], list[Path], list[Path]]:
    return _paired(
        folder,
        split_names(split, options.splits),
        images=(options.images,) if options.images else layout.images,
        labels=(options.masks,) if options.masks else layout.masks,
        lists=layout.lists,
        image_suffix=options.image_suffix or layout.image_suffix,
        label_suffixes=(options.mask_suffix,) if options.mask_suffix else layout.mask_suffixes,
        val_fraction=options.val_fraction,
    )


def _paired(
    folder: Path,
    names: Sequence[str],
    *,
    images: Sequence[str],
    labels: Sequence[str],
    lists: Sequence[str],
    image_suffix: str,
    label_suffixes: Sequence[str],
    val_fraction: float = 0.0,
) -> tuple[list[Path], list[Path], list[Path]]:
    """Return images, their labels by name, and the files of the same folders that have no partner.

    A split is a folder; a list of names; or a share of the names, by their hash.
    """
    places = [(place, name) for place in images for name in names]
    image_root, split = next(
        (
            (folder / place.format(split=name), name)
            for place, name in places
            if (folder / place.format(split=name)).is_dir()
        ),
        (None, names[0]),
    )
    if image_root is None:
        return [], [], []
    is_split_by_folder = any(
        "{split}" in place and folder / place.format(split=split) == image_root for place in images
    )
    label_root = next(
        (
            root
            for root in (folder / place.format(split=split) for place in labels)
            if root.is_dir()
        ),
        folder / labels[0].format(split=split),
    )
    keys, strangers = _keyed(image_root, (image_suffix,) if image_suffix else (), IMAGE_SUFFIXES)
    if not is_split_by_folder:
        keys = _of_split(folder, keys, names, lists, val_fraction)
    stored, foreign = _keyed(label_root, label_suffixes, ()) if label_root.is_dir() else ({}, [])
    # Cityscapes has other files in the folders of the masks that are read.
    others = [] if image_suffix else [*strangers, *foreign]
    if is_split_by_folder:
        others += [path for key, path in stored.items() if key not in keys]
    missing = label_suffixes[0]
    return (
        list(keys.values()),
        [stored.get(key, label_root / f"{key}{missing}") for key in keys],
        others,
    )


def _keyed(
    root: Path, ends: Sequence[str], suffixes: Iterable[str]
) -> tuple[dict[str, Path], list[Path]]:
    """Return files by their relative names without ``ends``, or a suffix, and the others.

    Of files that share a name, the one with the first of ``ends`` counts.
    """
    files = list_files(root)
    keyed: dict[str, Path] = {}
    others = []
    for end in ends or ("",):
        for path in files:
            name = path.relative_to(root).as_posix()
            if end and name.endswith(end):
                keyed.setdefault(name.removesuffix(end), path)
            elif not end and path.suffix.lower() in suffixes:
                key = name.removesuffix(path.suffix)
                if key in keyed:
                    raise SourceError(
                        f"{path} and {keyed[key]} have one name",
                        expected="one image for each label",
                        action="rename one of them, or take it out",
                    )
                keyed[key] = path
    used = set(keyed.values())
    others = [path for path in files if path not in used]
    return dict(sorted(keyed.items())), others


def _of_split(
    folder: Path,
    keys: dict[str, Path],
    names: Sequence[str],
    lists: Sequence[str],
    val_fraction: float,
) -> dict[str, Path]:
    files = [folder / place.format(split=name) for place in lists for name in names]
    listed = next((path for path in files if path.is_file()), None)
    if listed is not None:
        entries = [line.strip() for line in listed.read_text().splitlines() if line.strip()]
        chosen = {}
        for entry in entries:
            key = entry if entry in keys else Path(entry).with_suffix("").as_posix()
            if key not in keys:
                raise SourceError(
                    f"{listed} names {entry!r}, and there is no such image",
                    expected="names of images, with or without their suffixes",
                    action="restore the image, or take it out of the list",
                )
            chosen[key] = keys[key]
        return chosen
    if not val_fraction:
        raise MissingSplitError(
            f"{folder} has its images in one folder, and no list of {names[0]}",
            expected=f"a folder {names[0]}/ of images, or {names[0]}.txt with a name a line",
            action="write the lists, or set the option val_fraction to such as 0.1",
        )
    is_val = "val" in names
    share = {key: _hash_share(key) < val_fraction for key in keys}
    return {key: path for key, path in keys.items() if share[key] == is_val}


def _hash_share(name: str) -> float:
    """Return a number in 0..1 that depends on the name alone."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64


def _listed_depth(folder: Path, listed: Path, split: str) -> tuple[list[Path], list[Path]]:
    rows: list[list[str]] = []
    if listed.is_file():
        text = listed.read_text(encoding="utf-8-sig")
        if listed.suffix == ".csv":
            rows = [row for row in csv.reader(text.splitlines(), skipinitialspace=True) if row]
            if rows and rows[0][0].strip().lower() in {"image", "rgb", "file_name"}:
                rows = rows[1:]
        else:
            rows = [line.split() for line in text.splitlines() if line.strip()]
    for number, row in enumerate(rows, start=1):
        if len(row) < 2:
            raise SourceError(
                f"{listed} names no depth in entry {number}: {row[0]!r}",
                expected="lines of `image depth`, and perhaps a focal length",
                action="correct the list",
            )
    official = folder / "official_splits" / "test"
    root = official if split != "train" and official.is_dir() else folder
    # BTS's list has a few train images without depth, marked None.
    known = [row for row in rows if row[1].strip() != "None"]
    images, labels = ([root / row[i].strip().lstrip("/") for row in known] for i in (0, 1))
    return images, labels


def _depth_values(path: Path) -> NDArray[Any]:
    if path.suffix.lower() != ".npy":
        return _pixels(path)
    try:
        values: NDArray[Any] = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise SourceError(
            f"{path} can't be decoded: {error}",
            expected="an array that numpy.save wrote",
            action="restore the file, or take it and its image out",
        ) from error
    # (H, W, 1) and (1, H, W) are usual too.
    return (
        values.reshape([side for side in values.shape if side != 1]) if values.ndim > 2 else values
    )


def _ids_HW(path: Path) -> NDArray[np.uint16]:
    values_HW = _pixels(path)
    if values_HW.ndim != 2 or values_HW.dtype.kind not in "biu":
        raise SourceError(
            f"{path} is no map of class ids: shape {values_HW.shape}, {values_HW.dtype}",
            expected="one channel of whole numbers, gray or with a palette; or RGB, and a color "
            "for each class",
            action="convert it, or give the classes' colors in the list of classes or in "
            "segmentation.json",
        )
    if values_HW.min(initial=0) < 0 or values_HW.max(initial=0) >= _NUM_VALUES:
        raise SourceError(
            f"{path} has values of {values_HW.min()} to {values_HW.max()}",
            expected=f"0 to {_NUM_VALUES - 1}",
            action="correct the annotation",
        )
    return values_HW.astype(np.uint16)


def _pixels(path: Path, *, to_rgb: bool = False) -> NDArray[Any]:
    """The values of an image file, upright; a palette's are its indices, or its colors."""
    try:
        with Image.open(path) as image:
            turned = upright(image) if exif_orientation(image) > 1 else image
            return np.asarray(turned.convert("RGB") if to_rgb else turned)
    except (OSError, ValueError, SyntaxError) as error:
        raise SourceError(
            f"{path} can't be decoded: {error}",
            expected="a whole PNG",
            action="restore the file, or take it and its image out",
        ) from error


def _check_same_size(
    image: Path, image_HW3: NDArray[Any], label: Path, label_HW: NDArray[Any]
) -> None:
    if image_HW3.shape[:2] == label_HW.shape:
        return
    height, width = image_HW3.shape[:2]
    is_turned = label_HW.shape == (width, height)
    raise SourceError(
        f"{label} is {label_HW.shape[1]} x {label_HW.shape[0]} pixels, and {image} is "
        f"{width} x {height}",
        expected="a label of the image's size",
        action='set the option exif to "ignore", if labels belong to the pixels as stored'
        if is_turned
        else "restore the label that was drawn on this image, or take both out",
    )


def _checked(
    folder: Path, looked_for: str, images: list[Path], labels: list[Path]
) -> dict[str, tuple[Path, ...]]:
    if not images:
        raise MissingSplitError(
            f"{folder} has no {looked_for}",
            expected="images with labels in that layout",
            action="check the folder and the split's name",
        )
    for path in [*images, *labels]:
        if not path.exists():
            raise SourceError(
                f"{path} is missing",
                expected="one label for each image",
                action="restore the file, or take its partner out",
            )
    return {"images": tuple(images), "labels": tuple(labels)}
