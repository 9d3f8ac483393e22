"""Captions by a vision-language model at a chat endpoint; the real caption may guide it."""

import base64
import io
from dataclasses import dataclass
from typing import Any

from PIL import Image

from clipmill.data.captioners.chat import ChatCaptioner, ChatConfig
from clipmill.data.captioners.contract import CaptionInput
from clipmill.data.captioners.endpoint import EndpointConfig
from clipmill.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class VlmConfig(ChatConfig):
    """What a vision-language model is asked of an image."""

    prompt: str = "Describe this image in one sentence of at most 30 words."
    """The user's message beside the image; ``{caption}`` is replaced by the real caption."""
    max_side: int = 512
    """Images are scaled down to this longer side, pixels."""
    jpeg_quality: int = 90
    """Quality of the JPEG that is sent."""

    def __post_init__(self) -> None:
        """Refuse values out of range (ConfigError)."""
        # Plain super() doesn't know the class that slots=True makes.
        ChatConfig.__post_init__(self)
        for name, least, most in (("max_side", 16, 8192), ("jpeg_quality", 1, 100)):
            if not least <= getattr(self, name) <= most:
                raise ConfigError(
                    f"{name} was {getattr(self, name)}",
                    expected=f"{least} to {most}",
                    action=f"give {name} such a value",
                )


class VlmCaptioner(ChatCaptioner):
    """Captions of images by the model at an endpoint, in OpenAI's form of messages with images."""

    looks_at_images = True

    def __init__(self, url: str, config: VlmConfig, endpoint: EndpointConfig) -> None:
        super().__init__(url, config, endpoint)
        self._max_side = config.max_side
        self._jpeg_quality = config.jpeg_quality

    def content(self, sample: CaptionInput) -> list[dict[str, Any]]:
        """The prompt and the image, as a data URL."""
        assert sample.image is not None
        image = sample.image.copy()
        image.thumbnail((self._max_side, self._max_side), Image.Resampling.BICUBIC)
        file = io.BytesIO()
        image.save(file, "JPEG", quality=self._jpeg_quality)
        url = f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
        return [
            {"type": "text", "text": self.prompt(sample)},
            {"type": "image_url", "image_url": {"url": url}},
        ]
