"""Folders of labeled data: fetched from their URI, and read in ImageNet's layout.

That layout is a folder of images by class, ``SPLIT/CLASS/*``. Shapes: H image height, W image
width.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipmill.config import digest_json
from clipmill.data.dataset import cache_folder
from clipmill.errors import SourceError
from clipmill.images import read_rgb
from clipmill.lineage import Parent
from clipmill.storage import read_bytes, unpack_dir


def fetch_folder(uri: str, role: str) -> tuple[Path, Parent]:
    """A local path of the folder at ``uri``, and what it is in a lineage.

    ``uri`` is a folder, or a ``.tar`` made by ``pack_dir``. A folder's digest covers its files'
    names and sizes; a tar's covers all bytes.
    """
    if uri.endswith(".tar"):
        digest = read_bytes(f"{uri}.sha256").decode().strip()
        return unpack_dir(uri, cache_folder()), Parent(role=role, uri=uri, digest=digest)
    folder = Path(uri).absolute()
    if not folder.is_dir():
        raise SourceError(
            f"{uri} is not a folder",
            expected="a folder on this machine, or the URI of a .tar",
            action="check the path",
        )
    listing = sorted(
        [str(p.relative_to(folder)), p.stat().st_size] for p in folder.rglob("*") if p.is_file()
    )
    return folder, Parent(role=role, uri=str(folder), digest=digest_json(listing))


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
