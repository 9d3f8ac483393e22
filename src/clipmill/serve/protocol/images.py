"""Images of a request: as base64, tensors or files, decoded within limits.

Shapes: n images in a request, H W an image's height and width.
"""

import base64
import binascii
import math
import re
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from clipmill.errors import BadSampleError
from clipmill.images import (
    exif_orientation,
    has_heic,
    image_format,
    image_size,
    open_image,
    to_rgb,
    upright,
)
from clipmill.serve.config import ServingConfig
from clipmill.serve.errors import BadRequestError, RejectReason

Source = bytes | NDArray[np.uint8]
"""An image as it was sent: an encoded file, or pixels (H, W, 3)."""

DATATYPES: Final = {
    "uint8": "UINT8",
    "float16": "FP16",
    "float32": "FP32",
    "int64": "INT64",
    "object": "BYTES",
}
"""Open Inference Protocol's name of each NumPy type that an output may have."""


_DECODED: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
_DECODED_NAMES: Final = "JPEG, PNG, WebP, AVIF, GIF, TIFF and BMP"
_DATA_URI: Final = re.compile(r"data:[^,]{0,200};base64,", re.IGNORECASE)
_SPACE: Final = re.compile(r"\s+")
_URL_SAFE: Final = str.maketrans("-_", "+/")


class DecodedImage(NamedTuple):
    """An image for the network, and the size that it was sent with."""

    pixels_HW3: NDArray[np.uint8]
    """RGB, upright; scaled down where it was larger than ``max_network_pixels``."""
    size: tuple[int, int]
    """Height and width before scaling, upright."""


def images_from_tensor(datatype: str, shape: Sequence[int], values: NDArray[Any]) -> list[Source]:
    """Return the images of a tensor: BYTES (n,), or pixels (H, W, 3) or (n, H, W, 3).

    Pixels are UINT8, or FP32 or FP16 from 0 to 1. ``values`` holds the tensor's elements in order;
    text among BYTES is base64, as JSON needs.

    Raises:
        BadRequestError: another datatype or shape, or values that don't fit them.
    """
    num_dimensions = {"BYTES": (1,), "UINT8": (3, 4), "FP32": (3, 4), "FP16": (3, 4)}.get(
        datatype, ()
    )
    if len(shape) not in num_dimensions or (datatype != "BYTES" and shape[-1] != 3):
        raise BadRequestError(
            RejectReason.TENSOR,
            f"'image' was {datatype[:20]} {str(list(shape))[:60]}; "
            "expected BYTES [n], or UINT8, FP32 or FP16 [H, W, 3] or [n, H, W, 3]",
        )
    if values.size != np.prod(shape, dtype=object) or values.size == 0:
        raise BadRequestError(
            RejectReason.TENSOR,
            f"'image' has {values.size} elements, but its shape is {list(shape)}",
        )
    if datatype == "BYTES":
        return [v if isinstance(v, bytes) else decode_base64(v) for v in values.ravel()]
    if datatype in {"FP32", "FP16"}:
        values = _uint8_from_float(datatype, values)
    if values.dtype.kind not in "iu" or values.min() < 0 or values.max() > 255:
        raise BadRequestError(
            RejectReason.TENSOR, "'image' is UINT8, but not all values are 0 to 255"
        )
    images_nHW3 = values.astype(np.uint8, copy=False).reshape(-1, *shape[-3:])
    return list(images_nHW3)


def _uint8_from_float(datatype: str, values: NDArray[Any]) -> NDArray[np.uint8]:
    if values.dtype.kind not in "fiu" or not ((values >= 0) & (values <= 1)).all():
        raise BadRequestError(
            RejectReason.TENSOR, f"'image' is {datatype}, but not all values are 0 to 1"
        )
    # Not in half precision, which is too coarse for the product.
    pixels: NDArray[np.uint8] = np.rint(np.multiply(values, 255, dtype=np.float32)).astype(np.uint8)
    return pixels


def decode_base64(text: object) -> bytes:
    """Return the bytes of a base64 string; raises BadRequestError for anything else."""
    if not isinstance(text, str):
        raise BadRequestError(
            RejectReason.BASE64, f"expected base64 text, got {type(text).__name__}"
        )
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        pass
    # As MIME, URLs and browsers have it: with line breaks, another alphabet or a prefix.
    text = _SPACE.sub("", _DATA_URI.sub("", text, count=1)).translate(_URL_SAFE).rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRequestError(
            RejectReason.BASE64, f"an image's text isn't base64: {error}"
        ) from error


def decode_image(source: Source, config: ServingConfig) -> DecodedImage:
    """Return RGB pixels of one image, within the limits.

    Raises:
        BadRequestError: it is unreadable, too large or too thin.
    """
    if not isinstance(source, bytes):
        height, width = source.shape[:2]
        _check_size(width, height, config)
        return _scale_down(Image.fromarray(source), (height, width), config, source)
    if len(source) > config.max_image_bytes:
        raise BadRequestError(
            RejectReason.IMAGE_SIZE,
            f"an image has {len(source)} bytes; at most {config.max_image_bytes} are read "
            "(max_image_bytes)",
        )
    name = image_format(source)
    if name is None or not (name in _DECODED or (name == "HEIC" and has_heic())):
        hint = " (HEIC too, with the extra 'heic')" if name == "HEIC" else ""
        raise BadRequestError(
            RejectReason.IMAGE_UNREADABLE,
            f"an image is {name or 'of an unknown format'}; {_DECODED_NAMES} are read{hint}",
        )
    try:
        if name in {"JPEG", "PNG", "WEBP"}:  # whose decoders may allocate on opening
            _check_size(*image_size(source), config)
        with open_image(source, name) as image:
            return _decode(image, config)
    except BadRequestError:
        raise
    except (BadSampleError, UnidentifiedImageError) as error:
        raise _unreadable_error(name) from error
    except Exception as error:  # decoders raise whatever a broken file provokes
        raise _unreadable_error(name) from error


def _decode(image: Image.Image, config: ServingConfig) -> DecodedImage:
    width, height = image.size
    _check_size(width, height, config)
    scale = _scale(width * height, config)
    if scale < 1:
        # A JPEG is decoded at a half, a quarter or an eighth in a fraction of the time.
        image.draft(None, (math.ceil(width * scale), math.ceil(height * scale)))
    image.load()
    is_on_its_side = exif_orientation(image) >= 5
    size = (width, height) if is_on_its_side else (height, width)
    return _scale_down(to_rgb(upright(image)), size, config)


def _scale_down(
    image: Image.Image,
    size: tuple[int, int],
    config: ServingConfig,
    pixels_HW3: NDArray[np.uint8] | None = None,
) -> DecodedImage:
    """Return an image within ``max_network_pixels``; ``pixels_HW3`` are its pixels, if at hand."""
    scale = _scale(size[0] * size[1], config)
    if scale < 1:
        height, width = (max(1, math.floor(side * scale)) for side in size)
        image = image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0)
        pixels_HW3 = None
    return DecodedImage(np.asarray(image) if pixels_HW3 is None else pixels_HW3, size)


def scale_to(array_HW: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """Return an output of an image that was scaled down at the image's size (nearest neighbor)."""
    if array_HW.shape == size:
        return array_HW
    height, width = size
    image = Image.fromarray(array_HW)
    return np.asarray(image.resize((width, height), Image.Resampling.NEAREST))


def scale_boxes(
    boxes_N4: NDArray[Any], size: tuple[int, int], network_size: tuple[int, int]
) -> NDArray[Any]:
    """Return boxes of an image that was scaled down to ``network_size`` in its own pixels."""
    if size == network_size:
        return boxes_N4
    y, x = (a / b for a, b in zip(size, network_size, strict=True))
    scaled_N4: NDArray[Any] = boxes_N4 * np.array([x, y, x, y], np.float32)
    return scaled_N4


def _scale(num_pixels: int, config: ServingConfig) -> float:
    return min(1.0, math.sqrt(config.max_network_pixels / num_pixels))


def _unreadable_error(name: str) -> BadRequestError:
    return BadRequestError(
        RejectReason.IMAGE_UNREADABLE, f"an image begins as {name} but isn't a whole {name} file"
    )


def _check_size(width: int, height: int, config: ServingConfig) -> None:
    if width * height > config.max_pixels:
        raise BadRequestError(
            RejectReason.IMAGE_SIZE,
            f"an image has {width} x {height} pixels; at most {config.max_pixels} are read "
            "(max_pixels)",
        )
    if max(width, height) > config.max_aspect_ratio * min(width, height):
        raise BadRequestError(
            RejectReason.IMAGE_SHAPE,
            f"an image is {width} x {height}; "
            f"its sides may differ by a factor of {config.max_aspect_ratio:g} at most "
            "(max_aspect_ratio)",
        )
