"""Measures of the picture alone: size, aspect, and the two hashes that find duplicates."""

import hashlib
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from clipmill.config import Config
from clipmill.data.scoring.contract import Rows
from clipmill.data.scoring.perceptual_hash import perceptual_hashes, small_grey
from clipmill.storage import Parent

CONTENT_BYTES = 16
"""Bytes kept of the SHA-256 of an image file; among 10^10 files two agree by chance once in 10^18
such sets."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageScoreConfig(Config):
    """Measures of the picture; there is nothing to choose."""


class ImageScorer:
    """Columns ``width``, ``height`` (pixels, upright), ``aspect`` (longer side by shorter),
    ``perceptual_hash`` (uint64) and ``content_hash`` (leading bytes of the file's SHA-256).

    All but the last are null where the picture doesn't decode.
    """  # noqa: D205  # a list of columns has no shorter form

    wants_images = True
    parents: tuple[Parent, ...] = ()

    def __init__(self, config: ImageScoreConfig) -> None:
        del config
        self.detail = {"measures": "size, aspect, perceptual hash, content hash"}

    def score(self, rows: Rows) -> dict[str, pa.Array]:
        """The columns above."""
        assert rows.images is not None
        assert rows.data is not None
        sizes = [image.size if image else (0, 0) for image in rows.images]
        width, height = np.array(sizes, np.int32).reshape(-1, 2).T
        lacks = width == 0
        with np.errstate(invalid="ignore"):
            aspect = (np.maximum(width, height) / np.minimum(width, height)).astype(np.float32)
        hashes = np.zeros(len(sizes), np.uint64)
        small = [small_grey(image) for image in rows.images if image]
        if small:
            hashes[~lacks] = perceptual_hashes(small)
        content = [hashlib.sha256(data).digest()[:CONTENT_BYTES] for data in rows.data]
        return {
            "width": pa.array(width, mask=lacks),
            "height": pa.array(height, mask=lacks),
            "aspect": pa.array(aspect, mask=lacks),
            "perceptual_hash": pa.array(hashes, mask=lacks),
            "content_hash": pa.array(content, pa.binary(CONTENT_BYTES)),
        }
