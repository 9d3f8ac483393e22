"""From global step to samples: the order of an epoch is a function of seed and epoch alone.

Shards are permuted and cut into blocks; samples are permuted within each block. A sequential
reader so needs the shards of one block at a time, and the sample at any position is found in
O(1).
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from clipmill.errors import ConfigError

# Salts that keep the two kinds of permutation independent.
_SHARDS, _BLOCK = 0, 1

# A batch may straddle two blocks, and a prefetcher looks at the next.
_MAX_CACHED_BLOCKS = 4


class EpochShuffle:
    """A permutation of all samples, given how many each shard has."""

    def __init__(
        self, shard_sizes: Sequence[int], *, seed: int, epoch: int, shuffle_shards: int
    ) -> None:
        """Permute the shards; each block of ``shuffle_shards`` of them is permuted on demand."""
        assert shuffle_shards > 0, shuffle_shards
        sizes = np.asarray(shard_sizes, np.int64)
        self._key = (seed, epoch)
        self._shuffle_shards = shuffle_shards
        self._shards = np.random.default_rng((*self._key, _SHARDS)).permutation(len(sizes))
        # _ends[i]: samples in the first i shards of the permuted order.
        self._ends = np.concatenate([[0], np.cumsum(sizes[self._shards])])
        self._block_order = lru_cache(_MAX_CACHED_BLOCKS)(self._permute_block)

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def num_blocks(self) -> int:
        """Blocks in the epoch; the last may have fewer shards."""
        return -(-len(self._shards) // self._shuffle_shards)

    def block_of(self, position: int) -> int:
        """Return the block of ``position``."""
        return self._shard_slot(position) // self._shuffle_shards

    def block_shards(self, block: int) -> list[int]:
        """Return the shards of a block."""
        first = block * self._shuffle_shards
        return [int(shard) for shard in self._shards[first : first + self._shuffle_shards]]

    def block_range(self, block: int) -> tuple[int, int]:
        """Return the first position of a block, and the one past its last."""
        first = block * self._shuffle_shards
        last = min(first + self._shuffle_shards, len(self._shards))
        return int(self._ends[first]), int(self._ends[last])

    def locate(self, position: int) -> tuple[int, int]:
        """Return the (shard, row) of the sample at ``position``, from 0 to ``len(self) - 1``."""
        assert 0 <= position < len(self), position
        block = self.block_of(position)
        start, _ = self.block_range(block)
        target = start + int(self._block_order(block)[position - start])
        slot = self._shard_slot(target)
        return int(self._shards[slot]), target - int(self._ends[slot])

    def _shard_slot(self, position: int) -> int:
        """Return the index into the permuted shards of the one that includes ``position``."""
        return int(np.searchsorted(self._ends, position, side="right")) - 1

    def _permute_block(self, block: int) -> NDArray[np.int64]:
        start, end = self.block_range(block)
        return np.random.default_rng((*self._key, _BLOCK, block)).permutation(end - start)


class StepSampler(torch.utils.data.Sampler[int]):
    """All global steps from ``start_step`` on, without end."""

    def __init__(self, start_step: int) -> None:
        self._start_step = start_step

    def __iter__(self) -> Iterator[int]:
        step = self._start_step
        while True:
            yield step
            step += 1


def validate_world_size(batch_size: int, world_size: int) -> None:
    """Raise ConfigError unless a global batch divides evenly among the ranks."""
    if batch_size % world_size:
        raise ConfigError(
            f"batch_size was {batch_size}, with {world_size} ranks",
            expected="a multiple of the number of ranks",
            action="change batch_size, or the number of ranks",
        )
