"""One optimiser step, and what can be said of it."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipmill.engine.batch import move, num_samples, split
from clipmill.engine.config import TrainConfig
from clipmill.engine.distributed import Ranks
from clipmill.engine.flops import forward_flops, peak_flops
from clipmill.engine.guard import Guard, Verdict
from clipmill.engine.objective import Objective
from clipmill.engine.optimizer import build_optimizer, clip_gradients, set_rate
from clipmill.engine.sharded import average_scalars, shard
from clipmill.engine.state import Moving
from clipmill.models.channels_last import to_channels_last


@dataclass(frozen=True, kw_only=True, slots=True)
class Update:
    """What an update left, still on the device."""

    losses: dict[str, Tensor]
    """By kind, of this rank."""
    norm: Tensor
    """Of the gradient, before clipping."""
    rate: float
    """The learning rate."""
    num_samples: int
    """Samples of all ranks."""
    verdict: Verdict | None
    """The newest that is known: of this update, or on a GPU of the one before."""


class Updater:
    """A model's moving parts, and the step that moves them."""

    def __init__(self, objective: Objective, config: TrainConfig, here: Ranks) -> None:
        operation = config.operation
        self.objective = objective
        self.flops: float | None = None
        self.peak = operation.peak_flops or peak_flops(here.device, config.precision)
        to_channels_last(objective)
        if operation.compile:
            objective.compile()
        is_shared = operation.parallel == "fsdp" and here.world_size > 1
        # Before the optimiser and the average: sharding replaces the parameters.
        self._forward = shard(objective, here) if is_shared else here.wrap(objective)
        self.optimizer = build_optimizer(objective, config.optimizer)
        self.averaged: dict[str, Tensor] = {}
        if config.average_decay is not None:
            self.averaged = {k: v.detach().clone() for k, v in objective.state_dict().items()}
        self.guard = Guard(config.guard, here)
        self._is_shared = is_shared
        self._config = config
        self._here = here

    @property
    def moving(self) -> Moving:
        """What a saved state holds."""
        return Moving(
            objective=self.objective,
            optimizer=self.optimizer,
            averaged=self.averaged,
            guard=self.guard,
        )

    def update(self, step: int, batch: Any, *, stopping: bool = False) -> Update:
        """Take update ``step`` (from 0); ``stopping`` tells the other ranks of it.

        Random numbers of the step are a function of seed, step and rank, so that a resumed run
        draws those of one never stopped.
        """
        config = self._config
        rate = config.schedule.at(step, config.steps)
        set_rate(self.optimizer, rate)
        count = num_samples(batch) * self._here.world_size
        pieces = split(move(batch, self._here.device), config.micro_batches)
        with torch.autocast(
            self._here.device.type, torch.bfloat16, enabled=config.precision == "bf16"
        ):
            if self.flops is None and self.peak is not None:
                self.flops = 3 * forward_flops(self.objective, pieces[0]) * len(pieces)
            torch.manual_seed(_seed(config.seed, step, self._here.rank))
            self.objective.before_step(step / (config.steps + 1))
            statistics = self._statistics()
            losses = self.objective.accumulate(pieces, self._forward)
        if self._is_shared:
            average_scalars(self.objective, self._here)
        total = torch.stack([value.float() for value in losses.values()]).sum()
        norm = clip_gradients(self.objective, config.optimizer.clip_norm)
        skip, verdict = self.guard.judge(step, total, norm, stopping=stopping)
        self.optimizer.found_inf = skip  # type: ignore[attr-defined]  # read by the fused kernel
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        for buffer, before in statistics:
            buffer.copy_(torch.where(skip > 0, before, buffer))
        self.objective.after_step()
        self._average(step)
        return Update(losses=losses, norm=norm, rate=rate, num_samples=count, verdict=verdict)

    @torch.no_grad()
    def _statistics(self) -> list[tuple[Tensor, Tensor]]:
        """What a forward pass may change, with its values now: a skipped update keeps those."""
        buffers = [b for b in self.objective.buffers() if b.is_floating_point()]
        return [(buffer, buffer.clone()) for buffer in buffers]

    @torch.no_grad()
    def _average(self, step: int) -> None:
        """Move the average; its first steps use a smaller decay so that it forgets the start."""
        if not self.averaged or self._config.average_decay is None:
            return
        decay = min(self._config.average_decay, (1 + step) / (10 + step))
        current = self.objective.state_dict()
        floating = [k for k, v in self.averaged.items() if v.is_floating_point()]
        torch._foreach_lerp_(  # has no public name yet
            [self.averaged[k] for k in floating], [current[k] for k in floating], 1 - decay
        )
        for key in self.averaged.keys() - set(floating):
            self.averaged[key].copy_(current[key])


def record_of(update: Update, step: int, gauges: dict[str, Tensor]) -> dict[str, float]:
    """The log's record after ``step`` updates; values that aren't finite are left out."""
    losses = {kind: float(value) for kind, value in update.losses.items()}
    record = {
        "step": step,
        "loss": sum(losses.values()),
        **({f"loss/{k}": v for k, v in losses.items()} if len(losses) > 1 else {}),
        "learning_rate": update.rate,
        "gradient_norm": float(update.norm),
        **{name: float(value) for name, value in gauges.items()},
    }
    return {name: value for name, value in record.items() if math.isfinite(value)}


def _seed(seed: int, step: int, rank: int) -> int:
    """A seed of its own for each step of each rank."""
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0] >> 1)
