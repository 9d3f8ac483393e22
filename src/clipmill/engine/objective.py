"""What a loop minimises."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any
import torch
from torch import Tensor, nn
import dataclasses
from collections.abc import Callable
from functools import partial
from torch import Tensor
from clipmill.errors import ConfigError

Forward = Callable[..., dict[str, Tensor]]


def synchronizing(forward: Forward, *, last: bool) -> contextlib.AbstractContextManager[None]:
    """Where gradients are averaged over ranks, do so only with a step's last backward pass."""
    if hasattr(forward, "set_requires_gradient_sync"):  # sharded by FSDP2
        forward.set_requires_gradient_sync(last)
    if last or not isinstance(forward, nn.parallel.DistributedDataParallel):
        return contextlib.nullcontext()
    unsynchronized: contextlib.AbstractContextManager[None] = forward.no_sync()
    return unsynchronized


class Objective(nn.Module, ABC):
    """A module whose forward turns a batch into losses by name; their sum is minimised."""

    @abstractmethod
    def forward(self, batch: Any) -> dict[str, Tensor]:
        """Losses by name, each a scalar averaged over the batch."""

    def accumulate(self, micro_batches: Sequence[Any], forward: Forward) -> dict[str, Tensor]:
        """Add the gradients of the whole batch, given in equal pieces, and return its losses.

        ``forward`` is this module's, by way of whatever averages gradients over ranks. The default
        averages the pieces, which is exact for losses that are means over samples.
        """
        totals: dict[str, Tensor] = {}
        for number, micro_batch in enumerate(micro_batches, start=1):
            with synchronizing(forward, last=number == len(micro_batches)):
                losses = {k: v / len(micro_batches) for k, v in forward(micro_batch).items()}
                torch.autograd.backward(torch.stack(list(losses.values())).sum())
            for name, value in losses.items():
                totals[name] = totals.get(name, value.new_zeros(())) + value.detach()
        return totals

    def before_step(self, progress: float) -> None:
        """What follows training's progress, from 0 at its first update on; nothing by default."""

    def after_step(self) -> None:
        """What must hold after each update (a clamp, say); nothing by default."""

    def gauges(self) -> dict[str, Tensor]:
        """Numbers to watch beside the losses, by name: the logit scale of a contrastive model."""
        found = [p for name, p in self.named_parameters() if name.endswith("logit_scale")]
        return {"logit_scale": found[0].detach().exp()} if found else {}

    def layer_id(self, parameter: str) -> int | None:
        """Layer of a parameter for layer-wise decay; None where the rate isn't scaled."""
        del parameter
        return None

    @property
    def num_layers(self) -> int:
        """The layer number at which layer-wise decay leaves the rate as it is."""
        return 0

    def trained_tensors(self) -> Mapping[str, Tensor]:
        """What training changes: parameters and buffers, by name."""
        return self.state_dict()



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
