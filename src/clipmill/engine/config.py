"""How a model is trained, as recipes say it."""

from dataclasses import dataclass
from typing import Literal

from clipmill.config import Config, operational
from clipmill.engine.operation import OperationConfig
from clipmill.engine.schedule import ScheduleConfig
from clipmill.errors import ConfigError


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
