"""Limits and intervals of a server."""

import dataclasses
from typing import Final

from clipmill.config import Config
from clipmill.errors import ConfigError

DEFAULT_PORT: Final = 8080
"""HTTP port of ``clipmill serve``, and of the endpoints that the demo leaves up."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ServingConfig(Config):
    """Batching, admission and input limits of each model served; all are above zero."""

    max_batch_size: int = 8
    """Largest batch, images."""
    max_wait_seconds: float = 0.005
    """Longest time that an image waits for others, being decoded, to share its batch, seconds."""
    max_queue_size: int = 32
    """Most images in flight; a request beyond them gets a 503."""
    retry_after_seconds: int = 1
    """Retry-After of a 503, seconds."""
    max_request_bytes: int = 32 * 2**20
    """Largest body of a request, bytes."""
    read_timeout_seconds: float = 30.0
    """Longest time in which a request's body must arrive, seconds."""
    max_image_bytes: int = 16 * 2**20
    """Largest encoded image, bytes."""
    max_pixels: int = 2048 * 2048
    """Largest image, pixels; read from its header before it is decoded."""
    max_aspect_ratio: float = 4.0
    """Longer side over shorter: networks scale by the shorter, so a thin image would explode."""
    warmup_image_size: int = 64
    """Side of the square image that a model predicts before it is ready, pixels."""
    shutdown_timeout_seconds: int = 30
    """Longest time in which a stopping server finishes the requests in flight, seconds."""
    unready_before_shutdown_seconds: float = 0.3
    """Time for which a stopping server is unready and still accepts requests, seconds: until load
    balancers have noticed. A few seconds on a cluster."""
    max_request_seconds: float = 30.0
    """Longest time to a response, seconds; a request may set a shorter deadline."""
    max_texts: int = 256
    """Most texts or labels in a request."""
    max_text_length: int = 1000
    """Longest text or label, characters."""
    num_codec_threads: int = 4
    """Threads that decode images and encode responses, for all models together."""
    reload_interval_seconds: float = 1.0
    """Interval of the checks of the models file for changes, seconds."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if getattr(self, field.name) <= 0:
                raise ConfigError(
                    f"{field.name} was {getattr(self, field.name)}",
                    expected="a number above zero",
                    action=f"set {field.name} to a number above zero",
                )
