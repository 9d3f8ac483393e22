"""One optimiser step, and what can be said of it."""

import math
from dataclasses import dataclass
from typing import Any
import numpy as np
import torch
from torch import Tensor
from clipmill.engine.objective import move, num_samples, split
from clipmill.engine.config import TrainConfig
from clipmill.engine.distributed import Ranks
from clipmill.engine.metrics import forward_flops, peak_flops
from clipmill.engine.spike_guard import Guard, Verdict
from clipmill.engine.objective import Objective
from clipmill.engine.optim import build_optimizer, clip_gradients, set_rate
from clipmill.engine.fsdp import average_scalars, shard
from clipmill.engine.checkpoint import Moving
from clipmill.models.execution import to_channels_last
import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from clipmill.engine.checkpoint import Checkpointer
from clipmill.engine.distributed import Ranks, ranks
from clipmill.engine.validation import Evaluation, evaluate
from clipmill.engine.spike_guard import Verdict
from clipmill.engine.metrics import Journal
from clipmill.engine.metrics import Pace
from clipmill.engine.fsdp import whole_all
from clipmill.engine.checkpoint import Progress
from clipmill.engine.watchdog import StopSignal
from clipmill.engine.watchdog import Watchdog, is_lost_rank
from clipmill.errors import StoppedError, TrainingError
from clipmill.models.execution import set_num_threads
from clipmill.processes import tune_malloc
from clipmill.stage_records import Report
from clipmill.telemetry import train_metrics


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
    evaluations: Sequence[Evaluation] = (),
) -> Trained:
    """Train to the end, from the last whole state under ``state_uri`` if there is one.

    ``make_batches(cursor, ranks)`` gives this rank's batches from update ``cursor`` on.

    Raises:
        StoppedError: SIGTERM came; the state is saved, and the same call goes on from it.
        TrainingError: too many updates in a row did harm and were skipped, a rank was lost, or
            the batches ended.
        StorageError: the state of a stopped run can't be saved.
        ConfigError: the batch can't be shared out, or what is asked for isn't installed.
    """
    set_num_threads(config.num_threads)
    with StopSignal() as stop, ranks(config.operation.collective_seconds) as here:
        here.share(config.batch_size, config.micro_batches)
        if here.device.type == "cpu":
            tune_malloc()
        if config.operation.deterministic:
            _use_deterministic_kernels()
        torch.manual_seed(config.seed)
        journal = Journal(name, config, here, state_uri)
        objective = make_objective(here).to(here.device)
        objective.train()
        run = _Run(Updater(objective, config, here), journal, config, here, stop, state_uri)
        run.report, run.evaluations = report, evaluations
        with contextlib.closing(journal):
            tensors = run.to_the_end(make_batches)
        return Trained(tensors=tensors, log=tuple(journal.log), rank=here.rank)


class _Run:
    """A run from its last state on."""

    report: Report
    evaluations: Sequence[Evaluation]

    def __init__(
        self,
        updater: Updater,
        journal: Journal,
        config: TrainConfig,
        here: Ranks,
        stop: StopSignal,
        state_uri: str,
    ) -> None:
        operation = config.operation
        self._updater = updater
        self._journal = journal
        self._config = config
        self._here = here
        self._stop = stop
        self._states = Checkpointer(
            state_uri, updater.moving, here, num_kept=operation.checkpoints_kept
        )
        self._watchdog = Watchdog(
            here,
            hang_seconds=operation.hang_seconds,
            heartbeat_seconds=operation.heartbeat_seconds,
        )
        self._metrics = train_metrics()
        self._pace = Pace()
        self._step = 0

    def to_the_end(self, make_batches: Callable[[int, Ranks], Iterator[Any]]) -> dict[str, Tensor]:
        """Take the updates that are left; the weights to use."""
        progress = self._states.restore()
        self._step = progress.step
        self._journal.begin(progress.log)
        try:
            with self._watchdog:
                batches = make_batches(progress.step, self._here)
                while self._step < self._config.steps:
                    try:
                        self._advance(batches)
                    except RuntimeError as error:
                        self._blame(error)
                        raise
                if verdict := self._updater.guard.last():
                    self._heed(verdict)
                averaged = self._updater.averaged
                tensors = whole_all(averaged or dict(self._updater.objective.state_dict()))
                self._states.finish(must=False)
        except BaseException as error:
            # What is being written may be the state that the run goes on from.
            with contextlib.suppress(Exception):
                self._states.finish(must=False)
            status = "stopped" if isinstance(error, StoppedError) else "failed"
            self._journal.publish(status, str(error).splitlines()[0] if str(error) else "")
            raise
        return {k: v.detach() for k, v in tensors.items()}

    def _advance(self, batches: Iterator[Any]) -> None:
        config, step = self._config, self._step
        started = time.perf_counter()
        self._watchdog.at(step, "data")
        batch = self._next(batches)
        waited = time.perf_counter() - started
        self._watchdog.at(step, "compute")
        update = self._updater.update(step, batch, stopping=self._stop.requested)
        self._step = done = step + 1
        self._metrics.samples.inc(update.num_samples)
        self._metrics.step_seconds.observe(time.perf_counter() - started)
        self._metrics.data_wait_seconds.inc(waited)
        self._pace.add(update.num_samples, waited)
        if update.verdict is not None:
            self._heed(update.verdict)
        due = [e for e in self.evaluations if e.is_due(done, config.steps)]
        if due or done % config.log_steps == 0 or done == config.steps:
            record = record_of(update, done, self._updater.objective.gauges())
            record |= self._pace.read(self._updater.flops, self._updater.peak)
            record |= self._evaluated(due)
            self._journal.write(record)
            self.report(done, config.steps, _words(record))
        if done == config.steps:
            return
        if update.verdict is not None and update.verdict.stopping:
            self._save_and_stop()
        if done % config.checkpoint_steps == 0:
            self._save()

    def _next(self, batches: Iterator[Any]) -> Any:
        try:
            return next(batches)
        except StopIteration:
            raise TrainingError(
                f"the batches ended at step {self._step}",
                expected=f"{self._config.steps} of them",
                action="give a source of batches that doesn't end",
            ) from None
        except RuntimeError:
            # A signal to the whole group of processes ends the loader's workers as well.
            if self._stop.requested and self._here.world_size == 1:
                self._save_and_stop()
            raise

    def _heed(self, verdict: Verdict) -> None:
        if not verdict.skipped:
            return
        reason = "not-finite" if verdict.not_finite else "spike"
        self._metrics.skipped_updates.labels(reason=reason).inc()
        self._metrics.skipped_samples.inc(self._config.batch_size)
        limit = self._config.guard.max_skipped
        if verdict.skipped_in_row < limit:
            return
        what = (
            "loss or gradient is not finite"
            if verdict.not_finite
            else f"the loss is above {self._config.guard.spike_ratio:g} times its mean"
        )
        raise TrainingError(
            f"{limit} updates in a row were skipped up to step {verdict.step + 1}: {what}",
            expected="an update that can be used; weights are as they were before them, and the "
            "last saved state is from before that",
            action="look at the data of these steps; lower schedule.peak, set "
            "optimizer.clip_norm=1.0 or train in fp32, or raise guard.max_skipped to go on",
        )

    def _evaluated(self, due: Sequence[Evaluation]) -> dict[str, float]:
        if not due:
            return {}
        started = time.perf_counter()
        self._watchdog.at(self._step, "evaluation")
        figures = evaluate(due, self._updater.objective, self._updater.averaged, self._here)
        self._pace.pause(time.perf_counter() - started)
        return figures

    def _save(self) -> None:
        self._watchdog.at(self._step, "checkpoint")
        self._states.save(Progress(step=self._step, log=tuple(self._journal.log)))

    def _save_and_stop(self) -> None:
        if self._step:
            self._save()
            self._states.finish(must=True)
        raise StoppedError(
            f"stopped after step {self._step} of {self._config.steps}, as SIGTERM asked; "
            "the state is saved, and the same command goes on from it"
        )

    def _blame(self, error: RuntimeError) -> None:
        """Turn a collective's failure into one that names the ranks that are gone."""
        if self._here.world_size == 1 or not is_lost_rank(error):
            return
        first = (str(error).splitlines() or [""])[0]
        raise TrainingError(
            f"rank {self._here.rank} lost the others at step {self._step}: no longer there: "
            f"{self._watchdog.lost_ranks()} ({first})",
            expected="all ranks to the end",
            action="look at the log of that rank; start all ranks again, and they go on from the "
            "last saved state",
        ) from error


def _words(record: dict[str, float]) -> str:
    loss = f"loss {record['loss']:.3f}" if "loss" in record else "update skipped"
    return f"{loss}, {record['samples_per_second']:.0f} samples/s"


def _use_deterministic_kernels() -> None:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
