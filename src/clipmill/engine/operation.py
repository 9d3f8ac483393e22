"""How a run is carried out and watched: what isn't meant to change its result.

A TrainConfig leaves all of this out of its digest, so that a run goes on, or is found done, under
other settings than it was begun with.
"""

from dataclasses import dataclass
from typing import Literal

from clipmill.config import Config
from clipmill.errors import ConfigError


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
