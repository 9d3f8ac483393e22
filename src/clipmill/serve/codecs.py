"""Images and tensors as bytes on the wire.

Shapes: n images in a request, H W an image's height and width.
"""

import base64
import binascii
import io
import struct
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from clipmill.serve.config import ServeConfig
from clipmill.serve.refusal import BadRequestError

Source = bytes | NDArray[np.uint8]
"""An image as it came: an encoded file, or pixels (H, W, 3)."""

DATATYPES: Final = {
    "uint8": "UINT8",
    "float16": "FP16",
    "float32": "FP32",
    "int64": "INT64",
    "object": "BYTES",
}
"""Open Inference Protocol's name of each NumPy type that an output may have."""

_FORMATS: Final = ("JPEG", "PNG", "WEBP")


def sources_in_tensor(datatype: str, shape: Sequence[int], values: NDArray[Any]) -> list[Source]:
    """The images of an input tensor: BYTES (n,), or UINT8 or FP32 (H, W, 3) or (n, H, W, 3).

    FP32 pixels are 0 to 1. ``values`` holds the tensor's elements in order; text among BYTES is
    base64, as JSON needs.

    Raises:
        BadRequestError: another datatype or shape, or values that don't fit them.
    """
    num_dimensions = {"BYTES": (1,), "UINT8": (3, 4), "FP32": (3, 4)}.get(datatype, ())
    if len(shape) not in num_dimensions or (datatype != "BYTES" and shape[-1] != 3):
        raise BadRequestError(
            "tensor",
            f"'image' was {datatype[:20]} {str(list(shape))[:60]}; "
            "expected BYTES [n], or UINT8 or FP32 [H, W, 3] or [n, H, W, 3]",
        )
    if values.size != np.prod(shape, dtype=object) or values.size == 0:
        raise BadRequestError(
            "tensor", f"'image' has {values.size} elements, but its shape is {list(shape)}"
        )
    if datatype == "BYTES":
        return [v if isinstance(v, bytes) else decode_base64(v) for v in values.ravel()]
    if datatype == "FP32":
        values = _bytes_of_floats(values)
    if values.dtype.kind not in "iu" or values.min() < 0 or values.max() > 255:
        raise BadRequestError("tensor", "'image' is UINT8, but not all values are 0 to 255")
    images_nHW3 = values.astype(np.uint8, copy=False).reshape(-1, *shape[-3:])
    return list(images_nHW3)


def _bytes_of_floats(values: NDArray[Any]) -> NDArray[np.uint8]:
    if values.dtype.kind not in "fiu" or not ((values >= 0) & (values <= 1)).all():
        raise BadRequestError("tensor", "'image' is FP32, but not all values are 0 to 1")
    pixels: NDArray[np.uint8] = np.rint(values * 255).astype(np.uint8)
    return pixels


def decode_base64(text: object) -> bytes:
    """The bytes that a JSON string holds as base64; BadRequestError for anything else."""
    if not isinstance(text, str):
        raise BadRequestError("base64", f"expected base64 text, got {type(text).__name__}")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRequestError("base64", f"an image's text isn't base64: {error}") from error


def decode_source(source: Source, config: ServeConfig) -> NDArray[np.uint8]:
    """RGB pixels (H, W, 3) of one image, within the limits.

    Raises:
        BadRequestError: it is unreadable, too large or too thin.
    """
    if not isinstance(source, bytes):
        _check_size(source.shape[1], source.shape[0], config)
        return source
    if len(source) > config.max_image_bytes:
        raise BadRequestError(
            "image_size",
            f"an image has {len(source)} bytes; at most {config.max_image_bytes} are read",
        )
    try:
        if source[:4] == b"RIFF":
            # Pillow allocates a WebP's whole canvas on opening, so its header is read first.
            _check_size(*_webp_size(source), config)
        with Image.open(io.BytesIO(source), formats=_FORMATS) as image:
            _check_size(*image.size, config)
            return np.asarray(_to_rgb(image))
    except BadRequestError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_many_pixels(config) from None
    except Exception as error:  # decoders raise whatever a broken file provokes
        raise BadRequestError(
            "image_unreadable", "an image is neither a whole JPEG, PNG nor WebP file"
        ) from error


def _check_size(width: int, height: int, config: ServeConfig) -> None:
    if width * height > config.max_pixels:
        raise _too_many_pixels(config)
    if max(width, height) > config.max_aspect_ratio * min(width, height):
        raise BadRequestError(
            "image_shape",
            f"an image is {width} x {height}; "
            f"its sides may differ by a factor of {config.max_aspect_ratio:g} at most",
        )


def _too_many_pixels(config: ServeConfig) -> BadRequestError:
    return BadRequestError(
        "image_size", f"an image is larger than {config.max_pixels} pixels; make it smaller"
    )


def _to_rgb(image: Image.Image) -> Image.Image:
    """Upright, 8 bits, transparent pixels over white: as the training data are read."""
    image.load()
    if "exif" in image.info:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.uint32) >> 8
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        ground = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height of the canvas, from the header (RFC 9649, sections 2.4 to 2.7)."""
    kind = data[12:16]
    if kind == b"VP8X":
        return (
            int.from_bytes(data[24:27], "little") + 1,
            int.from_bytes(data[27:30], "little") + 1,
        )
    if kind == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF
