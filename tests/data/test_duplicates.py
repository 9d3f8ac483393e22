"""Duplicates against comparing each with each."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipmill.data.duplicates import (
    exact_duplicates,
    hamming_neighbors,
    near_duplicates,
    preference_ranks,
)


def distance_of(one, other):
    return int(np.bitwise_count(np.uint64(one) ^ np.uint64(other)))


def clustered(seed, count, flips):
    """Hashes in families: some random ones, and others a few bits from these."""
    random = np.random.default_rng(seed)
    found = [int(h) for h in random.integers(0, 2**64, max(count // 4, 1), np.uint64)]
    while len(found) < count:
        flipped = found[random.integers(len(found))]
        for bit in random.integers(0, 64, random.integers(0, flips + 1)):
            flipped ^= 1 << int(bit)
        found.append(flipped)
    return np.array(found, np.uint64)


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 60), st.integers(0, 8))
def test_every_near_pair_is_found(seed, count, distance):
    hashes = clustered(seed, count, 9)
    found = {tuple(p) for part in hamming_neighbors(hashes, distance) for p in part.tolist()}
    expected = {
        (i, j)
        for i in range(count)
        for j in range(i + 1, count)
        if distance_of(hashes[i], hashes[j]) <= distance
    }
    assert found == expected


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 60), st.integers(0, 8))
def test_the_better_one_stays(seed, count, distance):
    hashes = clustered(seed, count, 6)
    rank = np.random.default_rng(seed).permutation(count)
    found = near_duplicates(hashes, rank, distance)
    stays = []
    for row in np.argsort(rank):
        if all(distance_of(hashes[row], hashes[other]) > distance for other in stays):
            stays.append(row)
    assert sorted(stays) == np.flatnonzero(~found).tolist()


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(0, 6))
def test_the_order_of_rows_is_no_matter(seed, count, distance):
    hashes = clustered(seed, count, 6)
    random = np.random.default_rng(seed)
    rank, shuffle = random.permutation(count), random.permutation(count)
    straight = near_duplicates(hashes, rank, distance)
    shuffled = near_duplicates(hashes[shuffle], rank[shuffle], distance)
    assert straight[shuffle].tolist() == shuffled.tolist()


def test_ranks_prefer_the_higher_then_the_lower_tie():
    preference = np.array([1.0, 3.0, 3.0, -np.inf])
    assert preference_ranks(preference, np.array([0, 9, 4, 1], np.uint64)).tolist() == [2, 1, 0, 3]


@pytest.mark.parametrize("kind", ["V16", np.uint64])
def test_exact_duplicates(kind):
    keys = np.array([b"b" * 16, b"a" * 16, b"b" * 16, b"c" * 16, b"b" * 16], "V16")
    if kind is np.uint64:
        keys = keys.view(np.uint64)[::2]
    found = exact_duplicates(keys, np.array([4, 3, 2, 1, 5]))
    assert found.tolist() == [True, False, False, False, True]


def test_many_alike_cost_no_more_than_they_must():
    """A million pairs of equal hashes would be half a billion; they share one fate instead."""
    hashes = np.zeros(30_000, np.uint64)
    found = near_duplicates(hashes, np.arange(30_000), 4)
    assert np.flatnonzero(~found).tolist() == [0]
