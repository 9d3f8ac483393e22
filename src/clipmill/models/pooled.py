"""Image towers as one vector a picture, for classification.

Shapes: B batch, D width.
"""

from abc import abstractmethod

import torch
from torch import Tensor

from clipmill.models.dense import Encoder, ViTTokens, layers_of, timm_trunk
from clipmill.models.config import EncoderConfig
from clipmill.models.preprocess import Normalize


class PooledEncoder(Encoder):
    """Images (B, 3, H, W) in 0..1 to vectors (B, ``width``), as they were before projection."""

    width: int
    """Width of a vector."""

    @abstractmethod
    def forward(self, images_B3HW: Tensor) -> Tensor:
        """The vectors."""


class PooledViT(ViTTokens, PooledEncoder):
    """open_clip's ViT: the class token after the last norm; positions fit any grid."""

    def __init__(self, config: EncoderConfig, drop_path: float) -> None:
        super().__init__(config, drop_path)
        self.width = config.vision.width

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """The class token."""
        tokens_BND, _ = self.tokens(images_B3HW)
        return tokens_BND[:, 0]


class PooledTimm(PooledEncoder):
    """Any timm model, pooled its own way; its classifier is left out."""

    def __init__(self, config: EncoderConfig, drop_path: float) -> None:
        super().__init__()
        self.normalize = Normalize(config.mean, config.std)
        self.trunk = timm_trunk(config.vision, drop_path)
        with torch.no_grad():
            side = 2 * self.trunk.feature_info[-1]["reduction"]
            was_training = self.trunk.training
            self.width = self.trunk.eval()(torch.zeros(1, 3, side, side)).shape[1]
            self.trunk.train(was_training)
        stages = [stage["module"] for stage in self.trunk.feature_info]
        self.num_layers = len(stages)
        self._layers = layers_of(self.trunk, stages)

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """The model's own pooled features."""
        pooled_BD: Tensor = self.trunk(self.normalize(images_B3HW))
        return pooled_BD

    def layer_of(self, parameter: str) -> int:
        """The stem is layer 0; a stage's parameters carry its number, from 1."""
        return self._layers[parameter.removeprefix("trunk.")]


def build_pooled(config: EncoderConfig, *, drop_path: float = 0.0) -> PooledEncoder:
    """The encoder, with fresh weights."""
    return (PooledTimm if config.vision.timm_model else PooledViT)(config, drop_path)
