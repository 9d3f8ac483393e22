"""Endless batches of labelled samples, in an order that depends on the seed alone."""

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


MAX_KEPT_BYTES = 2 * 2**30
"""Most memory of :func:`kept_in_memory`."""


def kept_in_memory(
    load: Callable[[int], dict[str, NDArray[Any]]], *, max_bytes: int = MAX_KEPT_BYTES
) -> Callable[[int], dict[str, NDArray[Any]]]:
    """``load``, decoding a sample once where there is memory for it. Its arrays aren't copied."""
    kept: dict[int, dict[str, NDArray[Any]]] = {}
    num_bytes = 0

    def loaded(index: int) -> dict[str, NDArray[Any]]:
        nonlocal num_bytes
        if index in kept:
            return kept[index]
        sample = load(index)
        size = sum(array.nbytes for array in sample.values())
        if num_bytes + size <= max_bytes:
            num_bytes += size
            kept[index] = sample
        return sample

    return loaded


def build_labeled_dataloader(
    load: Load,
    num_samples: int,
    *,
    batch_size: int,
    seed: int,
    cursor: int = 0,
    num_workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    fills: Mapping[str, float] = MappingProxyType({}),
) -> Iterator[dict[str, Tensor]]:
    """This rank's batches from step ``cursor`` on; epoch follows epoch without a break.

    Arrays named in ``fills`` may differ in their first axis: each is filled up with that value to
    the longest of its batch. ``batch_size`` counts all ranks. Workers have no say in what a batch
    holds. Raises ConfigError if the ranks can't share the batch evenly, and what ``load`` raises.
    """
    validate_world_size(batch_size, world_size)
    loader: torch.utils.data.DataLoader[Any] = torch.utils.data.DataLoader(
        _Batches(load, num_samples, batch_size, seed, rank, world_size, dict(fills)),
        batch_size=None,
        sampler=StepSampler(cursor),
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        # Without one of its own, a DataLoader draws from the training's random stream.
        generator=torch.Generator(),
    )
    return _raised(loader)


def _raised(loader: Iterable[dict[str, Tensor] | ClipmillError]) -> Iterator[dict[str, Tensor]]:
    for made in loader:
        if isinstance(made, ClipmillError):
            raise made
        yield made


@dataclass
class _Batches(torch.utils.data.Dataset[dict[str, Tensor] | ClipmillError]):
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
            # Raised here, a DataLoader would make it a RuntimeError of its worker's traceback.
            return error

    def _batch(self, step: int) -> dict[str, Tensor]:
        positions = range(step * self.batch_size, (step + 1) * self.batch_size)
        samples = [self._sample(p) for p in positions[self.rank :: self.world_size]]
        for name, fill in self.fills.items():
            longest = max(len(sample[name]) for sample in samples)
            for sample in samples:
                sample[name] = _filled(sample[name], longest, fill)
        return {k: torch.from_numpy(np.stack([s[k] for s in samples])) for k in samples[0]}

    def _sample(self, position: int) -> dict[str, NDArray[Any]]:
        epoch, place = divmod(position, self.num_samples)
        generator = np.random.default_rng((self.seed, epoch, place))
        return self.load(int(self._order(epoch)[place]), generator)

    def _permute(self, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng((self.seed, epoch)).permutation(self.num_samples)


def _filled(array: NDArray[Any], length: int, fill: float) -> NDArray[Any]:
    widths = [(0, length - len(array)), *[(0, 0)] * (array.ndim - 1)]
    return np.pad(array, widths, constant_values=fill)
