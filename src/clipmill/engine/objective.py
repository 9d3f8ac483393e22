"""Interface of a training objective and of its batches, and of validation during training."""

import contextlib
import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from clipmill.engine.distributed import DistributedContext
from clipmill.errors import ConfigError

Forward = Callable[..., dict[str, Tensor]]


def num_samples(batch: Any) -> int:
    """Return the length of the batch's first tensor."""
    return next(len(v) for v in _items(batch).values() if isinstance(v, Tensor))


def to_device(batch: Any, device: torch.device) -> Any:
    """Copy the batch to ``device``; copies from pinned memory don't block."""
    return _map(batch, lambda v: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v)


def split_batch(batch: Any, number: int) -> list[Any]:
    """Split the batch into equal micro-batches, in order."""
    if number == 1:
        return [batch]
    size, rest = divmod(num_samples(batch), number)
    if rest:
        raise ConfigError(
            f"a batch of {num_samples(batch)} can't be cut into {number} micro-batches",
            expected="batch_size divisible by grad_accum_steps and the number of ranks",
            action="change one of them",
        )
    windows = [slice(i * size, (i + 1) * size) for i in range(number)]
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


def no_sync_except_last(forward: Forward, *, last: bool) -> contextlib.AbstractContextManager[None]:
    """Average gradients over ranks only in a step's last backward pass."""
    if hasattr(forward, "set_requires_gradient_sync"):  # sharded by FSDP2
        forward.set_requires_gradient_sync(last)
    if last or not isinstance(forward, nn.parallel.DistributedDataParallel):
        return contextlib.nullcontext()
    unsynchronized: contextlib.AbstractContextManager[None] = forward.no_sync()
    return unsynchronized


class Objective(nn.Module, ABC):
    """Module whose forward turns a batch into losses by name; their sum is minimized."""

    @abstractmethod
    def forward(self, batch: Any) -> dict[str, Tensor]:
        """Return losses by name, each a scalar averaged over the batch."""

    def accumulate(self, micro_batches: Sequence[Any], forward: Forward) -> dict[str, Tensor]:
        """Add the gradients of a batch, given in equal micro-batches, and return its losses.

        ``forward`` is this module's, by way of whatever averages gradients over ranks. The default
        averages the micro-batches, which is exact for losses that are means over samples.
        """
        totals: dict[str, Tensor] = {}
        for number, micro_batch in enumerate(micro_batches, start=1):
            with no_sync_except_last(forward, last=number == len(micro_batches)):
                losses = {k: v / len(micro_batches) for k, v in forward(micro_batch).items()}
                torch.autograd.backward(torch.stack(list(losses.values())).sum())
            for name, value in losses.items():
                totals[name] = totals.get(name, value.new_zeros(())) + value.detach()
        return totals

    def before_step(self, progress: float) -> None:
        """Update what follows training's progress (0..1); nothing by default."""

    def after_step(self) -> None:
        """Enforce constraints after each update (a clamp, say); nothing by default."""

    def extra_metrics(self) -> dict[str, Tensor]:
        """Return metrics to log in addition to the losses: a contrastive model's logit scale."""
        scales = [p for name, p in self.named_parameters() if name.endswith("logit_scale")]
        return {"logit_scale": scales[0].detach().exp()} if scales else {}

    def layer_id(self, parameter: str) -> int | None:
        """Return a parameter's layer for layer-wise decay; None where the rate isn't scaled."""
        del parameter
        return None

    @property
    def num_layers(self) -> int:
        """Layer id at which layer-wise decay leaves the learning rate as it is."""
        return 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Validator:
    """Validation of the model in training; its metrics go into the log as ``name/metric``."""

    name: str
    """Prefix of its metrics."""
    every: int
    """Updates between two validations; the last update is followed by one, too."""
    compute: Callable[[Objective, DistributedContext], Mapping[str, float]]
    """Returns the objective's metrics, in evaluation mode and with EMA weights if it has any.

    All ranks call it together, and rank 0's metrics count."""

    def is_due(self, step: int, num_steps: int) -> bool:
        """Return whether it is due after ``step`` updates."""
        return step % self.every == 0 or step == num_steps


@torch.no_grad()
def run_validators(
    validators: Sequence[Validator],
    objective: Objective,
    ema: Mapping[str, Tensor],
    dist: DistributedContext,
) -> dict[str, float]:
    """Return all metrics by ``name/metric``; the training state stays as it is."""
    metrics: dict[str, float] = {}
    objective.eval()
    try:
        with _swap_in_ema(objective, ema):
            for validator in validators:
                values = validator.compute(objective, dist)
                metrics |= {f"{validator.name}/{metric}": v for metric, v in values.items()}
    finally:
        objective.train()
    return metrics


@contextlib.contextmanager
def _swap_in_ema(objective: Objective, ema: Mapping[str, Tensor]) -> Iterator[None]:
    """Swap the EMA weights into the objective, without a copy."""
    _swap_tensors(objective, ema)
    try:
        yield
    finally:
        _swap_tensors(objective, ema)


def _swap_tensors(objective: Objective, ema: Mapping[str, Tensor]) -> None:
    for name, own in (*objective.named_parameters(), *objective.named_buffers()):
        if name in ema:
            other = ema[name]
            own.data, other.data = other.data, own.data
