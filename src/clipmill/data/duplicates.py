"""Which of several equal, or nearly equal, samples stays: always the same one.

Ranks are distinct integers, lower is better: they decide, whatever the order of the rows.
"""

from collections.abc import Iterator
from itertools import combinations, pairwise
from math import comb, log2

import numpy as np
from numpy.typing import NDArray

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
