"""Duplicate filters, exact and near, and the search for near-duplicate hashes.

Of several duplicates the sample with the most pixels or the best score is kept; ties are broken
by a digest of the uid, never by order.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations, pairwise
from math import comb, log2
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from clipmill.data.filters import Block, CaptionOf, FilterConfig, FilterState, caption_columns
from clipmill.errors import ConfigError

HASH_BITS = 64

Preference = Literal["pixels", "score"]


@dataclass(frozen=True, kw_only=True, slots=True)
class _DuplicateFilter(FilterConfig):
    RENAMED_FIELDS: ClassVar[Mapping[str, str]] = {
        "prefer": "keep_best_by",
    }

    keep_best_by: Preference = "pixels"
    """Criterion for the sample to keep: most pixels, or the highest CLIP score."""
    captions: CaptionOf = "real"
    """Caption whose CLIP score is compared."""
    layer: str = "score/image"
    """The layer of image scores."""
    scores: str = "score/clip"
    """The layer of CLIP scores, read if ``keep_best_by`` is ``score``."""

    @property
    def required_columns(self) -> Mapping[str, tuple[str, ...]]:
        """The hash, and the columns of the criterion."""
        if self.keep_best_by == "pixels":
            return {self.layer: (self.hash_column, "width", "height")}
        return {self.layer: (self.hash_column,), self.scores: caption_columns(self.captions)}

    @property
    def hash_column(self) -> str:
        """Name of the column whose values are compared."""
        raise NotImplementedError

    def create_state(self, num_rows: int) -> FilterState:
        """Return a state that collects all hashes in one pass: 32 to 40 bytes per row."""
        return _DuplicateState(self, num_rows)

    def find(self, hashes: NDArray[np.generic], rank: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which rows are duplicates."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True, slots=True)
class ExactDuplicateFilter(_DuplicateFilter):
    """Keeps one of the samples whose image files have equal bytes."""

    @property
    def hash_column(self) -> str:
        """The leading bytes of the file's SHA-256."""
        return "content_hash"

    def find(self, hashes: NDArray[np.generic], rank: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return the rows whose file equals that of a better row."""
        return exact_duplicates(hashes, rank)


@dataclass(frozen=True, kw_only=True, slots=True)
class NearDuplicateFilter(_DuplicateFilter):
    """Keeps one of the samples whose images have nearly equal perceptual hashes."""

    distance: int = 4
    """Largest Hamming distance, of 64 bits, between hashes of near-duplicates."""

    def __post_init__(self) -> None:
        """Refuse a distance at which unrelated images would match (ConfigError)."""
        if not 0 <= self.distance <= HASH_BITS // 8:
            raise ConfigError(
                f"distance was {self.distance}",
                expected=f"0 to {HASH_BITS // 8}",
                action="set distance in that range, for example 4",
            )

    @property
    def hash_column(self) -> str:
        """The perceptual hash."""
        return "perceptual_hash"

    def find(self, hashes: NDArray[np.generic], rank: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return the rows within ``distance`` of a better row that is kept."""
        return near_duplicates(hashes.astype(np.uint64), rank, self.distance)


class _DuplicateState(FilterState):
    num_passes = 1

    def __init__(self, config: _DuplicateFilter, num_rows: int) -> None:
        self._config = config
        self._is_duplicate = np.zeros(num_rows, bool)
        self._parts: list[tuple[NDArray[np.generic], ...]] = []

    def observe(self, block: Block, remaining: NDArray[np.bool_]) -> None:
        column = block.column(self._config.layer, self._config.hash_column)
        rows = np.flatnonzero(remaining & column.is_valid().to_numpy(zero_copy_only=False))
        hashes = column.take(rows).to_numpy(zero_copy_only=False)
        if hashes.dtype == object:  # of fixed-size bytes
            hashes = np.array(hashes.tolist(), dtype=f"V{column.type.byte_width}")
        uids = block.read_uids()
        ties = np.array([tie_breaker(uids[row]) for row in rows], np.uint64)
        self._parts.append((hashes, self._preference(block)[rows], ties, rows + block.start))

    def finish_pass(self) -> None:
        if self._parts:
            hashes, preference, ties, rows = map(np.concatenate, zip(*self._parts, strict=True))
            self._parts = []
            is_duplicate = self._config.find(hashes, preference_ranks(preference, ties))
            self._is_duplicate[rows[is_duplicate]] = True

    def keep_mask(self, block: Block) -> NDArray[np.bool_]:
        return ~self._is_duplicate[block.rows]

    def _preference(self, block: Block) -> NDArray[np.float64]:
        config = self._config
        if config.keep_best_by == "pixels":
            values = block.numbers(config.layer, "width") * block.numbers(config.layer, "height")
        else:
            values = block.caption_numbers(config.scores, config.captions)
        return np.nan_to_num(values, nan=-np.inf)


def tie_breaker(uid: str) -> int:
    """Return 64 bits of a uid's digest, which order rows whatever their order in the dataset."""
    return int.from_bytes(hashlib.sha256(f"tie:{uid}".encode()).digest()[:8], "big")


def preference_ranks(
    preference: NDArray[np.float64], ties: NDArray[np.uint64]
) -> NDArray[np.int64]:
    """Return the rank of each row, 0 for the best: highest ``preference``, then lowest ``ties``.

    Ranks are distinct, so results don't depend on the order of the rows.
    """
    order = np.lexsort((ties, -preference))
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return rank


def exact_duplicates(keys: NDArray[np.generic], rank: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which rows have the same key as a row with a better rank."""
    is_duplicate = np.ones(len(keys), bool)
    is_duplicate[_best_row_per_key(keys, rank)] = False
    return is_duplicate


def near_duplicates(
    hashes: NDArray[np.uint64], rank: NDArray[np.int64], distance: int
) -> NDArray[np.bool_]:
    """Return which rows lie within ``distance`` bits of a better row that is kept.

    Rows are visited from the best rank to the worst, and kept unless a kept row is near; of a
    chain whose ends are far apart both ends may be kept. The search is exact.
    """
    is_duplicate = exact_duplicates(hashes, rank)
    if not distance:
        return is_duplicate
    # Compare one row per distinct hash: the others are duplicates already.
    rows = np.flatnonzero(~is_duplicate)
    rows = rows[np.argsort(rank[rows])]
    unique = hashes[rows]
    pairs = np.unique(
        np.concatenate([np.empty((0, 2), np.int64), *hamming_neighbors(unique, distance)]), axis=0
    )
    is_kept = np.ones(len(unique), bool)
    # In order of the worse row, so that the better one is decided first.
    for better, worse in pairs[np.argsort(pairs[:, 1], kind="stable")].tolist():
        if is_kept[better]:
            is_kept[worse] = False
    is_duplicate[rows[~is_kept]] = True
    return is_duplicate


def hamming_neighbors(hashes: NDArray[np.uint64], distance: int) -> Iterator[NDArray[np.int64]]:
    """Yield all pairs (i, j), i < j, of hashes at most ``distance`` bits apart; some repeat.

    The bits are cut into ``distance`` + r blocks: two such hashes agree in at least r of them, so
    it's enough to compare hashes that agree there, for each choice of r blocks (Manku et al. 2007,
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
    """Return the bits that are compared in each round.

    More shared blocks give longer keys, in which fewer hashes agree by chance, but more rounds:
    a round costs a sort, and a comparison for each such agreement.
    """

    def cost(shared: int) -> float:
        by_chance = num_hashes / 2 ** (HASH_BITS * shared / (distance + shared))
        return comb(distance + shared, shared) * (log2(num_hashes) + by_chance)

    shared = min(range(1, HASH_BITS // 4), key=cost)
    bounds = np.linspace(0, HASH_BITS, distance + shared + 1).astype(int).tolist()
    blocks = [(1 << b) - (1 << a) for a, b in pairwise(bounds)]
    return [np.uint64(sum(choice)) for choice in combinations(blocks, shared)]


def _best_row_per_key(keys: NDArray[np.generic], rank: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the row with the best rank of each distinct key."""
    order = np.lexsort((rank, keys))
    is_first = np.ones(len(order), bool)
    is_first[1:] = keys[order][1:] != keys[order][:-1]
    best: NDArray[np.int64] = order[is_first]
    return best
