"""Augmentation of one image, all randomness from the generator that is handed in."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipmill.config import Config

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class RandomResizedCropConfig(Config):
    """A crop of random area and aspect, resized to a square."""

    scale: tuple[float, float] = (0.9, 1.0)
    """Share of the image's area, lowest and highest (CLIP-QC, Table 11)."""
    ratio: tuple[float, float] = (0.75, 1.33)
    """Width over height, lowest and highest (CLIP-QC, Table 11)."""


def random_resized_crop(
    image: Image.Image,
    size: int,
    config: RandomResizedCropConfig,
    generator: np.random.Generator,
) -> NDArray[Any]:
    """A crop (size, size, 3) uint8, bicubic, as torchvision's RandomResizedCrop draws it."""
    width, height = image.size
    area = width * height
    log_low, log_high = (math.log(r) for r in config.ratio)
    for _ in range(10):
        target = area * generator.uniform(*config.scale)
        ratio = math.exp(generator.uniform(log_low, log_high))
        crop_width = round(math.sqrt(target * ratio))
        crop_height = round(math.sqrt(target / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left = int(generator.integers(0, width - crop_width + 1))
            top = int(generator.integers(0, height - crop_height + 1))
            break
    else:
        left, top, crop_width, crop_height = _central_crop(width, height, config.ratio)
    box = (left, top, left + crop_width, top + crop_height)
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=box))


class CropTransform:
    """A loader's transform: random crop to a square, as a (3, size, size) uint8 tensor."""

    def __init__(self, size: int, config: RandomResizedCropConfig) -> None:
        self._size = size
        self._config = config

    def __call__(self, image: Image.Image, generator: np.random.Generator) -> "Tensor":
        """The crop that ``generator`` draws."""
        import torch

        crop_HW3 = random_resized_crop(image, self._size, self._config, generator)
        return torch.from_numpy(crop_HW3.copy()).permute(2, 0, 1)


def center_resize(image: Image.Image, size: int) -> NDArray[Any]:
    """The largest central square, resized to (size, size, 3) uint8, bicubic."""
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=box))


def _central_crop(width: int, height: int, ratio: tuple[float, float]) -> tuple[int, int, int, int]:
    """Left, top, width and height of the largest central crop whose aspect is allowed."""
    crop_width = min(width, round(height * ratio[1]))
    crop_height = min(height, round(width / ratio[0]))
    return (width - crop_width) // 2, (height - crop_height) // 2, crop_width, crop_height
