"""Folders of images by class: ImageNet's layout, ``SPLIT/CLASS/*``.

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

_SUFFIXES = {".jpg", ".jpeg", ".png"}


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageFolder:
    """Paths of images with the numbers of their classes, in order."""

    images: tuple[Path, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    """Names of the classes, sorted."""

    def __len__(self) -> int:
        return len(self.images)

    def image(self, index: int) -> Image.Image:
        """Return image ``index``, RGB; SourceError if it can't be decoded."""
        return read_rgb(self.images[index])

    def image_HW3(self, index: int) -> NDArray[Any]:
        """The same as an array, uint8."""
        return np.asarray(self.image(index))

    @classmethod
    def open(cls, folder: Path, split: str) -> "ImageFolder":
        """The images of a split, such as ``train``; SourceError if there are none."""
        root = folder / split
        names = sorted(p.name for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
        samples = [
            (path, label)
            for label, name in enumerate(names)
            for path in sorted((root / name).iterdir())
            if path.suffix.lower() in _SUFFIXES
        ]
        if not samples:
            raise SourceError(
                f"{folder} has no {split}/CLASS/*.jpg",
                expected="a folder of images for each class, below the split's folder",
                action="check the folder and the split's name",
            )
        images, labels = zip(*samples, strict=True)
        return cls(images=images, labels=labels, classes=tuple(names))
