"""The limits within which an endpoint works."""

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
    """Most images that the network sees at once."""
    max_wait_seconds: float = 0.005
    """Longest that an image waits for those that are being decoded to share its batch, seconds."""
    max_queue_images: int = 32
    """Most images taken in and not yet answered; a request beyond them gets a 503."""
    retry_after_seconds: int = 1
    """What a 503 tells the client to wait, seconds."""
    max_request_bytes: int = 32 * 2**20
    """Largest body of a request, bytes."""
    max_receive_seconds: float = 30.0
    """Longest that a request's body may take to come, seconds."""
    max_image_bytes: int = 16 * 2**20
    """Largest encoded image, bytes."""
    max_pixels: int = 2048 * 2048
    """Largest image, pixels; read from its header before it is decoded."""
    max_aspect_ratio: float = 4.0
    """Longer side over shorter: networks scale by the shorter, so a thin image would explode."""
    warmup_side: int = 64
    """Side of the square image that a model predicts before it is called ready, pixels."""
    grace_seconds: int = 30
    """How long a stopping server finishes what it has taken in, seconds."""
    drain_seconds: float = 0.3
    """How long a stopping server, unready by then, still takes in requests, seconds: until load
    balancers have heard of it. A few seconds on a cluster."""
    max_request_seconds: float = 30.0
    """Longest that an answer may take; a request may ask for less, never for more, seconds."""
    max_texts: int = 256
    """Most texts or labels in a request."""
    max_text_length: int = 1000
    """Longest text or label, characters."""
    num_codec_threads: int = 4
    """Threads that decode images and encode answers, for all models together."""
    reload_seconds: float = 1.0
    """How often the file of models is looked at, seconds."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if getattr(self, field.name) <= 0:
                raise ConfigError(
                    f"{field.name} was {getattr(self, field.name)}",
                    expected="a number above zero",
                    action=f"give {field.name} such a number",
                )
