"""The training loop: one for pretraining and for every task."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from clipmill.engine.batch import move, num_samples, split
from clipmill.engine.config import TrainConfig
from clipmill.engine.distributed import Ranks, ranks
from clipmill.engine.objective import Objective
from clipmill.engine.optimizer import build_optimizer, clip_gradients, set_rate
from clipmill.engine.state import load_state, save_state
from clipmill.errors import TrainingError
from clipmill.stages import Report
from clipmill.telemetry import train_metrics


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """What a run leaves."""

    tensors: dict[str, Tensor]
    """Weights to use: the moving average if there is one."""
    log: tuple[dict[str, float], ...]
    """Records: step, losses, learning rate, gradient norm, samples a second."""
    rank: int = 0
    """Whose this is; all ranks hold the same weights, and the first one saves them."""


def train(
    make_objective: Callable[[Ranks], Objective],
    make_batches: Callable[[int, Ranks], Iterator[Any]],
    config: TrainConfig,
    *,
    name: str,
    state_uri: str,
    report: Report,
) -> Trained:
    """Train to the end, from the last saved state under ``state_uri`` if there is one.

    ``make_batches(cursor, ranks)`` gives this rank's batches from update ``cursor`` on.

    Raises:
        TrainingError: a loss is not finite.
    """
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    torch.manual_seed(config.seed)
    with ranks() as here:
        objective = make_objective(here).to(here.device)
        objective.train()
        run = _Run(objective, config, name, here)
        progress = load_state(state_uri, objective, run.optimizer, run.averaged)
        batches = make_batches(progress.step, here)
        log = list(progress.log)
        for step in range(progress.step, config.steps):
            record = run.update(step, next(batches))
            done = step + 1
            if done % config.log_steps == 0 or done == config.steps:
                log.append(record())
                report(done, config.steps, f"loss {log[-1]['loss']:.3f}")
            if done % config.checkpoint_steps == 0 and done < config.steps and here.rank == 0:
                saved = replace(progress, step=done, log=tuple(log))
                save_state(state_uri, saved, objective, run.optimizer, run.averaged)
        tensors = run.averaged or {k: v.detach() for k, v in objective.state_dict().items()}
        return Trained(tensors=tensors, log=tuple(log), rank=here.rank)


class _Run:
    """One run's moving parts."""

    def __init__(self, objective: Objective, config: TrainConfig, name: str, here: Ranks) -> None:
        self.objective = objective
        self.optimizer = build_optimizer(objective, config.optimizer)
        self.averaged: dict[str, Tensor] = {}
        if config.average_decay is not None:
            self.averaged = {k: v.detach().clone() for k, v in objective.state_dict().items()}
        self._forward = here.wrap(objective)
        self._config = config
        self._name = name
        self._here = here
        self._metrics = train_metrics()

    def update(self, step: int, batch: Any) -> Callable[[], dict[str, float]]:
        """One optimiser step; the record of it, to be asked for only when it is logged."""
        config, started = self._config, time.perf_counter()
        rate = config.schedule.at(step, config.steps)
        set_rate(self.optimizer, rate)
        pieces = split(move(batch, self._here.device), config.micro_batches)
        with torch.autocast(
            self._here.device.type, torch.bfloat16, enabled=config.precision == "bf16"
        ):
            losses = self.objective.accumulate(pieces, self._forward)
        is_logged = (step + 1) % config.log_steps == 0 or step + 1 == config.steps
        norm = math.nan  # costs a pass over all gradients, so only where it's wanted
        if is_logged or config.optimizer.clip_norm is not None:
            norm = clip_gradients(self.objective, config.optimizer.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.objective.after_step()
        self._average(step)
        samples = num_samples(batch) * self._here.world_size
        seconds = time.perf_counter() - started
        self._metrics.samples.inc(samples)
        self._metrics.step_seconds.observe(seconds)

        def record() -> dict[str, float]:
            values = {k: float(v) for k, v in losses.items()}
            total = sum(values.values())
            if not math.isfinite(total):
                raise TrainingError(
                    f"{self._name}: the loss is {total} at step {step + 1}",
                    expected="a finite number",
                    action="lower schedule.peak, or set optimizer.clip_norm=1.0",
                )
            self._metrics.step.set(step + 1)
            self._metrics.learning_rate.set(rate)
            self._metrics.gradient_norm.set(norm)
            for kind, value in {"total": total, **values}.items():
                self._metrics.loss.labels(objective=self._name, kind=kind).set(value)
            return {
                "step": step + 1,
                "loss": total,
                **({f"loss/{k}": v for k, v in values.items()} if len(values) > 1 else {}),
                "learning_rate": rate,
                "gradient_norm": norm,
                "samples_per_second": samples / seconds,
            }

        return record

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
