"""Global steps, as every loader counts them."""

from collections.abc import Iterator

import torch

from clipmill.errors import ConfigError


class StepsFrom(torch.utils.data.Sampler[int]):
    """The numbers of all global steps from ``cursor`` on."""

    def __init__(self, cursor: int) -> None:
        self._cursor = cursor

    def __iter__(self) -> Iterator[int]:
        step = self._cursor
        while True:
            yield step
            step += 1


def check_ranks(batch_size: int, world_size: int) -> None:
    """Raise ConfigError unless the ranks can share a global batch evenly."""
    if batch_size % world_size:
        raise ConfigError(
            f"batch_size was {batch_size}, with {world_size} ranks",
            expected="a multiple of the number of ranks",
            action="change batch_size, or the number of ranks",
        )
