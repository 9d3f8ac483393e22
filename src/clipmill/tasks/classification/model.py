"""The classification network: an encoder, and a linear layer where its projection was.

Shapes: B batch, H W image, S test side, C classes.
"""

from torch import Tensor, nn
from torch.nn import functional as F
from clipmill.models.config import EncoderConfig
from clipmill.models.pooled import build_pooled
from clipmill.tasks.classification.task import ClassificationConfig


class ClassificationNetwork(nn.Module):
    """Images (B, 3, H, W) in 0..1 of any size to probabilities (B, C)."""

    def __init__(
        self, config: ClassificationConfig, encoder: EncoderConfig, num_classes: int
    ) -> None:
        super().__init__()
        self.encoder = build_pooled(encoder)
        self.head = nn.Linear(self.encoder.width, num_classes)
        self._config = config

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """Probabilities of the central square's classes, float32."""
        height, width = images_B3HW.shape[-2:]
        side = min(height, width) * self._config.test_crop
        size = self._config.test_size
        factor = size / side
        whole = (max(size, round(height * factor)), max(size, round(width * factor)))
        if whole != (height, width):
            images_B3HW = F.interpolate(
                images_B3HW, whole, mode="bicubic", align_corners=False, antialias=True
            ).clamp(0, 1)
        top, left = (whole[0] - size) // 2, (whole[1] - size) // 2
        centre_B3SS = images_B3HW[..., top : top + size, left : left + size]
        probabilities_BC: Tensor = self.head(self.encoder(centre_B3SS)).float().softmax(dim=1)
        return probabilities_BC
