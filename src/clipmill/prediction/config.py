"""Settings of a batch prediction."""

from dataclasses import dataclass, field

from clipmill.config import Config, runtime_field
from clipmill.errors import ConfigError
from clipmill.serve.config import ServingConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictionConfig(Config):
    """Settings of a batch prediction."""

    images_per_shard: int = 256
    """Images of a folder per shard. A killed worker repeats its current shard; those of a dataset
    are the dataset's own."""
    batch_size: int = runtime_field(0)
    """Images in a forward pass; 0 for 1 on a CPU, where a result is then bit for bit a server's
    answer to a request of one image, and 32 on a GPU."""
    num_threads: int = runtime_field(4)
    """Threads that read and decode images, and write results."""
    serving: ServingConfig = field(default_factory=ServingConfig)
    """Limits of images and backend of the model, as of a server."""

    def __post_init__(self) -> None:
        """Refuse values out of range (ConfigError)."""
        for name, least in (("images_per_shard", 1), ("batch_size", 0), ("num_threads", 1)):
            if getattr(self, name) < least:
                raise ConfigError(
                    f"{name} was {getattr(self, name)}",
                    expected=f"at least {least}",
                    action=f"set {name} to {least} or more",
                )
