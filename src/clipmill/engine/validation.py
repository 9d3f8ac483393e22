"""What is looked at while a run lasts, by a schedule."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
import torch
from torch import Tensor
from clipmill.engine.distributed import Ranks
from clipmill.engine.objective import Objective


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """A judgement of the model in training; its figures go into the log as ``name/metric``."""

    name: str
    """What its figures are called."""
    every_steps: int
    """Updates between two of them; the last update has one, too."""
    judge: Callable[[Objective, Ranks], Mapping[str, float]]
    """Figures of the objective, in evaluation mode and with its averaged weights if it has them.

    All ranks call it together, and the first one's figures count."""

    def is_due(self, step: int, num_steps: int) -> bool:
        """Whether it's wanted after so many updates."""
        return step % self.every_steps == 0 or step == num_steps


@torch.no_grad()
def evaluate(
    evaluations: Sequence[Evaluation],
    objective: Objective,
    averaged: Mapping[str, Tensor],
    here: Ranks,
) -> dict[str, float]:
    """The figures of each, by ``name/metric``; training goes on as if it hadn't been asked."""
    figures: dict[str, float] = {}
    objective.eval()
    try:
        with _standing_in(objective, averaged):
            for evaluation in evaluations:
                found = evaluation.judge(objective, here)
                figures |= {f"{evaluation.name}/{metric}": v for metric, v in found.items()}
    finally:
        objective.train()
    return figures


@contextlib.contextmanager
def _standing_in(objective: Objective, averaged: Mapping[str, Tensor]) -> Iterator[None]:
    """The averaged weights in the objective's place, exchanged without a copy."""
    _exchange(objective, averaged)
    try:
        yield
    finally:
        _exchange(objective, averaged)


def _exchange(objective: Objective, averaged: Mapping[str, Tensor]) -> None:
    for name, own in (*objective.named_parameters(), *objective.named_buffers()):
        if name in averaged:
            other = averaged[name]
            own.data, other.data = other.data, own.data
