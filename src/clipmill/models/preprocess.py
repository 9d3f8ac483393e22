"""A picture as a CLIP image tower reads it outside of training."""

from typing import TYPE_CHECKING, Any
import numpy as np
from numpy.typing import NDArray
from PIL import Image
import torch
from torch import Tensor, nn
from clipmill.models.config import CLIP_MEAN, CLIP_STD

if TYPE_CHECKING:
    from clipmill.models.config import VisionConfig


def center_resize(image: Image.Image, size: int) -> NDArray[Any]:
    """The largest central square, resized to (size, size, 3) uint8, bicubic."""
    return _central_square(image, size, Image.Resampling.BICUBIC)


def tower_image(image: Image.Image, vision: "VisionConfig") -> NDArray[Any]:
    """The image (S, S, 3) uint8 at a tower's size, resized as the tower's images were."""
    size = vision.image_size
    resampling = Image.Resampling[vision.interpolation.upper()]
    if vision.resize == "center":
        return _central_square(image, size, resampling)
    if vision.resize == "squash":
        return np.asarray(image.resize((size, size), resampling))
    # Rounded as in torchvision's Resize and CenterCrop, which open_clip uses.
    shorter = min(image.size)
    width, height = (int(size * side / shorter) for side in image.size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    resized = image.resize((width, height), resampling)
    return np.asarray(resized.crop((left, top, left + size, top + size)))


def _central_square(image: Image.Image, size: int, resampling: Image.Resampling) -> NDArray[Any]:
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    return np.asarray(image.resize((size, size), resampling, box=box))



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
