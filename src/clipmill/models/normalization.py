"""Images in 0..1 to what a tower expects. Everything outside a tower holds images in 0..1."""

import torch
from torch import Tensor, nn

from clipmill.models.towers import CLIP_MEAN, CLIP_STD


class Normalize(nn.Module):
    """``(images - mean) / std`` by channel; holds no state that a checkpoint would save."""

    mean_C11: Tensor
    std_C11: Tensor

    def __init__(
        self,
        mean: tuple[float, float, float] = CLIP_MEAN,
        std: tuple[float, float, float] = CLIP_STD,
    ) -> None:
        super().__init__()
        self.register_buffer("mean_C11", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std_C11", torch.tensor(std)[:, None, None], persistent=False)

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """Normalised images of the same shape and memory layout."""
        normalized: Tensor = (images_B3HW - self.mean_C11) / self.std_C11
        return normalized
