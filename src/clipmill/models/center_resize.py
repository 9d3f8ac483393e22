"""A picture as a CLIP image tower reads it outside of training."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def center_resize(image: Image.Image, size: int) -> NDArray[Any]:
    """The largest central square, resized to (size, size, 3) uint8, bicubic."""
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=box))
