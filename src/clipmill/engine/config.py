"""How a model is trained, as recipes say it."""

from dataclasses import dataclass
from typing import Literal
from clipmill.config import Config, operational
from clipmill.errors import ConfigError
from clipmill.config import Config
import math


@dataclass(frozen=True, kw_only=True, slots=True)
class AdamWConfig(Config):
    """AdamW's constants; the rate itself is the schedule's."""

    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of the two moments (CLIP-QC, Table 11)."""
    epsilon: float = 1e-6
    """Added to the root of the second moment (open_clip's value for ViT)."""
    weight_decay: float = 0.2
    """Decoupled decay of matrices and kernels (CLIP-QC, Table 11)."""
    layer_decay: float = 1.0
    """Factor of the rate from a layer to the one below it."""
    clip_norm: float | None = None
    """Largest norm of the whole gradient; null for no clipping."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GuardConfig(Config):
    """Which updates are skipped, and when a run gives up."""

    spike_ratio: float | None = None
    """An update whose loss is above this many times its running mean is skipped; null for none.

    One whose loss or gradient isn't finite is always skipped."""
    max_skipped: int = 20
    """Updates skipped in a row after which the run stops."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig(Config):
    """How long and how a model is trained."""

    steps: int
    """Number of updates."""
    batch_size: int
    """Samples of an update, over all ranks."""
    micro_batches: int = 1
    """Pieces that a rank's share of a batch is computed in."""
    seed: int = 0
    """Seed of weights, order and augmentation."""
    schedule: ScheduleConfig = ScheduleConfig()
    """Learning rate."""
    optimizer: AdamWConfig = AdamWConfig()
    """AdamW's constants."""
    average_decay: float | None = None
    """Decay of the weights' moving average, which is what's saved; null saves the last weights."""
    precision: Literal["bf16", "fp32"] = "fp32"
    """``bf16`` computes under autocast; weights stay fp32."""
    guard: GuardConfig = GuardConfig()
    """What becomes of updates that would do harm."""
    checkpoint_steps: int = operational(1000)
    """Updates between two saved states."""
    log_steps: int = operational(50)
    """Updates between two records of the log."""
    num_threads: int = 0
    """CPU threads of a rank; 0: as many as PyTorch would take, within the container's limit."""
    operation: OperationConfig = operational(OperationConfig())
    """How the run is carried out and watched."""

    def __post_init__(self) -> None:
        """Refuse values out of range (ConfigError)."""
        names = ("steps", "batch_size", "micro_batches", "checkpoint_steps", "log_steps")
        for name in names:
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"{name} was {getattr(self, name)}",
                    expected="at least 1",
                    action=f"give {name} such a value",
                )

    @property
    def num_seen_samples(self) -> int:
        """Global batch times updates, as the paper counts seen samples."""
        return self.steps * self.batch_size



@dataclass(frozen=True, kw_only=True, slots=True)
class OperationConfig(Config):
    """Where and how a run's steps are computed, saved, watched."""

    parallel: Literal["ddp", "fsdp"] = "ddp"
    """``ddp`` has all weights on each rank; ``fsdp`` a share of them (FSDP2), for large towers."""
    compile: bool = False
    """Compile the objective with torch.compile."""
    deterministic: bool = False
    """Only deterministic kernels on a GPU, which are slower; those of a CPU always are."""
    checkpoints_kept: int = 2
    """Saved states that are kept."""
    hang_seconds: float = 600.0
    """A step that takes longer is reported, with the rank that holds it up."""
    collective_seconds: float = 1800.0
    """Longest that ranks wait for one another before the run fails."""
    heartbeat_seconds: float = 5.0
    """Time between two signs of life of a rank."""
    publish_seconds: float = 15.0
    """Least time between two copies of the unfinished run's log in the store."""
    metrics_port: int | None = None
    """Port of ``/metrics``, plus the rank's number on its machine; null for none."""
    metrics_host: str = "127.0.0.1"
    """Address that ``/metrics`` listens at; ``0.0.0.0`` in a pod."""
    tensorboard: str = ""
    """Local folder of TensorBoard's event files; empty for none."""
    peak_flops: float | None = None
    """FLOP/s of a rank's device, for the utilisation; null looks known GPUs up."""

    def __post_init__(self) -> None:
        """Refuse values out of range (ConfigError)."""
        for name in ("checkpoints_kept", "hang_seconds", "collective_seconds", "heartbeat_seconds"):
            if not getattr(self, name) > 0:
                raise ConfigError(
                    f"{name} was {getattr(self, name)}",
                    expected="above 0",
                    action=f"give {name} such a value",
                )



@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleConfig(Config):
    """How the learning rate moves between its peak and its minimum."""

    shape: Literal["cosine", "polynomial", "rise-and-fall", "step"] = "cosine"
    """``cosine`` and ``polynomial`` fall after a linear warm-up; ``rise-and-fall`` climbs over the
    first half and falls over the second, each as progress to ``power`` (Xie et al. 2023). ``step``
    falls to a tenth at each milestone, after a linear warm-up."""
    peak: float = 1e-3
    """Highest learning rate."""
    minimum: float = 1e-6
    """Lowest learning rate."""
    warmup_steps: int = 0
    """Steps of the linear warm-up from 0."""
    power: float = 1.0
    """Exponent of the polynomial shapes."""
    milestones: tuple[float, ...] = ()
    """Where ``step`` falls, as shares of all updates, ascending."""

    def __post_init__(self) -> None:
        """Refuse rates that no run survives (ConfigError)."""
        for name in ("peak", "minimum", "power"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(
                    f"{name} was {getattr(self, name)}",
                    expected="a finite number, at least 0",
                    action=f"give {name} such a value",
                )

    def at(self, step: int, num_steps: int) -> float:
        """Learning rate of update ``step`` (from 0) of ``num_steps``."""
        if self.shape == "rise-and-fall":
            half = num_steps / 2
            progress = step / half if step < half else (num_steps - step) / half
            share = progress**self.power
            return float(self.minimum + (self.peak - self.minimum) * share)
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        if self.shape == "step":
            passed = sum(step >= round(share * num_steps) for share in self.milestones)
            return float(self.peak * 0.1**passed)
        progress = (step - self.warmup_steps) / max(num_steps - self.warmup_steps, 1)
        if self.shape == "cosine":
            share = (1 + math.cos(math.pi * progress)) / 2
        else:
            share = (1 - progress) ** self.power
        return float(self.minimum + (self.peak - self.minimum) * share)
