"""Resizing of an image to a tower's input, outside of training."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipmill.models.config import VisionConfig


def center_crop_resize(image: Image.Image, size: int) -> NDArray[Any]:
    """Return the largest central square, resized to (size, size, 3) uint8, bicubic."""
    return _central_square(image, size, Image.Resampling.BICUBIC)


def tower_image(image: Image.Image, vision: VisionConfig) -> NDArray[Any]:
    """Return the image (S, S, 3) uint8 at a tower's size, resized as the tower's images were."""
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
