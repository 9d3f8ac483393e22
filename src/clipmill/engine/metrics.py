"""What a run says while it lasts: metrics, the log in the store, TensorBoard, progress."""

import logging
import math
import time
from functools import cache
from importlib.util import find_spec
from typing import Any
from clipmill.engine.config import TrainConfig
from clipmill.engine.distributed import Ranks
from clipmill.engine.result import LOG_FILE, RUN_FILE, log_lines
from clipmill.errors import ConfigError, StorageError
from clipmill.storage import join, write_bytes, write_json
from clipmill.telemetry import serve_metrics, train_metrics
import torch
from clipmill.engine.objective import Objective

_LOG = logging.getLogger(__name__)


class Journal:
    """Where the first rank's records go. The store's copy is what ``clipmill runs`` reads.

    Raises:
        ConfigError: TensorBoard is asked for and isn't installed.
        ServerError: the port of the metrics is taken.
    """

    def __init__(self, name: str, config: TrainConfig, here: Ranks, state_uri: str) -> None:
        operation = config.operation
        if operation.metrics_port is not None:
            local = here.device.index or 0 if here.device.type == "cuda" else here.rank
            port = operation.metrics_port + (local if operation.metrics_port else 0)
            _serve_once(port, operation.metrics_host)
        self._is_first = here.rank == 0
        self._board = _board(operation.tensorboard) if self._is_first else None
        self._name = name
        self._config = config
        self._world_size = here.world_size
        self._uri = state_uri
        self._metrics = train_metrics()
        self._published = 0.0
        self.log: list[dict[str, float]] = []

    def begin(self, log: tuple[dict[str, float], ...]) -> None:
        """Go on from the records of a saved state."""
        self.log = list(log)
        self.publish("running")

    def write(self, record: dict[str, float]) -> None:
        """Take a record in."""
        self.log.append(record)
        self._measure(record)
        if self._board is not None:
            for key, value in record.items():
                if key != "step":
                    self._board.add_scalar(key, value, int(record["step"]))
        if time.monotonic() - self._published > self._config.operation.publish_seconds:
            self.publish("running")

    def publish(self, status: str, words: str = "") -> None:
        """Put the log and the run's status into the store; a store that refuses is a warning."""
        if not self._is_first:
            return
        self._published = time.monotonic()
        run = {
            "name": self._name,
            "status": status,
            "words": words,
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

    def close(self) -> None:
        """Flush what needs it."""
        if self._board is not None:
            self._board.close()

    def _measure(self, record: dict[str, float]) -> None:
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
        for key, value in record.items():
            if key == "loss" or key.startswith("loss/"):
                kind = "total" if key == "loss" else key.removeprefix("loss/")
                metrics.loss.labels(objective=self._name, kind=kind).set(value)
            elif "/" in key:
                evaluation, _, metric = key.partition("/")
                metrics.evaluation.labels(evaluation=evaluation, metric=metric).set(value)
        if "loss" in record and not any(key.startswith("loss/") for key in record):
            # A single term is the total, under its own name as well.
            metrics.loss.labels(objective=self._name, kind="total").set(record["loss"])


def _board(folder: str) -> Any:
    if not folder:
        return None
    if find_spec("tensorboard") is None:
        raise ConfigError(
            f"operation.tensorboard was {folder!r}, but tensorboard isn't installed",
            expected="the package tensorboard beside clipmill",
            action="pip install tensorboard, or leave operation.tensorboard empty: the log is in "
            "the store in any case",
        )
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(folder)


@cache
def _serve_once(port: int, host: str) -> int:
    """A process that trains several models in turn has one server."""
    return serve_metrics(port, host=host)



class Pace:
    """Wall time since the last record; the host waits for the device only where it records."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._samples = 0
        self._steps = 0
        self._waited = 0.0
        self._paused = 0.0

    def add(self, num_samples: int, data_seconds: float) -> None:
        """Note an update."""
        self._samples += num_samples
        self._steps += 1
        self._waited += data_seconds

    def pause(self, seconds: float) -> None:
        """Leave out what isn't training: an evaluation."""
        self._paused += seconds

    def read(self, flops: float | None, peak: float | None) -> dict[str, float]:
        """Speed since the last reading.

        Samples a second, the share of time that data was waited for, and the utilisation where a
        step's FLOPs and the peak of the rank's device are known.
        """
        now = time.perf_counter()
        seconds = max(now - self._started - self._paused, 1e-9)
        found = {
            "samples_per_second": self._samples / seconds,
            "data_wait": self._waited / seconds,
        }
        if flops is not None and peak is not None:
            found["mfu"] = flops * self._steps / seconds / peak
        self._started, self._samples, self._steps = now, 0, 0
        self._waited = self._paused = 0.0
        return found


# Dense peaks without sparsity, FLOP/s, of bf16 tensor cores and of fp32 (NVIDIA's data sheets).
_PEAKS = {
    "B200": (2.25e15, 80e12),
    "H200": (989e12, 67e12),
    "H100": (989e12, 67e12),
    "A100": (312e12, 19.5e12),
    "L40S": (362e12, 91.6e12),
    "L4": (121e12, 30.3e12),
    "A10G": (70e12, 31.2e12),
}


def peak_flops(device: torch.device, precision: str) -> float | None:
    """FLOP/s of a known GPU; None for one that isn't, and for a CPU."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    for known, (bf16, fp32) in _PEAKS.items():
        if known in name:
            return bf16 if precision == "bf16" else fp32
    return None


@torch.no_grad()
def forward_flops(objective: Objective, batch: Any) -> float:
    """FLOPs of an objective's forward pass; its buffers are left as they were.

    A step's are three times as many, whatever recomputation it chooses to do (the usual count for
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
