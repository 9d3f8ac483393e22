"""The order of an epoch as a permutation in blocks."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipmill.data.loading.sampler import EpochShuffle

SIZES = st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any)


def walk(order: EpochShuffle) -> list[tuple[int, int]]:
    return [order.locate(position) for position in range(len(order))]


@given(SIZES, st.integers(1, 15), st.integers(0, 3), st.integers(0, 3))
def test_every_sample_comes_once(
    sizes: list[int], shuffle_shards: int, seed: int, epoch: int
) -> None:
    order = EpochShuffle(sizes, seed=seed, epoch=epoch, shuffle_shards=shuffle_shards)
    expected = [(shard, row) for shard, size in enumerate(sizes) for row in range(size)]
    assert sorted(walk(order)) == expected


@given(SIZES, st.integers(1, 15))
def test_blocks_follow_one_another(sizes: list[int], shuffle_shards: int) -> None:
    order = EpochShuffle(sizes, seed=0, epoch=0, shuffle_shards=shuffle_shards)
    blocks = [order.block_of(position) for position in range(len(order))]
    assert blocks == sorted(blocks)
    for position, (shard, _) in enumerate(walk(order)):
        assert shard in order.block_shards(blocks[position])
    shards = [s for block in range(order.num_blocks) for s in order.block_shards(block)]
    assert sorted(shards) == list(range(len(sizes)))


def test_jumping_in_finds_what_walking_finds() -> None:
    sizes = [5, 0, 7, 3, 9, 4]
    expected = walk(EpochShuffle(sizes, seed=1, epoch=2, shuffle_shards=2))
    for position in (27, 3, 14, 0):
        order = EpochShuffle(sizes, seed=1, epoch=2, shuffle_shards=2)
        assert order.locate(position) == expected[position]


@pytest.mark.parametrize("other", [{"seed": 1}, {"epoch": 1}])
def test_seed_and_epoch_change_the_order(other: dict[str, int]) -> None:
    base = {"seed": 0, "epoch": 0, "shuffle_shards": 4}
    first = EpochShuffle([10] * 20, **base)
    second = EpochShuffle([10] * 20, **{**base, **other})
    assert first.block_shards(0) != second.block_shards(0)
    assert walk(first) != walk(second)


def test_places_are_uniform_within_one_block() -> None:
    # Each of 6 samples should come first in a sixth of 3,000 epochs: 500 +- 5 deviations of 20.
    firsts = Counter(
        EpochShuffle([2, 3, 1], seed=7, epoch=epoch, shuffle_shards=3).locate(0)
        for epoch in range(3000)
    )
    assert len(firsts) == 6
    assert all(400 < count < 600 for count in firsts.values())
