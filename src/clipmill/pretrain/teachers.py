"""Models that teach: pictures and texts in, unit embeddings out."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from clipmill.models.clip_model import load_clip
from clipmill.models.normalization import Normalize


class Teacher:
    """A CLIP model in evaluation, on the GPU where there is one."""

    def __init__(
        self,
        clip: Any,
        *,
        image_size: int,
        normalize: Normalize,
        tokenize: Callable[[list[str]], Tensor],
    ) -> None:
        self.image_size = image_size
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._clip = clip.to(self._device).eval()
        self._normalize = normalize.to(self._device)
        self._tokenize = tokenize
        self.width = self.embed_texts(["a"]).shape[1]

    @torch.no_grad()
    def embed_images(self, images: Sequence[Image.Image]) -> NDArray[Any]:
        """Unit embeddings (B, width) fp32 of pictures of ``image_size``."""
        pixels_BHW3 = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
        pixels_B3HW = pixels_BHW3.to(self._device).permute(0, 3, 1, 2).float() / 255
        return self._embedded(self._clip.encode_image, self._normalize(pixels_B3HW))

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> NDArray[Any]:
        """Unit embeddings (B, width) fp32."""
        return self._embedded(self._clip.encode_text, self._tokenize(list(texts)).to(self._device))

    def _embedded(self, encode: Callable[..., Tensor], inputs: Tensor) -> NDArray[Any]:
        is_fast = self._device.type == "cuda"
        with torch.autocast(self._device.type, torch.bfloat16, enabled=is_fast):
            found = encode(inputs)
        found = torch.nn.functional.normalize(found.float(), dim=-1)
        return found.cpu().numpy()


def load_teacher(address: str) -> Teacher:
    """Load the CLIP at an address as a teacher.

    Raises:
        ConfigError, NotFoundError, ArtifactError: there is no such CLIP.
    """
    found = load_clip(address)
    return Teacher(
        found.model,
        image_size=found.vision.image_size,
        normalize=Normalize(found.vision.mean, found.vision.std),
        tokenize=found.tokenize,
    )
