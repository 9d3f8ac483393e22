"""Configs of training: length, optimizer, schedule, and how the run is executed.

They import neither torch nor a sibling, so that recipes and commands can read them quickly.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from clipmill.config import Config, runtime_field
from clipmill.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleConfig(Config):
    """Learning-rate schedule, a pure function of the step."""

    RENAMED_FIELDS: ClassVar[Mapping[str, str]] = {
        "shape": "name",
        "peak": "lr",
        "minimum": "min_lr",
    }
    RENAMED_VALUES: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "name": {"rise-and-fall": "triangular"},
    }

    name: Literal["cosine", "polynomial", "triangular", "step"] = "cosine"
    """``cosine`` and ``polynomial`` fall after a linear warm-up; ``triangular`` rises over the
    first half and falls over the second, each as progress to ``power`` (Xie et al. 2023). ``step``
    falls to a tenth at each milestone, after a linear warm-up."""
    lr: float = 1e-3
    """Highest learning rate."""
    min_lr: float = 1e-6
    """Lowest learning rate."""
    warmup_steps: int = 0
    """Steps of the linear warm-up from 0."""
    power: float = 1.0
    """Exponent of the polynomial and triangular schedules."""
    milestones: tuple[float, ...] = ()
    """Milestones of ``step``, as shares of all steps, ascending."""

    def __post_init__(self) -> None:
        """Refuse rates out of range (ConfigError)."""
        for name in ("lr", "min_lr", "power"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(
                    f"{name} was {getattr(self, name)}",
                    expected="a finite number, at least 0",
                    action=f"set {name} to such a number, 1e-3 for example",
                )

    def lr_at(self, step: int, num_steps: int) -> float:
        """Return the learning rate of step ``step`` (from 0) of ``num_steps``."""
        if self.name == "triangular":
            half = num_steps / 2
            progress = step / half if step < half else (num_steps - step) / half
            share = progress**self.power
            return float(self.min_lr + (self.lr - self.min_lr) * share)
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        if self.name == "step":
            passed = sum(step >= round(share * num_steps) for share in self.milestones)
            return float(self.lr * 0.1**passed)
        progress = (step - self.warmup_steps) / max(num_steps - self.warmup_steps, 1)
        if self.name == "cosine":
            share = (1 + math.cos(math.pi * progress)) / 2
        else:
            share = (1 - progress) ** self.power
        return float(self.min_lr + (self.lr - self.min_lr) * share)


@dataclass(frozen=True, kw_only=True, slots=True)
class AdamWConfig(Config):
    """AdamW's constants; the learning rate is the schedule's."""

    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of the two moments (CLIP-QC, Table 11)."""
    epsilon: float = 1e-6
    """Added to the root of the second moment (open_clip's value for ViT)."""
    weight_decay: float = 0.2
    """Decoupled decay of matrices and kernels (CLIP-QC, Table 11)."""
    layer_decay: float = 1.0
    """Factor of the learning rate from a layer to the one below it."""
    clip_norm: float | None = None
    """Largest norm of all gradients together; null for no clipping."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SpikeGuardConfig(Config):
    """Skipping of harmful updates, and the number of them at which a run gives up."""

    RENAMED_FIELDS: ClassVar[Mapping[str, str]] = {
        "spike_ratio": "loss_spike_ratio",
        "max_skipped": "max_consecutive_skips",
    }

    loss_spike_ratio: float | None = None
    """An update whose loss is above this many times its running mean is skipped; null for none.

    One whose loss or gradient isn't finite is always skipped."""
    max_consecutive_skips: int = 20
    """Consecutive skipped updates after which the run stops."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RuntimeConfig(Config):
    """Execution and monitoring of a run; nothing here is meant to change its result.

    A TrainConfig leaves it out of its digest, so that a run can be resumed, or found complete,
    under other settings than it was started with.
    """

    RENAMED_FIELDS: ClassVar[Mapping[str, str]] = {
        "parallel": "parallelism",
        "checkpoints_kept": "keep_last_checkpoints",
        "hang_seconds": "step_timeout_seconds",
        "collective_seconds": "collective_timeout_seconds",
        "heartbeat_seconds": "heartbeat_interval_seconds",
        "publish_seconds": "log_upload_interval_seconds",
    }
    REMOVED_FIELDS: ClassVar[Mapping[str, str]] = {
        "tensorboard": "--tracking tensorboard:FOLDER",
    }

    parallelism: Literal["ddp", "fsdp"] = "ddp"
    """``ddp`` has all weights on each rank; ``fsdp`` shards them (FSDP2), for large towers."""
    compile: bool = False
    """Compile the objective with torch.compile."""
    deterministic: bool = False
    """Only deterministic kernels on a GPU, which are slower; those of a CPU always are."""
    keep_last_checkpoints: int = 2
    """Number of training checkpoints to keep."""
    step_timeout_seconds: float = 600.0
    """Duration from which a step is reported as hanging, with the rank that delays it."""
    collective_timeout_seconds: float = 1800.0
    """Longest time that ranks wait for one another before the run fails."""
    heartbeat_interval_seconds: float = 5.0
    """Interval between two heartbeats of a rank."""
    log_upload_interval_seconds: float = 15.0
    """Shortest interval between two uploads of the unfinished run's log to the store."""
    metrics_port: int | None = None
    """Port of ``/metrics``, plus the rank's number on its machine; null for none."""
    metrics_host: str = "127.0.0.1"
    """Address that ``/metrics`` listens on; ``0.0.0.0`` in a pod."""
    peak_flops: float | None = None
    """FLOP/s of a rank's device, for the utilization; null looks known GPUs up."""

    def __post_init__(self) -> None:
        """Refuse values out of range (ConfigError)."""
        for name in (
            "keep_last_checkpoints",
            "step_timeout_seconds",
            "collective_timeout_seconds",
            "heartbeat_interval_seconds",
        ):
            if not getattr(self, name) > 0:
                raise ConfigError(
                    f"{name} was {getattr(self, name)}",
                    expected="above 0",
                    action=f"set {name} to a number above 0",
                )


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig(Config):
    """Length of a training run, and its optimization."""

    RENAMED_FIELDS: ClassVar[Mapping[str, str]] = {
        "micro_batches": "grad_accum_steps",
        "average_decay": "ema_decay",
        "guard": "spike_guard",
        "checkpoint_steps": "checkpoint_every",
        "log_steps": "log_every",
        "operation": "runtime",
    }

    steps: int
    """Number of updates."""
    batch_size: int
    """Samples of an update, over all ranks."""
    grad_accum_steps: int = 1
    """Micro-batches that a rank's share of a batch is computed in."""
    seed: int = 0
    """Seed of weights, order and augmentation."""
    schedule: ScheduleConfig = ScheduleConfig()
    """Learning rate."""
    optimizer: AdamWConfig = AdamWConfig()
    """AdamW's constants."""
    ema_decay: float | None = None
    """Decay of the weights' moving average, which is what's saved; null saves the last weights."""
    precision: Literal["bf16", "fp32"] = "fp32"
    """``bf16`` computes under autocast; weights stay fp32."""
    spike_guard: SpikeGuardConfig = SpikeGuardConfig()
    """Skipping of harmful updates."""
    checkpoint_every: int = runtime_field(1000)
    """Updates between two training checkpoints."""
    log_every: int = runtime_field(50)
    """Updates between two records of the log."""
    num_threads: int = 0
    """CPU threads of a rank; 0: as many as PyTorch would take, within the container's limit."""
    runtime: RuntimeConfig = runtime_field(RuntimeConfig())
    """Execution and monitoring."""

    def __post_init__(self) -> None:
        """Refuse values out of range (ConfigError)."""
        names = ("steps", "batch_size", "grad_accum_steps", "checkpoint_every", "log_every")
        for name in names:
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"{name} was {getattr(self, name)}",
                    expected="at least 1",
                    action=f"set {name} to a number of at least 1",
                )
        if self.seed < 0:
            raise ConfigError(
                f"seed was {self.seed}", expected="0 or more", action="set seed to 0 or more"
            )

    @property
    def num_seen_samples(self) -> int:
        """Global batch times updates, as the paper counts seen samples."""
        return self.steps * self.batch_size
