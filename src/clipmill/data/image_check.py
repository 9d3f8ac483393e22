"""Whether an image decodes, at the least cost that can tell.

A JPEG is decoded by libjpeg-turbo at an eighth of its size: that reads every coded bit, which is
where damage shows, and leaves out most of the arithmetic.
"""

import io
from dataclasses import dataclass

import simplejpeg
from PIL import ExifTags, Image

from clipmill.errors import BadSampleError
from clipmill.images import decode_rgb, image_size

_SCALE = 8
_JPEG = b"\xff\xd8"
# Markers of ITU-T T.81, table B.1.
_START_OF_SCAN, _APP1 = 0xDA, 0xE1
# The orientations of EXIF that turn a picture on its side (TIFF tag 274).
_ON_ITS_SIDE = (5, 6, 7, 8)


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """Which images are let in."""

    max_pixels: int
    """Largest width x height."""
    min_side: int
    """Shortest side, in pixels."""


def check_image(data: bytes, limits: ImageLimits) -> tuple[int, int]:
    """(width, height) in pixels of the upright picture, which decodes to its end.

    Raises BadSampleError: ``empty-file``, ``unreadable-image``, ``image-too-large``,
    ``image-too-small``.
    """
    if not data:
        raise BadSampleError("empty-file", "0 bytes")
    width, height = image_size(data)
    if width * height > limits.max_pixels:
        raise BadSampleError("image-too-large", f"{width} x {height} pixels")
    if min(width, height) < limits.min_side:
        raise BadSampleError("image-too-small", f"{width} x {height} pixels")
    if data.startswith(_JPEG) and _jpeg_decodes(data):
        return (height, width) if _is_on_its_side(data) else (width, height)
    # Not a JPEG, or one that libjpeg warns of: Pillow's word counts.
    upright = decode_rgb(data)
    return upright.width, upright.height


def _jpeg_decodes(data: bytes) -> bool:
    try:
        simplejpeg.decode_jpeg(data, "GRAY", min_factor=_SCALE, min_width=1, min_height=1)
    except ValueError:
        return False
    return True


def _has_exif(data: bytes) -> bool:
    """Whether one of the segments before the picture's data is EXIF's (APP1)."""
    position = 2
    while data[position : position + 1] == b"\xff":
        marker = data[position + 1]
        if marker == _START_OF_SCAN:
            return False
        if marker == _APP1 and data.startswith(b"Exif\0\0", position + 4):
            return True
        # A fill byte, or else a segment with its length.
        is_fill = marker == 0xFF
        length = int.from_bytes(data[position + 2 : position + 4])
        position += 1 if is_fill else 2 + length
    return False


def _is_on_its_side(data: bytes) -> bool:
    # Where there is no EXIF segment, which is cheap to see, Pillow needn't look.
    if not _has_exif(data):
        return False
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            if "exif" not in image.info:
                return False
            return image.getexif().get(ExifTags.Base.Orientation) in _ON_ITS_SIDE
    except Exception as error:  # decoders raise whatever a broken file provokes
        raise BadSampleError("unreadable-image", str(error)) from error
