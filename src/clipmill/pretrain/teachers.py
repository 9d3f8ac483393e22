"""Models that teach: pictures and texts in, unit embeddings out."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from clipmill.errors import NotFoundError
from clipmill.models.checkpoint import load_checkpoint
from clipmill.models.normalization import Normalize
from clipmill.models.towers import ClipConfig, build_clip


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


def load_teacher(name: str) -> Teacher:
    """A teacher by the URI of a CLIP checkpoint, or ``open_clip:NAME/TAG``.

    Raises:
        NotFoundError: open_clip doesn't have these weights, or can't reach them.
    """
    scheme, _, rest = name.partition(":")
    if scheme != "open_clip":
        card, tensors = load_checkpoint(name)
        config = ClipConfig.from_json(card.architecture)
        clip = build_clip(config)
        clip.load_state_dict(tensors)
        return Teacher(
            clip,
            image_size=config.vision.image_size,
            normalize=Normalize(config.vision.mean, config.vision.std),
            tokenize=config.text.tokenizer(),
        )
    import open_clip

    model, _, tag = rest.partition("/")
    try:
        clip = open_clip.create_model(model, pretrained=tag)
    except (OSError, RuntimeError, ValueError) as error:
        raise NotFoundError(
            f"{name} can't be had: {error}",
            expected="weights that open_clip knows, and a network or its cache to get them from",
            action="correct the name, or give a file in the tag's place",
        ) from error
    seen = open_clip.get_model_preprocess_cfg(clip)
    size = seen["size"]
    return Teacher(
        clip,
        image_size=size[0] if isinstance(size, tuple | list) else size,
        normalize=Normalize(tuple(seen["mean"]), tuple(seen["std"])),
        tokenize=open_clip.get_tokenizer(model),
    )
