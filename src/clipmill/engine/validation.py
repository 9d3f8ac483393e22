"""Validation during training, by a schedule."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clipmill.engine.distributed import DistributedContext
from clipmill.engine.objective import Objective


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
