"""Augmentation of one image, all randomness from the generator that is handed in."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from clipmill.config import Config
from clipmill.data.decode import REDUCTIONS, EncodedImage

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class RandomResizedCropConfig(Config):
    """A crop of random area and aspect, resized to a square."""

    scale: tuple[float, float] = (0.9, 1.0)
    """Share of the image's area, lowest and highest (CLIP-QC, Table 11)."""
    ratio: tuple[float, float] = (0.75, 1.33)
    """Width over height, lowest and highest (CLIP-QC, Table 11)."""


@dataclass(frozen=True, slots=True)
class Box:
    """A window of a picture, in its pixels."""

    left: int
    top: int
    width: int
    height: int

    def snapped(self, step: int) -> "Box":
        """The nearest window inside this one whose edges are multiples of ``step``."""
        left, top = (-(-start // step) * step for start in (self.left, self.top))
        right = (self.left + self.width) // step * step
        bottom = (self.top + self.height) // step * step
        return Box(left, top, right - left, bottom - top)


def draw_crop(
    width: int, height: int, config: RandomResizedCropConfig, generator: np.random.Generator
) -> Box:
    """A window into a picture of this size, as torchvision's RandomResizedCrop draws it."""
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
            return Box(left, top, crop_width, crop_height)
    return _central_crop(width, height, config.ratio)


class CropTransform:
    """A loader's transform: random crop to a square, as a (3, size, size) uint8 tensor.

    A JPEG is decoded no finer than the crop needs: by the largest reduction that leaves at least
    ``size`` pixels a side; the window's edges move by less than that reduction to match.
    """

    def __init__(self, size: int, config: RandomResizedCropConfig) -> None:
        self._size = size
        self._config = config

    def __call__(self, data: bytes, generator: np.random.Generator) -> "Tensor":
        """The crop of an image file that ``generator`` draws, bicubic, channels last in memory.

        Raises BadSampleError if the file can't be decoded.
        """
        image = EncodedImage(data)
        box = draw_crop(image.width, image.height, self._config, generator)
        return crop_to_square(image, box, self._size)


def crop_to_square(image: EncodedImage, box: Box, size: int) -> "Tensor":
    """What ``box`` shows of a picture, as a (3, size, size) uint8 tensor (see CropTransform)."""
    import torch

    reduction = _reduction(image, box, size)
    box = box.snapped(reduction)
    pixels_HW3, reduction = image.decode(reduction)
    rows = slice(box.top // reduction, (box.top + box.height) // reduction)
    columns = slice(box.left // reduction, (box.left + box.width) // reduction)
    window_1HW3 = torch.from_numpy(pixels_HW3[None, rows, columns])
    # Of Pillow's bicubic this differs by rounding; on bytes with channels last it's vector code.
    crop_13HW: Tensor = torch.nn.functional.interpolate(
        window_1HW3.permute(0, 3, 1, 2), (size, size), mode="bicubic", antialias=True
    )
    return crop_13HW[0]


def _reduction(image: EncodedImage, box: Box, size: int) -> int:
    """The largest reduction that leaves at least ``size`` pixels of the box a side."""
    if image.is_reducible:
        for reduction in REDUCTIONS:
            window = box.snapped(reduction)
            if min(window.width, window.height) >= size * reduction:
                return reduction
    return 1


def _central_crop(width: int, height: int, ratio: tuple[float, float]) -> Box:
    """The largest central crop whose aspect is allowed."""
    crop_width = min(width, round(height * ratio[1]))
    crop_height = min(height, round(width / ratio[0]))
    return Box((width - crop_width) // 2, (height - crop_height) // 2, crop_width, crop_height)
