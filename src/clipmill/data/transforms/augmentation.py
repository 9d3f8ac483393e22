"""Augmentation of one image: random resized crops, and augmentations stored as numbers.

All randomness is from the generator that is passed in. A teacher's embedding of an augmented image
is only valid for that very image, so reinforced data stores how it was made (MobileCLIP, CVPR
2024): a crop, then operations of RandAugment (Cubuk et al. 2020), replayed at any size.
"""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from clipmill.config import Config
from clipmill.errors import BadSampleError, BadSampleReason
from clipmill.images import MAX_PIXELS, decode_rgb, image_size

if TYPE_CHECKING:
    from torch import Tensor

REDUCTIONS = (8, 4, 2, 1)
"""Pixels of a side that may become one while decoding, most first."""

# The EXIF tag that says how an image is turned; 1 is upright.
_ORIENTATION = 0x0112


class EncodedImage:
    """An image file of known size, decoded no finer than needed.

    A JPEG lies in blocks of 8 x 8 frequencies, and a decoder that inverts the lower ones alone
    returns the image at a half, a quarter or an eighth of its size in a fraction of the time
    (libjpeg-turbo has vector code for these three). Anything but a plain JPEG in an upright
    position is decoded by Pillow, exactly as ``decode_rgb`` does.
    """

    def __init__(self, data: bytes) -> None:
        """Read the header; a file that only Pillow decodes rightly is decoded at once.

        Raises BadSampleError: ``image_too_large``, or ``unreadable_image``.
        """
        self.width, self.height = image_size(data)
        """Pixels of the upright image."""
        if self.width * self.height > MAX_PIXELS:
            raise BadSampleError(
                BadSampleReason.IMAGE_TOO_LARGE, f"{self.width} x {self.height} pixels"
            )
        self._data = data
        self._decoded_HW3: NDArray[np.uint8] | None = None
        if not (data.startswith(b"\xff\xd8") and _is_simple_jpeg(data)):
            self._decoded_HW3 = np.array(decode_rgb(data))
            self.height, self.width = self._decoded_HW3.shape[:2]

    @property
    def can_downscale(self) -> bool:
        """True if ``decode`` may return fewer pixels than the file has."""
        return self._decoded_HW3 is None

    def decode(self, reduction: int) -> tuple[NDArray[np.uint8], int]:
        """Pixels (H, W, 3), and how many of the file's, a side, became one of them.

        That is ``reduction``, one of REDUCTIONS; or 1 where the file isn't reducible, or turns
        out to be damaged. Raises BadSampleError as ``decode_rgb`` does.
        """
        if self._decoded_HW3 is not None:
            return self._decoded_HW3, 1
        height, width = -(-self.height // reduction), -(-self.width // reduction)
        try:
            pixels_HW3: NDArray[np.uint8] = simplejpeg.decode_jpeg(
                self._data, "RGB", min_height=height, min_width=width
            )
        except ValueError:
            # Pillow forgives damage that leaves every pixel in place.
            pixels_HW3 = np.array(decode_rgb(self._data))
            height, width, reduction = self.height, self.width, 1
        if pixels_HW3.shape != (height, width, 3):
            raise BadSampleError(
                BadSampleReason.UNREADABLE_IMAGE, "its size isn't the one in its header"
            )
        return pixels_HW3, reduction


def _is_simple_jpeg(data: bytes) -> bool:
    """Return whether a JPEG is stored upright, in color or gray."""
    try:
        if simplejpeg.decode_jpeg_header(data)[2] not in {"YCbCr", "RGB", "Gray"}:
            return False
        if b"Exif\0\0" not in data:
            return True
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
            return bool(image.getexif().get(_ORIENTATION, 1) == 1)
    except Exception:  # noqa: BLE001  # a broken header raises whatever it provokes
        return False


@dataclass(frozen=True, kw_only=True, slots=True)
class RandomResizedCropConfig(Config):
    """A crop of random area and aspect, resized to a square."""

    scale: tuple[float, float] = (0.9, 1.0)
    """Share of the image's area, lowest and highest (CLIP-QC, Table 11)."""
    ratio: tuple[float, float] = (0.75, 1.33)
    """Width over height, lowest and highest (CLIP-QC, Table 11)."""


@dataclass(frozen=True, slots=True)
class Box:
    """A window of an image, in its pixels."""

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
    """A window into an image of this size, as torchvision's RandomResizedCrop draws it."""
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
    """Crop an image to ``box``, as a (3, size, size) uint8 tensor (see CropTransform)."""
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
    if image.can_downscale:
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


_CROP_NUMBERS = 4

_FILL = (124, 116, 104)  # timm's, the mean of ImageNet


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredAugmentationConfig(Config):
    """Distribution of stored augmentations."""

    crop: RandomResizedCropConfig = RandomResizedCropConfig(scale=(0.08, 1.0))
    """The crop."""
    num_operations: int = 2
    """Operations of RandAugment, one after another; 0 for the crop alone."""
    magnitude: float = 9.0
    """Strength of operations, of 10."""
    magnitude_deviation: float = 0.5
    """Standard deviation of that strength."""


def sample_augmentation(
    width: int, height: int, config: StoredAugmentationConfig, generator: np.random.Generator
) -> list[float]:
    """The numbers of one augmentation for an image of this size, pixels."""
    numbers = _draw_crop(width / height, config.crop, generator)
    for _ in range(config.num_operations):
        operation = int(generator.integers(len(_OPERATIONS)))
        level = generator.normal(config.magnitude, config.magnitude_deviation) / 10
        sign = 1.0 if generator.random() < 0.5 else -1.0
        numbers += [float(operation), sign * float(np.clip(level, 0.0, 1.0))]
    return numbers


def replay(image: Image.Image, size: int, numbers: Sequence[float]) -> Image.Image:
    """The augmented image at (size, size), bicubic; the same at any time, nearly at any size."""
    left, top, width, height = numbers[:_CROP_NUMBERS]
    box = (
        left * image.width,
        top * image.height,
        min((left + width), 1.0) * image.width,
        min((top + height), 1.0) * image.height,
    )
    image = image.resize((size, size), Image.Resampling.BICUBIC, box=box)
    operations = numbers[_CROP_NUMBERS:]
    for operation, level in zip(operations[::2], operations[1::2], strict=True):
        image = list(_OPERATIONS.values())[int(operation)](image, level)
    return image


class ReplayTransform:
    """A loader's replay: an image file and stored numbers to a (3, size, size) uint8 tensor."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __call__(self, data: bytes, numbers_K: NDArray[np.float32]) -> "Tensor":
        """The augmentation of these numbers; BadSampleError if the file can't be decoded."""
        import torch

        image = replay(decode_rgb(data), self._size, numbers_K.tolist())
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _draw_crop(
    aspect: float, config: RandomResizedCropConfig, generator: np.random.Generator
) -> list[float]:
    """Left, top, width and height as shares of an image of this width over height."""
    low, high = np.log(config.ratio)
    for _ in range(10):
        area = generator.uniform(*config.scale)
        ratio = float(np.exp(generator.uniform(low, high))) / aspect
        width, height = float(np.sqrt(area * ratio)), float(np.sqrt(area / ratio))
        if width <= 1 and height <= 1:
            left, top = generator.uniform(0, 1 - width), generator.uniform(0, 1 - height)
            return [float(left), float(top), width, height]
    width = min(1.0, config.ratio[1] / aspect)
    height = min(1.0, aspect / config.ratio[0])
    return [(1 - width) / 2, (1 - height) / 2, width, height]


def _affine(image: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    return image.transform(
        image.size,
        Image.Transform.AFFINE,
        matrix,
        resample=Image.Resampling.BICUBIC,
        fillcolor=_FILL,
    )


def _enhanced(kind: Callable[[Image.Image], Any]) -> Callable[[Image.Image, float], Image.Image]:
    def operation(image: Image.Image, level: float) -> Image.Image:
        changed: Image.Image = kind(image).enhance(1 + 0.9 * level)
        return changed

    return operation


def _rotate(image: Image.Image, level: float) -> Image.Image:
    return image.rotate(30 * level, resample=Image.Resampling.BICUBIC, fillcolor=_FILL)


def _solarize_add(image: Image.Image, level: float) -> Image.Image:
    table = [min(255, v + int(110 * abs(level))) if v < 128 else v for v in range(256)]
    return image.point(table * 3)


_OPERATIONS: Mapping[str, Callable[[Image.Image, float], Image.Image]] = {
    "auto_contrast": lambda image, _: ImageOps.autocontrast(image),
    "equalize": lambda image, _: ImageOps.equalize(image),
    "invert": lambda image, _: ImageOps.invert(image),
    "rotate": _rotate,
    "posterize": lambda image, level: ImageOps.posterize(image, 4 - int(4 * abs(level)) or 1),
    "solarize": lambda image, level: ImageOps.solarize(image, 256 - int(256 * abs(level))),
    "solarize_add": _solarize_add,
    "color": _enhanced(ImageEnhance.Color),
    "contrast": _enhanced(ImageEnhance.Contrast),
    "brightness": _enhanced(ImageEnhance.Brightness),
    "sharpness": _enhanced(ImageEnhance.Sharpness),
    "shear_x": lambda image, level: _affine(image, (1, 0.3 * level, 0, 0, 1, 0)),
    "shear_y": lambda image, level: _affine(image, (1, 0, 0, 0.3 * level, 1, 0)),
    "translate_x": lambda image, level: _affine(image, (1, 0, 0.45 * level * image.width, 0, 1, 0)),
    "translate_y": lambda image, level: _affine(
        image, (1, 0, 0, 0, 1, 0.45 * level * image.height)
    ),
}
"""RandAugment's operations; a stored number is a place in this order, so it never changes."""
