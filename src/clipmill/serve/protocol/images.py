"""Images of a request: as base64, tensors or files, decoded within limits.

Shapes: n images in a request, H W an image's height and width.
"""

import base64
import binascii
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from clipmill.errors import BadSampleError
from clipmill.images import decode_rgb, image_size
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
    except (binascii.Error, ValueError) as error:
        raise BadRequestError(
            RejectReason.BASE64, f"an image's text isn't base64: {error}"
        ) from error


def decode_image(source: Source, config: ServingConfig) -> NDArray[np.uint8]:
    """Return RGB pixels (H, W, 3) of one image, within the limits.

    Raises:
        BadRequestError: it is unreadable, too large or too thin.
    """
    if not isinstance(source, bytes):
        _check_size(source.shape[1], source.shape[0], config)
        return source
    if len(source) > config.max_image_bytes:
        raise BadRequestError(
            RejectReason.IMAGE_SIZE,
            f"an image has {len(source)} bytes; at most {config.max_image_bytes} are read",
        )
    try:
        _check_size(*image_size(source), config)
        return np.asarray(decode_rgb(source))
    except BadSampleError as error:
        raise BadRequestError(
            RejectReason.IMAGE_UNREADABLE, "an image is neither a whole JPEG, PNG nor WebP file"
        ) from error


def _check_size(width: int, height: int, config: ServingConfig) -> None:
    if width * height > config.max_pixels:
        raise _too_many_pixels_error(config)
    if max(width, height) > config.max_aspect_ratio * min(width, height):
        raise BadRequestError(
            RejectReason.IMAGE_SHAPE,
            f"an image is {width} x {height}; "
            f"its sides may differ by a factor of {config.max_aspect_ratio:g} at most",
        )


def _too_many_pixels_error(config: ServingConfig) -> BadRequestError:
    return BadRequestError(
        RejectReason.IMAGE_SIZE,
        f"an image is larger than {config.max_pixels} pixels; make it smaller",
    )
