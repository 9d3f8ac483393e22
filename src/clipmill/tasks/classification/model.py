"""Classification network: an encoder with a linear layer in place of its projection.

Shapes: B batch, H W image, S test side, C classes.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from clipmill.models.config import EncoderConfig
from clipmill.models.encoders import build_pooled
from clipmill.tasks.config import ClassificationConfig


class ClassificationNetwork(nn.Module):
    """Images (B, 3, H, W) in 0..1 of any size to probabilities (B, C)."""

    def __init__(
        self, config: ClassificationConfig, encoder: EncoderConfig, num_classes: int
    ) -> None:
        super().__init__()
        self.encoder = build_pooled(encoder)
        self.head = nn.Linear(self.encoder.width, num_classes)
        self.test_size = config.test_size
        """Side of the squares that the encoder takes, pixels."""
        self._config = config

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """Return probabilities of the classes of the central square, float32."""
        height, width = images_B3HW.shape[-2:]
        side = min(height, width) * self._config.test_crop
        size = self.test_size
        factor = size / side
        resized = (max(size, round(height * factor)), max(size, round(width * factor)))
        if resized != (height, width):
            images_B3HW = F.interpolate(
                images_B3HW, resized, mode="bicubic", align_corners=False, antialias=True
            ).clamp(0, 1)
        top, left = (resized[0] - size) // 2, (resized[1] - size) // 2
        center_B3SS = images_B3HW[..., top : top + size, left : left + size]
        probabilities_BC: Tensor = self.head(self.encoder(center_B3SS)).float().softmax(dim=1)
        return probabilities_BC
