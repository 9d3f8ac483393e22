"""What the loop does to a batch: any dataclass or dict whose tensors share their first axis."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from clipmill.errors import ConfigError


def num_samples(batch: Any) -> int:
    """Length of the first tensor found."""
    return next(len(v) for v in _items(batch).values() if isinstance(v, Tensor))


def move(batch: Any, device: torch.device) -> Any:
    """The batch on ``device``; copies from pinned memory don't block."""
    return _map(batch, lambda v: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v)


def split(batch: Any, num_pieces: int) -> list[Any]:
    """The batch in equal pieces, in order."""
    if num_pieces == 1:
        return [batch]
    size, rest = divmod(num_samples(batch), num_pieces)
    if rest:
        raise ConfigError(
            f"a batch of {num_samples(batch)} can't be cut into {num_pieces} micro-batches",
            expected="batch_size divisible by micro_batches and the number of ranks",
            action="change one of them",
        )
    windows = [slice(i * size, (i + 1) * size) for i in range(num_pieces)]
    return [_map(batch, partial(_cut, window=window)) for window in windows]


def _cut(value: Any, window: slice) -> Any:
    return None if value is None else value[window]


def _items(batch: Any) -> dict[str, Any]:
    if isinstance(batch, dict):
        return batch
    return {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}


def _map(batch: Any, change: Callable[[Any], Any]) -> Any:
    items = {name: change(value) for name, value in _items(batch).items()}
    return items if isinstance(batch, dict) else dataclasses.replace(batch, **items)
