"""The trainer of all objectives: pretraining's and every task's.

:func:`train` sets up the process; :class:`Trainer` runs the steps, logs, validates, checkpoints and
stops; :class:`TrainStep` updates the weights once.
"""

import contextlib
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipmill.engine.batch_norm import sync_batch_norms
from clipmill.engine.checkpoint import Checkpointer, TrainProgress, TrainState
from clipmill.engine.config import TrainConfig
from clipmill.engine.cost_meter import CostMeter, open_energy_counter
from clipmill.engine.distributed import (
    DistributedContext,
    all_reduce_scalar_grads,
    apply_fsdp,
    full_tensors,
    init_distributed,
)
from clipmill.engine.metrics import MetricsLogger, ThroughputMeter, forward_flops, peak_flops
from clipmill.engine.objective import (
    Objective,
    Validator,
    num_samples,
    run_validators,
    split_batch,
    to_device,
)
from clipmill.engine.optim import build_optimizer, clip_gradients, set_lr
from clipmill.engine.result import TrainResult
from clipmill.engine.spike_guard import LossSpikeGuard, StepDecision
from clipmill.engine.watchdog import SigtermHandler, Watchdog, is_lost_rank
from clipmill.errors import LostRankError, StoppedError, TrainingError
from clipmill.models.execution import set_num_threads, to_channels_last
from clipmill.processes import tune_malloc
from clipmill.stage_records import ProgressCallback
from clipmill.telemetry import SkipReason, train_metrics

BuildObjective = Callable[[DistributedContext], Objective]
"""Builds the objective, on the CPU."""
BuildDataloader = Callable[[int, DistributedContext], Iterator[Any]]
"""Builds the iterator over this rank's batches, from the given step on."""
ProgressMetrics = Callable[[int], Mapping[str, float]]
"""Returns metrics to log that follow from the number of updates alone."""


def train(
    build_objective: BuildObjective,
    build_dataloader: BuildDataloader,
    config: TrainConfig,
    *,
    name: str,
    checkpoint_uri: str,
    report: ProgressCallback,
    validators: Sequence[Validator] = (),
    progress_metrics: ProgressMetrics | None = None,
) -> TrainResult:
    """Train to the last step, from the last complete checkpoint under ``checkpoint_uri`` if any.

    Raises:
        StoppedError: SIGTERM came; a checkpoint is saved, and the same call resumes from it.
        TrainingError: too many consecutive updates were skipped, a rank was lost, or the batches
            ended.
        StorageError: the checkpoint of a stopped run can't be saved.
        ConfigError: the batch can't be split, or a configured package isn't installed.
    """
    set_num_threads(config.num_threads)
    timeout_seconds = config.runtime.collective_timeout_seconds
    with SigtermHandler() as sigterm, init_distributed(timeout_seconds) as dist:
        dist.per_rank_batch_size(config.batch_size, config.grad_accum_steps)
        if dist.device.type == "cpu":
            tune_malloc()
        if config.runtime.deterministic:
            _use_deterministic_kernels()
        torch.manual_seed(config.seed)
        logger = MetricsLogger(name, config, dist, checkpoint_uri)
        objective = build_objective(dist).to(dist.device)
        objective.train()
        trainer = Trainer(
            objective,
            config,
            dist,
            logger=logger,
            checkpoint_uri=checkpoint_uri,
            sigterm=sigterm,
            report=report,
            validators=validators,
            progress_metrics=progress_metrics,
        )
        tensors = trainer.run(build_dataloader)
        return TrainResult(tensors=tensors, log=tuple(logger.log), rank=dist.rank)


class Trainer:
    """One run: its steps from the last checkpoint on."""

    def __init__(
        self,
        objective: Objective,
        config: TrainConfig,
        dist: DistributedContext,
        *,
        logger: MetricsLogger,
        checkpoint_uri: str,
        sigterm: SigtermHandler,
        report: ProgressCallback,
        validators: Sequence[Validator],
        progress_metrics: ProgressMetrics | None,
    ) -> None:
        runtime = config.runtime
        self._objective = objective
        self._config = config
        self._dist = dist
        self._logger = logger
        self._sigterm = sigterm
        self._report = report
        self._validators = validators
        self._progress_metrics = progress_metrics
        self._train_step = TrainStep(objective, config, dist)
        self._checkpointer = Checkpointer(
            checkpoint_uri, self._train_step.state, dist, keep_last=runtime.keep_last_checkpoints
        )
        self._watchdog = Watchdog(
            dist,
            step_timeout_seconds=runtime.step_timeout_seconds,
            heartbeat_interval_seconds=runtime.heartbeat_interval_seconds,
            read_energy=open_energy_counter(dist),
        )
        self._cost = CostMeter(
            checkpoint_uri,
            dist,
            interval_seconds=runtime.log_upload_interval_seconds,
            read_energy=self._watchdog.total_energy,
        )
        self._metrics = train_metrics()
        self._throughput = ThroughputMeter()
        self._step = 0

    def run(self, build_dataloader: BuildDataloader) -> dict[str, Tensor]:
        """Run the remaining steps; return the weights to use, by name in the objective."""
        progress = self._checkpointer.restore()
        self._step = progress.step
        self._logger.resume(progress.log, progress.step)
        self._cost.start(progress.step)
        if self._dist.world_size > 1:
            begins = f"resumes from step {self._step}" if self._step else "begins"
            sys.stderr.write(f"rank {self._dist.rank} of {self._dist.world_size} {begins}\n")
        try:
            with self._watchdog, self._cost:
                batches = build_dataloader(progress.step, self._dist)
                while self._step < self._config.steps:
                    try:
                        self._run_step(batches)
                    except RuntimeError as error:
                        self._raise_lost_ranks(error)
                        raise
                if decision := self._train_step.spike_guard.pop_pending():
                    self._handle_skipped_update(decision)
                ema = self._train_step.ema
                tensors = full_tensors(ema or dict(self._objective.state_dict()))
                self._checkpointer.finish(must_succeed=False)
            self._logger.close()
        except BaseException as error:
            # The checkpoint being written may be the one that the run resumes from.
            with contextlib.suppress(Exception):
                self._checkpointer.finish(must_succeed=False)
            is_stopped = isinstance(error, StoppedError)
            self._logger.upload(
                "stopped" if is_stopped else "failed",
                str(error).splitlines()[0] if str(error) else "",
            )
            raise
        return {k: v.detach() for k, v in tensors.items()}

    def _run_step(self, batches: Iterator[Any]) -> None:
        """Take one update, then log, validate, checkpoint and stop as they are due."""
        config = self._config
        started = time.perf_counter()
        self._watchdog.set_phase(self._step, "data")
        batch = self._next_batch(batches)
        data_seconds = time.perf_counter() - started
        self._watchdog.set_phase(self._step, "compute")
        output = self._train_step(self._step, batch, stopping=self._sigterm.requested)
        self._step = done = self._step + 1
        self._cost.set_step(done)
        self._metrics.samples.inc(output.num_samples)
        self._metrics.step_seconds.observe(time.perf_counter() - started)
        self._metrics.data_wait_seconds.labels(rank=str(self._dist.rank)).inc(data_seconds)
        self._throughput.add(output.num_samples, data_seconds)
        if output.decision is not None:
            self._handle_skipped_update(output.decision)
        due = [v for v in self._validators if v.is_due(done, config.steps)]
        if due or done % config.log_every == 0 or done == config.steps:
            record = output.log_record(done, self._objective.extra_metrics(), self._dist)
            if self._progress_metrics is not None:
                record |= self._progress_metrics(done)
            record |= self._throughput.read(self._train_step.flops, self._train_step.peak_flops)
            record |= self._validate(due)
            self._logger.write(record, self._cost)
            self._report(done, config.steps, _progress_message(record))
        if done == config.steps:
            return
        if output.decision is not None and output.decision.stopping:
            self._save_and_stop()
        if done % config.checkpoint_every == 0:
            self._save()

    def _next_batch(self, batches: Iterator[Any]) -> Any:
        try:
            return next(batches)
        except StopIteration:
            raise TrainingError(
                f"the batches ended at step {self._step}",
                expected=f"{self._config.steps} of them",
                action="use a source of batches that doesn't end",
            ) from None
        except RuntimeError:
            # A signal to the process group ends the dataloader's workers as well.
            if self._sigterm.requested and self._dist.world_size == 1:
                self._save_and_stop()
            raise

    def _handle_skipped_update(self, decision: StepDecision) -> None:
        """Count a skipped update; raise TrainingError after too many in a row."""
        if not decision.skipped:
            return
        guard = self._config.spike_guard
        reason = SkipReason.NOT_FINITE if decision.not_finite else SkipReason.SPIKE
        self._logger.count_skip(decision.step, reason)
        limit = guard.max_consecutive_skips
        if decision.consecutive_skips < limit:
            return
        what = (
            "loss or gradient is not finite"
            if decision.not_finite
            else f"the loss is above {guard.loss_spike_ratio:g} times its mean"
        )
        raise TrainingError(
            f"{limit} updates in a row were skipped up to step {decision.step + 1}: {what}",
            expected="an update that can be used; the weights are those from before the skipped "
            "updates, as is the last checkpoint",
            action="check the data of these steps; lower schedule.lr, set optimizer.clip_norm=1.0 "
            "or train in fp32, or raise spike_guard.max_consecutive_skips to continue",
        )

    def _validate(self, due: Sequence[Validator]) -> dict[str, float]:
        if not due:
            return {}
        started = time.perf_counter()
        self._watchdog.set_phase(self._step, "evaluation")
        metrics = run_validators(due, self._objective, self._train_step.ema, self._dist)
        self._throughput.exclude(time.perf_counter() - started)
        return metrics

    def _save(self) -> None:
        self._watchdog.set_phase(self._step, "checkpoint")
        self._cost.mark_checkpoint(self._step)
        self._checkpointer.save(TrainProgress(step=self._step, log=tuple(self._logger.log)))

    def _save_and_stop(self) -> None:
        if self._step:
            self._save()
            self._checkpointer.finish(must_succeed=True)
        raise StoppedError(
            f"stopped after step {self._step} of {self._config.steps} because of SIGTERM; "
            "a checkpoint is saved, and the same command resumes from it"
        )

    def _raise_lost_ranks(self, error: RuntimeError) -> None:
        """Raise TrainingError with the lost ranks, if ``error`` is a collective's failure."""
        if self._dist.world_size == 1 or not is_lost_rank(error):
            return
        first = (str(error).splitlines() or [""])[0]
        raise LostRankError(
            f"rank {self._dist.rank} lost the others at step {self._step}: no longer there: "
            f"{self._watchdog.lost_ranks()} ({first})",
            expected="all ranks until the end",
            action="read the log of that rank; start all ranks again, and they resume from the "
            "last checkpoint",
        ) from error


@dataclass(frozen=True, kw_only=True, slots=True)
class StepOutput:
    """Output of a training step, still on the device."""

    losses: dict[str, Tensor]
    """This rank's losses by name."""
    gradient_norm: Tensor
    """Norm of the gradient, before clipping."""
    lr: float
    """Learning rate."""
    num_samples: int
    """Samples of all ranks."""
    decision: StepDecision | None
    """Newest known decision of the spike guard: on this update, or on a GPU on the one before."""

    def log_record(
        self, step: int, extra: dict[str, Tensor], dist: DistributedContext
    ) -> dict[str, float]:
        """Return the log's record after ``step`` updates, without values that aren't finite.

        Losses are means over ranks, so all ranks have to call it.
        """
        sums = dist.all_reduce_sum(torch.stack([v.float() for v in self.losses.values()]))
        losses = dict(zip(self.losses, (sums / dist.world_size).tolist(), strict=True))
        record = {
            "step": step,
            "loss": sum(losses.values()),
            **({f"loss/{k}": v for k, v in losses.items()} if len(losses) > 1 else {}),
            "learning_rate": self.lr,
            "gradient_norm": float(self.gradient_norm),
            **{name: float(value) for name, value in extra.items()},
        }
        return {name: value for name, value in record.items() if math.isfinite(value)}


class TrainStep:
    """Objective, optimizer, EMA and spike guard; calling it updates the weights once."""

    def __init__(self, objective: Objective, config: TrainConfig, dist: DistributedContext) -> None:
        runtime = config.runtime
        self.flops: float | None = None
        self.peak_flops = runtime.peak_flops or peak_flops(dist.device, config.precision)
        to_channels_last(objective)
        if runtime.compile:
            objective.compile()
        self._is_sharded = runtime.parallelism == "fsdp" and dist.world_size > 1
        sync_batch_norms(objective, dist)
        # Before the optimizer and the EMA: sharding replaces the parameters.
        self._forward = (
            apply_fsdp(objective, dist) if self._is_sharded else dist.wrap_ddp(objective)
        )
        self.ema: dict[str, Tensor] = {}
        if config.ema_decay is not None:
            self.ema = {k: v.detach().clone() for k, v in objective.state_dict().items()}
        self.spike_guard = LossSpikeGuard(config.spike_guard, dist)
        self.objective = objective
        self._optimizer = build_optimizer(objective, config.optimizer)
        self._config = config
        self._dist = dist

    @property
    def state(self) -> TrainState:
        """State that a checkpoint saves."""
        return TrainState(
            objective=self.objective,
            optimizer=self._optimizer,
            ema=self.ema,
            spike_guard=self.spike_guard,
        )

    def __call__(self, step: int, batch: Any, *, stopping: bool = False) -> StepOutput:
        """Take update ``step`` (from 0); ``stopping`` is shared with the other ranks.

        Random numbers of the step are a function of seed, step and rank, so that a resumed run
        draws those of one that was never stopped.
        """
        config, objective, device = self._config, self.objective, self._dist.device
        lr = config.schedule.lr_at(step, config.steps)
        set_lr(self._optimizer, lr)
        count = num_samples(batch) * self._dist.world_size
        micro_batches = split_batch(to_device(batch, device), config.grad_accum_steps)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            if self.flops is None and self.peak_flops is not None:
                self.flops = 3 * forward_flops(objective, micro_batches[0]) * len(micro_batches)
            torch.manual_seed(_step_seed(config.seed, step, self._dist.rank))
            objective.before_step(step / (config.steps + 1))
            buffers = self._snapshot_float_buffers()
            losses = objective.accumulate(micro_batches, self._forward)
        if self._is_sharded:
            all_reduce_scalar_grads(objective, self._dist)
        loss = torch.stack([value.float() for value in losses.values()]).sum()
        norm = clip_gradients(objective, config.optimizer.clip_norm)
        skip, decision = self.spike_guard.check(step, loss, norm, stopping=stopping)
        self._optimizer.found_inf = skip  # type: ignore[attr-defined]  # read by the fused kernel
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        for buffer, before in buffers:
            buffer.copy_(torch.where(skip > 0, before, buffer))
        objective.after_step()
        self._update_ema(step)
        return StepOutput(
            losses=losses, gradient_norm=norm, lr=lr, num_samples=count, decision=decision
        )

    @torch.no_grad()
    def _snapshot_float_buffers(self) -> list[tuple[Tensor, Tensor]]:
        """Return the buffers that a forward pass may change with copies, for a skipped update."""
        buffers = [b for b in self.objective.buffers() if b.is_floating_point()]
        return [(buffer, buffer.clone()) for buffer in buffers]

    @torch.no_grad()
    def _update_ema(self, step: int) -> None:
        """Update the EMA; the first steps use a smaller decay, to forget the initial weights."""
        if not self.ema or self._config.ema_decay is None:
            return
        decay = min(self._config.ema_decay, (1 + step) / (10 + step))
        current = self.objective.state_dict()
        floating = [k for k, v in self.ema.items() if v.is_floating_point()]
        torch._foreach_lerp_(  # has no public name yet
            [self.ema[k] for k in floating], [current[k] for k in floating], 1 - decay
        )
        for key in self.ema.keys() - set(floating):
            self.ema[key].copy_(current[key])


def _step_seed(seed: int, step: int, rank: int) -> int:
    """Return the seed of one step of one rank."""
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0] >> 1)


def _progress_message(record: dict[str, float]) -> str:
    loss = f"loss {record['loss']:.3f}" if "loss" in record else "update skipped"
    return f"{loss}, {record['samples_per_second']:.0f} samples/s"


def _use_deterministic_kernels() -> None:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
