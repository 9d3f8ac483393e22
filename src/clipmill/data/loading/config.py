"""Settings of the dataloader."""

from dataclasses import dataclass

from clipmill.config import Config, runtime_field
from clipmill.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class DataLoaderConfig(Config):
    """Reading and decoding of samples; batch size and seed are the training's."""

    num_workers: int = runtime_field(8)
    """Decoding processes per rank; 0 decodes in the training process."""
    prefetch_batches: int = runtime_field(2)
    """Batches that each worker prepares ahead."""
    shuffle_shards: int = 32
    """Shards whose samples are shuffled together, and so are on the local disk together."""

    def __post_init__(self) -> None:
        """Refuse values out of range (ConfigError)."""
        for name, low in (("num_workers", 0), ("prefetch_batches", 1), ("shuffle_shards", 1)):
            if getattr(self, name) < low:
                raise ConfigError(
                    f"{name} was {getattr(self, name)}",
                    expected=f"at least {low}",
                    action=f"set {name} to at least {low}",
                )
