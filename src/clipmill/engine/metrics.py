"""Metrics of a run: log in the store, Prometheus, tracker, Kubernetes, throughput and FLOPs."""

import logging
import math
import time
from collections import Counter
from typing import Any, Literal

import torch

from clipmill.config import flatten
from clipmill.engine.config import TrainConfig
from clipmill.engine.cost_meter import CostMeter
from clipmill.engine.distributed import DistributedContext
from clipmill.engine.kubernetes import PodEvents, TrainJobStatus
from clipmill.engine.objective import Objective
from clipmill.engine.result import RUN_FILE, finished_uri, log_lines
from clipmill.errors import StorageError
from clipmill.lineage import LOG_FILE
from clipmill.processes import local_rank
from clipmill.storage import join, write_bytes, write_json
from clipmill.telemetry import TOTAL_LOSS, SkipReason, serve_metrics_once, train_metrics
from clipmill.tracking import close_run, open_run

_LOG = logging.getLogger(__name__)

# Dense peaks without sparsity, FLOP/s, of bf16 tensor cores and of fp32 (NVIDIA's data sheets).
_PEAK_FLOPS = {
    "B200": (2.25e15, 80e12),
    "H200": (989e12, 67e12),
    "H100": (989e12, 67e12),
    "A100": (312e12, 19.5e12),
    "L40S": (362e12, 91.6e12),
    "L4": (121e12, 30.3e12),
    "A10G": (70e12, 31.2e12),
}


class MetricsLogger:
    """Sink of rank 0's records. The copy in the store is what ``clipmill runs`` reads.

    Raises:
        ConfigError: the tracker is unknown, or isn't installed.
        ServerError: the metrics port is taken.
    """

    def __init__(self, name: str, config: TrainConfig, dist: DistributedContext, uri: str) -> None:
        runtime = config.runtime
        if runtime.metrics_port is not None:
            port = runtime.metrics_port + (local_rank() if runtime.metrics_port else 0)
            serve_metrics_once(port, runtime.metrics_host)
        self._is_first = dist.rank == 0
        self._result_uri = finished_uri(uri)
        self._tracked = open_run(self._result_uri, name) if self._is_first else None
        if self._tracked is not None:
            self._tracked.log_params(flatten(config.to_json(), "train"))
        self._name = name
        self._config = config
        self._world_size = dist.world_size
        self._uri = uri
        self._metrics = train_metrics()
        self._status = TrainJobStatus.from_environment()
        self._events = PodEvents.from_environment()
        self._skips: Counter[SkipReason] = Counter()
        self._uploaded = 0.0
        self.log: list[dict[str, float]] = []

    def resume(self, log: tuple[dict[str, float], ...], step: int) -> None:
        """Continue after the records of a checkpoint, or begin at step 0."""
        self.log = list(log)
        steps = self._config.steps
        if self._status is not None:
            self._status.report(step, steps, {})
        if self._events is not None and step:
            self._events.record(
                "TrainingResumed", f"{self._name}: resumed from step {step} of {steps}"
            )
        if self._tracked is not None:
            self._tracked.log_metrics(self.log)
        self.upload("running")

    def write(self, record: dict[str, float], cost: CostMeter | None = None) -> None:
        """Add a record; the tracker gets the cost so far with it."""
        self.log.append(record)
        self._update_prometheus(record)
        if self._tracked is not None:
            metrics = cost.cost.to_metrics() if cost is not None else {}
            self._tracked.log_metrics([record | metrics])
        if self._status is not None:
            step = int(record["step"])
            self._status.report(
                step, self._config.steps, {k: v for k, v in record.items() if k != "step"}
            )
        if time.monotonic() - self._uploaded > self._config.runtime.log_upload_interval_seconds:
            self.upload("running")

    def count_skip(self, step: int, reason: SkipReason) -> None:
        """Count a skipped update, the one of index ``step``."""
        self._metrics.skipped_updates.labels(reason=reason).inc()
        self._metrics.skipped_samples.inc(self._config.batch_size)
        self._skips[reason] += 1
        if self._events is not None:
            counts = ", ".join(f"{n} {reason}" for reason, n in self._skips.items())
            self._events.record(
                "UpdatesSkipped",
                f"{self._name}: updates skipped since this process began: {counts}; the last "
                f"at step {step + 1}",
                is_warning=True,
            )

    def close(self) -> None:
        """Send what Kubernetes hasn't got yet, for a limited time."""
        for sink in (self._status, self._events):
            if sink is not None:
                sink.close()

    def upload(self, status: Literal["running", "stopped", "failed"], message: str = "") -> None:
        """Write the log and the run's status to the store; a failure is only a warning."""
        if not self._is_first:
            return
        if status != "running":
            close_run(self._result_uri, status)
            self.close()
        self._uploaded = time.monotonic()
        run = {
            "name": self._name,
            "status": status,
            "words": message,
            "steps": self._config.steps,
            "step": self.log[-1]["step"] if self.log else 0,
            "updated": time.time(),
            "world_size": self._world_size,
            "train": self._config.to_json(),
        }
        try:
            write_bytes(join(self._uri, LOG_FILE), log_lines(self.log))
            write_json(join(self._uri, RUN_FILE), run)
        except StorageError as error:
            _LOG.warning("the log of this run can't be written now: %s", error.what)

    def _update_prometheus(self, record: dict[str, float]) -> None:
        metrics = self._metrics
        metrics.step.set(record["step"])
        gauges = {
            "learning_rate": metrics.learning_rate,
            "gradient_norm": metrics.gradient_norm,
            "samples_per_second": metrics.samples_per_second,
            "mfu": metrics.utilization,
            "logit_scale": metrics.logit_scale,
        }
        for key, gauge in gauges.items():
            gauge.set(record.get(key, math.nan))  # a 0 would be a claim
        sources = {
            "loss": metrics.source_loss,
            "accuracy": metrics.source_accuracy,
            "samples": metrics.source_samples,
            "epochs": metrics.source_epochs,
        }
        for key, value in record.items():
            if key == "loss" or key.startswith("loss/"):
                term = TOTAL_LOSS if key == "loss" else key.removeprefix("loss/")
                metrics.loss.labels(model=self._name, term=term).set(value)
            elif key.startswith("source/"):
                _, source, metric = key.split("/")
                sources[metric].labels(source=source).set(value)
            elif "/" in key:
                validator, _, metric = key.partition("/")
                metrics.validation_metric.labels(validator=validator, metric=metric).set(value)
        if "loss" in record and not any(key.startswith("loss/") for key in record):
            # A single term is the total, under its own name as well.
            metrics.loss.labels(model=self._name, term=TOTAL_LOSS).set(record["loss"])


class ThroughputMeter:
    """Throughput between two records of the log.

    It measures wall time, since the host waits for the device only where it records.
    """

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._samples = 0
        self._steps = 0
        self._data_seconds = 0.0
        self._excluded_seconds = 0.0

    def add(self, num_samples: int, data_seconds: float) -> None:
        """Count an update, and the time that it waited for its batch."""
        self._samples += num_samples
        self._steps += 1
        self._data_seconds += data_seconds

    def exclude(self, seconds: float) -> None:
        """Leave out time that isn't training, such as a validation."""
        self._excluded_seconds += seconds

    def read(self, flops: float | None, peak: float | None) -> dict[str, float]:
        """Return the throughput since the last reading, and start the next one.

        ``samples_per_second``; ``data_wait``, the share of time spent waiting for data; and
        ``mfu``, the model FLOPs utilization, if a step's FLOPs and the device's peak are known.
        """
        now = time.perf_counter()
        seconds = max(now - self._started - self._excluded_seconds, 1e-9)
        throughput = {
            "samples_per_second": self._samples / seconds,
            "data_wait": self._data_seconds / seconds,
        }
        if flops is not None and peak is not None:
            throughput["mfu"] = flops * self._steps / seconds / peak
        self._started, self._samples, self._steps = now, 0, 0
        self._data_seconds = self._excluded_seconds = 0.0
        return throughput


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Return the peak FLOP/s of a known GPU; None for unknown ones, and for a CPU."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    for known, (bf16, fp32) in _PEAK_FLOPS.items():
        if known in name:
            return bf16 if precision == "bf16" else fp32
    return None


@torch.no_grad()
def forward_flops(objective: Objective, batch: Any) -> float:
    """Return the FLOPs of an objective's forward pass; its buffers stay as they were.

    A step has three times as many, whether or not it recomputes activations (the usual count for
    MFU: the backward pass has two products for each of the forward pass).
    """
    from torch.utils.flop_counter import FlopCounterMode

    before = {name: buffer.clone() for name, buffer in objective.named_buffers()}
    with FlopCounterMode(display=False) as counter:
        objective.forward(batch)
    for name, buffer in objective.named_buffers():
        if name in before:
            buffer.copy_(before[name])
    return float(counter.get_total_flops())
