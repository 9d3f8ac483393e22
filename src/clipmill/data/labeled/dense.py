"""Folders of images with dense labels: ADE20K's layout and NYUv2's.

Shapes: H image height, W image width.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipmill.errors import SourceError
from clipmill.images import read_rgb

IGNORED = 255
_MILLIMETRES = 1000
# Medians that no image of a room has: depth in metres or centimetres is nearer, in tenths of
# millimetres farther.
_NEAREST_METRES, _FARTHEST_METRES = 0.3, 20.0


@dataclass(frozen=True, kw_only=True, slots=True)
class LabeledFolder:
    """Paths of images and of their labels, in order."""

    images: tuple[Path, ...]
    labels: tuple[Path, ...]

    def image_HW3(self, index: int) -> NDArray[Any]:
        """RGB, uint8; SourceError if it can't be decoded."""
        return np.asarray(read_rgb(self.images[index]))

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True, kw_only=True, slots=True)
class Ade20kFolder(LabeledFolder):
    """``images/SPLIT/*.jpg`` beside ``annotations/SPLIT/*.png``: 0 unlabelled, k is class k - 1."""

    num_classes: int
    """Classes in the folder's list; an annotation's value is at most this."""

    @classmethod
    def open(cls, folder: Path, split: str) -> "Ade20kFolder":
        """The pairs of a split (``training`` or ``validation``), or a SourceError."""
        images = sorted((folder / "images" / split).glob("*.jpg"))
        labels = [folder / "annotations" / split / f"{p.stem}.png" for p in images]
        checked = _checked(folder, f"images/{split}/*.jpg", images, labels)
        return cls(**checked, num_classes=len(ade20k_classes(folder)))

    def classes_HW(self, index: int) -> NDArray[Any]:
        """Class ids from 0, uint8; ``IGNORED`` where the annotation says 0.

        Raises:
            SourceError: the file isn't a map of ids, or has one outside of the folder's list.
        """
        path = self.labels[index]
        values_HW = _pixels(path)
        if values_HW.ndim != 2 or values_HW.dtype != np.uint8:
            raise SourceError(
                f"{path} is no map of class ids: shape {values_HW.shape}, {values_HW.dtype}",
                expected="a PNG of one channel of 8 bits, grey or with a palette",
                action="convert it; an image of colours has to be mapped to ids",
            )
        if values_HW.max(initial=0) > self.num_classes:
            raise SourceError(
                f"{path} has the value {values_HW.max()}",
                expected=f"0 (unlabelled) to {self.num_classes}, the number of classes listed in "
                "objectInfo150.txt",
                action="mend the annotation, or list all of its classes",
            )
        # 0 wraps to 255, as mmseg's reduce_zero_label has it.
        return values_HW - np.uint8(1)


class NyuFolder(LabeledFolder):
    """``SPLIT_list.txt`` with lines of ``image depth ...``; depth PNGs in millimetres.

    Files of the ``train`` list lie below the folder, those of ``test`` below
    ``official_splits/test``, as MIM-Depth-Estimation has them.
    """

    __slots__ = ()

    @classmethod
    def open(cls, folder: Path, split: str) -> "NyuFolder":
        """The pairs of a split (``train`` or ``test``), or a SourceError."""
        listed = folder / f"{split}_list.txt"
        lines = listed.read_text().splitlines() if listed.exists() else []
        pairs = [line.split() for line in lines if line.strip()]
        for number, pair in enumerate(pairs, start=1):
            if len(pair) < 2:
                raise SourceError(
                    f"{listed} names no depth in entry {number}: {pair[0]!r}",
                    expected="lines of `image depth`, and perhaps a focal length",
                    action="mend the list",
                )
        root = folder if split == "train" else folder / "official_splits" / "test"
        # BTS's list has a few train images without depth, marked None.
        known = [pair for pair in pairs if pair[1] != "None"]
        images = [root / pair[0].lstrip("/") for pair in known]
        labels = [root / pair[1].lstrip("/") for pair in known]
        return cls(**_checked(folder, listed.name, images, labels))

    def depth_HW(self, index: int) -> NDArray[Any]:
        """Depth in metres, float32; 0 where it isn't known.

        Raises:
            SourceError: the file isn't a map of integers, or its values can't be millimetres.
        """
        path = self.labels[index]
        values_HW = _pixels(path)
        if values_HW.ndim != 2 or values_HW.dtype.kind not in "iu":
            raise SourceError(
                f"{path} is no depth map: shape {values_HW.shape}, {values_HW.dtype}",
                expected="a PNG of one channel of 16 bits, in millimetres",
                action="convert it",
            )
        depth_HW = values_HW.astype(np.float32) / _MILLIMETRES
        known = depth_HW[depth_HW > 0]
        if known.size:
            median = float(np.median(known))
            if not _NEAREST_METRES <= median <= _FARTHEST_METRES:
                raise SourceError(
                    f"{path} has a median depth of {median:.3g} m, if its unit is the millimetre",
                    expected=f"millimetres: a median of {_NEAREST_METRES} to {_FARTHEST_METRES} m",
                    action="write depth in millimetres, as 16-bit PNG",
                )
        return depth_HW


def ade20k_classes(folder: Path) -> tuple[str, ...]:
    """Class names in the order of their ids, from ``objectInfo150.txt``."""
    path = folder / "objectInfo150.txt"
    if not path.exists():
        raise SourceError(
            f"{path} is missing",
            expected="ADE20K's list of classes: a header, then a tab-separated line a class",
            action="take it from the ADE20K download, or write one for your classes",
        )
    rows = [line.split("\t") for line in path.read_text().splitlines()[1:] if line.strip()]
    return tuple(row[-1].split(",")[0].strip() for row in rows)


def _pixels(path: Path) -> NDArray[Any]:
    """The values of a PNG; a palette's are its indices."""
    try:
        with Image.open(path) as image:
            return np.asarray(image)
    except (OSError, ValueError, SyntaxError) as error:
        raise SourceError(
            f"{path} can't be decoded: {error}",
            expected="a whole PNG",
            action="restore the file, or take it and its image out",
        ) from error


def _checked(
    folder: Path, looked_for: str, images: list[Path], labels: list[Path]
) -> dict[str, tuple[Path, ...]]:
    if not images:
        raise SourceError(
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
