"""The training loop: one for pretraining and for every task."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clipmill.engine.checkpointer import Checkpointer
from clipmill.engine.config import TrainConfig
from clipmill.engine.distributed import Ranks, ranks
from clipmill.engine.evaluation import Evaluation, evaluate
from clipmill.engine.guard import Verdict
from clipmill.engine.journal import Journal
from clipmill.engine.objective import Objective
from clipmill.engine.pace import Pace
from clipmill.engine.sharded import whole_all
from clipmill.engine.state import Progress
from clipmill.engine.stopping import StopSignal
from clipmill.engine.update import Updater, record_of
from clipmill.engine.watchdog import Watchdog, is_lost_rank
from clipmill.errors import StoppedError, TrainingError
from clipmill.models.cpu_threads import use_threads
from clipmill.processes import keep_freed_memory
from clipmill.stage_records import Report
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
    use_threads(config.num_threads)
    with StopSignal() as stop, ranks(config.operation.collective_seconds) as here:
        here.share(config.batch_size, config.micro_batches)
        if here.device.type == "cpu":
            keep_freed_memory()
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
