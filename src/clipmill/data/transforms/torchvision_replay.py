"""Replay of augmentations that were drawn by torchvision, as DataCompDR stores them.

An augmentation is a list of numbers: top, left, height and width of the crop, in pixels of the
stored image before any EXIF turn; then, for each operation of RandAugment, its index in OPERATIONS
and its magnitude (raygen/dr/transforms.py of apple/ml-mobileclip-dr). Magnitudes are used as they
are stored at any size of the output, as apple/ml-mobileclip's training does: a translation by 30
pixels stays one of 30.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipmill.images import decode_rgb

if TYPE_CHECKING:
    from torch import Tensor

TORCHVISION_AUGMENTATION: Final = "torchvision_augmentation"
"""A teacher layer's column of such augmentations."""

OPERATIONS: Final = (
    "Identity",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "Rotate",
    "Brightness",
    "Color",
    "Contrast",
    "Sharpness",
    "Posterize",
    "Solarize",
    "AutoContrast",
    "Equalize",
)
"""torchvision's operations, in the release's order; a stored number is an index in it."""

CROP_NUMBERS: Final = 4

# An image is resized to whole pixels, so a side may be off by rounding.
_ROUNDING = 2

Size = tuple[int, int]
"""Width and height, pixels."""


class TorchvisionReplay:
    """A loader's replay: an image file and stored numbers to a (3, size, size) uint8 tensor."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __call__(self, data: bytes, numbers_K: NDArray[np.float32]) -> "Tensor":
        """The augmentation of these numbers; BadSampleError if the file can't be decoded.

        EXIF is ignored, since the teachers saw the image that way.
        """
        import torch

        image = replay(decode_rgb(data, apply_exif=False), self._size, numbers_K.tolist())
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def replay(image: Image.Image, size: int, numbers: Sequence[float]) -> Image.Image:
    """The augmented image at (size, size), bit-equal to torchvision's on Pillow images."""
    from torchvision.transforms import InterpolationMode, functional

    crop = [int(number) for number in numbers[:CROP_NUMBERS]]
    image = functional.resized_crop(image, *crop, [size, size], InterpolationMode.BICUBIC)
    operations = numbers[CROP_NUMBERS:]
    for index, magnitude in zip(operations[::2], operations[1::2], strict=True):
        image = _functions()[OPERATIONS[int(index)]](image, magnitude)
    return image


def fit_crop(numbers: Sequence[float], drawn_on: Size, stored: Size) -> list[float]:
    """Return an augmentation of an image of size ``drawn_on`` for the image as it's stored.

    The numbers are kept where the sizes are equal. Raises ValueError if the crop isn't inside the
    image, or the stored image has another aspect.
    """
    top, left, height, width = numbers[:CROP_NUMBERS]
    right, bottom = left + width, top + height
    is_inside = 0 <= left < right <= drawn_on[0] and 0 <= top < bottom <= drawn_on[1]
    if not is_inside:
        raise ValueError(
            f"a crop of {width:g} x {height:g} pixels at {left:g}, {top:g} isn't inside the image "
            f"of {drawn_on[0]} x {drawn_on[1]}: it is another image, or was resized"
        )
    if drawn_on == stored:
        return list(numbers)
    x, y = stored[0] / drawn_on[0], stored[1] / drawn_on[1]
    if min(abs(x - y) * drawn_on[0], abs(x - y) * drawn_on[1]) > _ROUNDING:
        raise ValueError(
            f"an image of {drawn_on[0]} x {drawn_on[1]} pixels is stored as one of "
            f"{stored[0]} x {stored[1]}, which has another aspect"
        )
    left, right = round(left * x), round(right * x)
    top, bottom = round(top * y), round(bottom * y)
    left, top = min(left, stored[0] - 1), min(top, stored[1] - 1)
    crop = [top, left, max(1, bottom - top), max(1, right - left)]
    return [*map(float, crop), *numbers[CROP_NUMBERS:]]


@cache
def _functions() -> Mapping[str, Callable[[Image.Image, float], Image.Image]]:
    """Return what each operation does, by torchvision's functions (its RandAugment's defaults)."""
    from torchvision.transforms import functional as F

    def sheared(image: Image.Image, x: float, y: float) -> Image.Image:
        degrees = [math.degrees(math.atan(x)), math.degrees(math.atan(y))]
        changed: Image.Image = F.affine(image, 0.0, [0, 0], 1.0, degrees, center=[0, 0])
        return changed

    def shifted(image: Image.Image, x: float, y: float) -> Image.Image:
        changed: Image.Image = F.affine(image, 0.0, [int(x), int(y)], 1.0, [0.0, 0.0])
        return changed

    return {
        "Identity": lambda image, _: image,
        "ShearX": lambda image, magnitude: sheared(image, magnitude, 0),
        "ShearY": lambda image, magnitude: sheared(image, 0, magnitude),
        "TranslateX": lambda image, magnitude: shifted(image, magnitude, 0),
        "TranslateY": lambda image, magnitude: shifted(image, 0, magnitude),
        "Rotate": F.rotate,
        "Brightness": lambda image, magnitude: F.adjust_brightness(image, 1 + magnitude),
        "Color": lambda image, magnitude: F.adjust_saturation(image, 1 + magnitude),
        "Contrast": lambda image, magnitude: F.adjust_contrast(image, 1 + magnitude),
        "Sharpness": lambda image, magnitude: F.adjust_sharpness(image, 1 + magnitude),
        "Posterize": lambda image, magnitude: F.posterize(image, int(magnitude)),
        "Solarize": F.solarize,
        "AutoContrast": lambda image, _: F.autocontrast(image),
        "Equalize": lambda image, _: F.equalize(image),
    }
