"""A trained CLIP as it is asked: images and texts in, unit vectors out.

Shapes: B images, M texts, D embedding width, S the image tower's side.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipmill.models.preprocess import tower_image
from clipmill.models.config import ClipConfig

if TYPE_CHECKING:
    from torch import Tensor


class ClipEmbedder:
    """Both towers on this machine's device, their branches fused."""

    def __init__(self, config: ClipConfig, tensors: "Mapping[str, Tensor]") -> None:
        import torch

        from clipmill.models.preprocess import Normalize
        from clipmill.models.execution import reparameterised
        from clipmill.models.towers import build_clip

        model = build_clip(config)
        model.load_state_dict(tensors)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = reparameterised(model).to(self._device)
        self._vision = config.vision
        self._normalize = Normalize(config.vision.mean, config.vision.std).to(self._device)
        self._tokenize = config.text.tokenizer()
        self.scale = float(model.logit_scale.detach().exp())
        """What cosines are multiplied with."""
        self.bias = 0.0 if model.logit_bias is None else float(model.logit_bias.detach())
        """What is added to them then."""

    def prepare(self, image: Image.Image) -> NDArray[np.uint8]:
        """The central square (S, S, 3)."""
        square_SS3: NDArray[np.uint8] = tower_image(image, self._vision)
        return square_SS3

    def images(self, prepared: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Embeddings (B, D) of prepared images."""
        import torch

        pixels_B3SS = torch.from_numpy(np.stack(prepared)).to(self._device).permute(0, 3, 1, 2)
        with torch.inference_mode():
            return _unit(self._model.encode_image(self._normalize(pixels_B3SS.float().div_(255))))

    def texts(self, words: Sequence[str]) -> NDArray[np.float32]:
        """Embeddings (M, D)."""
        import torch

        with torch.inference_mode():
            return _unit(self._model.encode_text(self._tokenize(words).to(self._device)))


def _unit(embedding_BD: "Tensor") -> NDArray[np.float32]:
    from torch.nn import functional as F

    unit_BD: NDArray[np.float32] = F.normalize(embedding_BD.float(), dim=-1).cpu().numpy()
    return unit_BD
