"""Folders of images with dense labels: ADE20K's layout and NYUv2's.

Shapes: H image height, W image width.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipmill.data.images import decode_rgb
from clipmill.errors import SourceError

IGNORED = 255
_MILLIMETRES = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelledFolder:
    """Paths of images and of their labels, in order."""

    images: tuple[Path, ...]
    labels: tuple[Path, ...]

    def image_HW3(self, index: int) -> NDArray[Any]:
        """RGB, uint8."""
        return np.asarray(decode_rgb(self.images[index].read_bytes()))

    def __len__(self) -> int:
        return len(self.images)


class Ade20kFolder(LabelledFolder):
    """``images/SPLIT/*.jpg`` beside ``annotations/SPLIT/*.png``: 0 unlabelled, k is class k - 1."""

    __slots__ = ()

    @classmethod
    def open(cls, folder: Path, split: str) -> "Ade20kFolder":
        """The pairs of a split (``training`` or ``validation``), or a SourceError."""
        images = sorted((folder / "images" / split).glob("*.jpg"))
        labels = [folder / "annotations" / split / f"{p.stem}.png" for p in images]
        return cls(**_checked(folder, f"images/{split}/*.jpg", images, labels))

    def classes_HW(self, index: int) -> NDArray[Any]:
        """Class ids from 0, uint8; ``IGNORED`` where the annotation says 0."""
        with Image.open(self.labels[index]) as image:
            # 0 wraps to 255, as mmseg's reduce_zero_label has it.
            return np.asarray(image, dtype=np.uint8) - np.uint8(1)


class NyuFolder(LabelledFolder):
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
        pairs = [line.split()[:2] for line in lines if line.strip()]
        root = folder if split == "train" else folder / "official_splits" / "test"
        images = [root / image.lstrip("/") for image, _ in pairs]
        labels = [root / depth.lstrip("/") for _, depth in pairs]
        return cls(**_checked(folder, listed.name, images, labels))

    def depth_HW(self, index: int) -> NDArray[Any]:
        """Depth in metres, float32; 0 where it isn't known."""
        with Image.open(self.labels[index]) as image:
            return np.asarray(image).astype(np.float32) / _MILLIMETRES


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
