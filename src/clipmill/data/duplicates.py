"""Which of several equal, or nearly equal, samples stays: always the same one.

Ranks are distinct integers, lower is better: they decide, whatever the order of the rows.
"""

from collections.abc import Iterator
from itertools import combinations, pairwise
from math import comb, log2
import numpy as np
from numpy.typing import NDArray
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal
from clipmill.data.filters import (
    Block,
    CaptionOf,
    FilterConfig,
    Judge,
    caption_columns,
)
from clipmill.errors import ConfigError

HASH_BITS = 64


def ranks(preference: NDArray[np.float64], ties: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Rank of each row: a higher ``preference`` is better, then a lower ``ties``."""
    order = np.lexsort((ties, -preference))
    found = np.empty(len(order), np.int64)
    found[order] = np.arange(len(order))
    return found


def exact_duplicates(keys: NDArray[np.generic], rank: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which rows have the key of a row with a better rank."""
    is_duplicate = np.ones(len(keys), bool)
    is_duplicate[_best(keys, rank)] = False
    return is_duplicate


def near_duplicates(
    hashes: NDArray[np.uint64], rank: NDArray[np.int64], distance: int
) -> NDArray[np.bool_]:
    """Which rows lie within ``distance`` bits of a better one that stays itself.

    Taken from the best rank to the worst, a row stays unless one that stays is near it; so of a
    chain whose ends are far apart both ends may stay. All pairs are found, none by chance.
    """
    is_duplicate = exact_duplicates(hashes, rank)
    if not distance:
        return is_duplicate
    # Equal hashes share their fate but for the best of them.
    rows = np.flatnonzero(~is_duplicate)
    rows = rows[np.argsort(rank[rows])]
    unique = hashes[rows]
    pairs = np.unique(
        np.concatenate([np.empty((0, 2), np.int64), *near_pairs(unique, distance)]), axis=0
    )
    stays = np.ones(len(unique), bool)
    # By the worse row, so that the better one's fate is settled.
    for better, worse in pairs[np.argsort(pairs[:, 1], kind="stable")].tolist():
        if stays[better]:
            stays[worse] = False
    is_duplicate[rows[~stays]] = True
    return is_duplicate


def near_pairs(hashes: NDArray[np.uint64], distance: int) -> Iterator[NDArray[np.int64]]:
    """All pairs (i, j), i < j, of hashes at most ``distance`` bits apart, some more than once.

    The bits are cut into ``distance`` + r blocks: two such hashes agree in r of them at least, so
    it's enough to compare what agrees there, for each choice of r blocks (Manku et al. 2007,
    "Detecting Near-Duplicates for Web Crawling", section 3).
    """
    if len(hashes) < 2:
        return
    for mask in _key_masks(len(hashes), distance):
        keys = hashes & mask
        order = np.argsort(keys, kind="stable")
        sorted_keys = keys[order]
        start: NDArray[np.int64] = np.arange(len(order) - 1)
        step = 0
        while len(start):
            step += 1
            start = start[start + step < len(order)]
            start = start[sorted_keys[start] == sorted_keys[start + step]]
            one, other = order[start], order[start + step]
            is_near = np.bitwise_count(hashes[one] ^ hashes[other]) <= distance
            yield np.sort(np.stack([one[is_near], other[is_near]], axis=1), axis=1)


def _key_masks(num_hashes: int, distance: int) -> list[np.uint64]:
    """The bits compared in each round.

    More shared blocks give longer keys, in which fewer hashes agree by chance, but more rounds:
    a round costs a sort, and a comparison for each such agreement.
    """

    def cost(shared: int) -> float:
        by_chance = num_hashes / 2 ** (HASH_BITS * shared / (distance + shared))
        return comb(distance + shared, shared) * (log2(num_hashes) + by_chance)

    shared = min(range(1, HASH_BITS // 4), key=cost)
    bounds = np.linspace(0, HASH_BITS, distance + shared + 1).astype(int).tolist()
    blocks = [(1 << b) - (1 << a) for a, b in pairwise(bounds)]
    return [np.uint64(sum(chosen)) for chosen in combinations(blocks, shared)]


def _best(keys: NDArray[np.generic], rank: NDArray[np.int64]) -> NDArray[np.int64]:
    """The row with the best rank of each different key."""
    order = np.lexsort((rank, keys))
    is_first = np.ones(len(order), bool)
    is_first[1:] = keys[order][1:] != keys[order][:-1]
    best: NDArray[np.int64] = order[is_first]
    return best


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
