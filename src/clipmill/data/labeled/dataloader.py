"""The dataloader of labeled datasets: a batch is a function of the global step and the seed."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipmill.data.loading.sampler import StepSampler, validate_world_size
from clipmill.errors import ClipmillError

Load = Callable[[int, np.random.Generator], dict[str, NDArray[Any]]]
"""Sample ``index``, augmented by the generator, as arrays by name."""


MAX_CACHED_BYTES = 2 * 2**30
"""Most memory of :func:`cached_in_memory`."""


def cached_in_memory(
    load: Callable[[int], dict[str, NDArray[Any]]], *, max_bytes: int = MAX_CACHED_BYTES
) -> Callable[[int], dict[str, NDArray[Any]]]:
    """Cache the samples of ``load`` in memory, up to ``max_bytes``. Arrays aren't copied."""
    cached: dict[int, dict[str, NDArray[Any]]] = {}
    num_bytes = 0

    def loaded(index: int) -> dict[str, NDArray[Any]]:
        nonlocal num_bytes
        if index in cached:
            return cached[index]
        sample = load(index)
        size = sum(array.nbytes for array in sample.values())
        if num_bytes + size <= max_bytes:
            num_bytes += size
            cached[index] = sample
        return sample

    return loaded


def build_labeled_dataloader(
    load: Load,
    num_samples: int,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    num_workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    fills: Mapping[str, float] = MappingProxyType({}),
) -> Iterator[dict[str, Tensor]]:
    """Return this rank's batches from step ``start_step`` on, epoch after epoch.

    Arrays named in ``fills`` may differ in their first axis: they are padded with that value to
    the longest of their batch. ``batch_size`` counts all ranks. Batches don't depend on the number
    of workers. Raises ConfigError if the batch can't be divided evenly among the ranks, and what
    ``load`` raises.
    """
    validate_world_size(batch_size, world_size)
    loader: torch.utils.data.DataLoader[Any] = torch.utils.data.DataLoader(
        _LabeledBatchDataset(load, num_samples, batch_size, seed, rank, world_size, dict(fills)),
        batch_size=None,
        sampler=StepSampler(start_step),
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        # Without one of its own, a DataLoader draws from the training's random stream.
        generator=torch.Generator(),
    )
    return _reraise(loader)


def _reraise(loader: Iterable[dict[str, Tensor] | ClipmillError]) -> Iterator[dict[str, Tensor]]:
    for batch in loader:
        if isinstance(batch, ClipmillError):
            raise batch
        yield batch


@dataclass
class _LabeledBatchDataset(torch.utils.data.Dataset[dict[str, Tensor] | ClipmillError]):
    load: Load
    num_samples: int
    batch_size: int
    seed: int
    rank: int
    world_size: int
    fills: dict[str, float]

    def __post_init__(self) -> None:
        # A batch may straddle two epochs.
        self._order = lru_cache(2)(self._permute)

    def __getitem__(self, step: int) -> dict[str, Tensor] | ClipmillError:
        try:
            return self._batch(step)
        except ClipmillError as error:
            # Raised in a worker, it would become a RuntimeError.
            return error

    def _batch(self, step: int) -> dict[str, Tensor]:
        positions = range(step * self.batch_size, (step + 1) * self.batch_size)
        samples = [self._sample(p) for p in positions[self.rank :: self.world_size]]
        for name, fill in self.fills.items():
            longest = max(len(sample[name]) for sample in samples)
            for sample in samples:
                sample[name] = _padded(sample[name], longest, fill)
        return {k: torch.from_numpy(np.stack([s[k] for s in samples])) for k in samples[0]}

    def _sample(self, position: int) -> dict[str, NDArray[Any]]:
        epoch, index = divmod(position, self.num_samples)
        generator = np.random.default_rng((self.seed, epoch, index))
        return self.load(int(self._order(epoch)[index]), generator)

    def _permute(self, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng((self.seed, epoch)).permutation(self.num_samples)


def _padded(array: NDArray[Any], length: int, fill: float) -> NDArray[Any]:
    widths = [(0, length - len(array)), *[(0, 0)] * (array.ndim - 1)]
    return np.pad(array, widths, constant_values=fill)
