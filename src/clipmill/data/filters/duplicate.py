"""One sample of those with the same, or nearly the same, picture.

Of several the one with most pixels or the best score stays, and where these tie, the one whose
uid's digest is lowest: never the one that happened to come first.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from clipmill.data.duplicates import HASH_BITS, exact_duplicates, near_duplicates, ranks
from clipmill.data.filters.contract import (
    Block,
    CaptionOf,
    FilterConfig,
    Judge,
    caption_columns,
)
from clipmill.errors import ConfigError

Preference = Literal["pixels", "score"]


@dataclass(frozen=True, kw_only=True, slots=True)
class _DuplicateFilter(FilterConfig):
    prefer: Preference = "pixels"
    """What makes one of several better: more pixels, or a higher CLIP score."""
    captions: CaptionOf = "real"
    """Which caption's CLIP score is compared."""
    layer: str = "score/image"
    """The layer of image scores."""
    scores: str = "score/clip"
    """The layer of CLIP scores, if they are compared."""

    @property
    def needs(self) -> Mapping[str, tuple[str, ...]]:
        """The hash, and what is preferred."""
        if self.prefer == "pixels":
            return {self.layer: (self.hash_column, "width", "height")}
        return {self.layer: (self.hash_column,), self.scores: caption_columns(self.captions)}

    @property
    def hash_column(self) -> str:
        """The column whose values are compared."""
        raise NotImplementedError

    def start(self, num_rows: int) -> Judge:
        """Takes a pass to collect the hashes; 32 to 40 bytes a row stay in memory until then."""
        return _Judge(self, num_rows)

    def find(self, hashes: NDArray[np.generic], rank: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which are duplicates."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True, slots=True)
class ExactDuplicateFilter(_DuplicateFilter):
    """Keeps one of the samples whose image files have the same bytes."""

    @property
    def hash_column(self) -> str:
        """The leading bytes of the file's SHA-256."""
        return "content_hash"

    def find(self, hashes: NDArray[np.generic], rank: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Those whose file is that of a better one."""
        return exact_duplicates(hashes, rank)


@dataclass(frozen=True, kw_only=True, slots=True)
class NearDuplicateFilter(_DuplicateFilter):
    """Keeps one of the samples whose pictures have nearly the same perceptual hash."""

    distance: int = 4
    """Most bits, of 64, in which hashes of near-duplicates differ."""

    def __post_init__(self) -> None:
        """Refuse a distance at which all pictures would be alike (ConfigError)."""
        if not 0 <= self.distance <= HASH_BITS // 8:
            raise ConfigError(
                f"distance was {self.distance}",
                expected=f"0 to {HASH_BITS // 8}",
                action="give distance such a value",
            )

    @property
    def hash_column(self) -> str:
        """The perceptual hash."""
        return "perceptual_hash"

    def find(self, hashes: NDArray[np.generic], rank: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Those that are near to a better one."""
        return near_duplicates(hashes.astype(np.uint64), rank, self.distance)


class _Judge(Judge):
    num_passes = 1

    def __init__(self, config: _DuplicateFilter, num_rows: int) -> None:
        self._config = config
        self._is_duplicate = np.zeros(num_rows, bool)
        self._parts: list[tuple[NDArray[np.generic], ...]] = []

    def see(self, block: Block, alive: NDArray[np.bool_]) -> None:
        column = block.column(self._config.layer, self._config.hash_column)
        rows = np.flatnonzero(alive & column.is_valid().to_numpy(zero_copy_only=False))
        hashes = column.take(rows).to_numpy(zero_copy_only=False)
        if hashes.dtype == object:  # of fixed-size bytes
            hashes = np.array(hashes.tolist(), dtype=f"V{column.type.byte_width}")
        uids = block.read_uids()
        ties = np.array([_tie(uids[row]) for row in rows], np.uint64)
        self._parts.append((hashes, self._preference(block)[rows], ties, rows + block.start))

    def end_pass(self) -> None:
        if self._parts:
            hashes, preference, ties, rows = map(np.concatenate, zip(*self._parts, strict=True))
            self._parts = []
            found = self._config.find(hashes, ranks(preference, ties))
            self._is_duplicate[rows[found]] = True

    def judge(self, block: Block) -> NDArray[np.bool_]:
        return ~self._is_duplicate[block.rows]

    def _preference(self, block: Block) -> NDArray[np.float64]:
        config = self._config
        if config.prefer == "pixels":
            found = block.numbers(config.layer, "width") * block.numbers(config.layer, "height")
        else:
            found = block.caption_numbers(config.scores, config.captions)
        return np.nan_to_num(found, nan=-np.inf)


def _tie(uid: str) -> int:
    return int.from_bytes(hashlib.sha256(f"tie:{uid}".encode()).digest()[:8], "big")
