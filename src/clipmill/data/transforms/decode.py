"""Image bytes to the pixels that a crop needs, and no finer ones.

A JPEG lies in blocks of 8 x 8 frequencies, and a decoder that inverts the lower ones alone gets
the picture at a half, a quarter or an eighth of its size in a fraction of the time (libjpeg-turbo
has vector code for these three). Whatever isn't a plain JPEG in an upright position is decoded by
Pillow, exactly as ``decode_rgb`` does.
"""

import io

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from clipmill.errors import BadSampleError, BadSampleReason
from clipmill.images import MAX_PIXELS, decode_rgb, image_size

REDUCTIONS = (8, 4, 2, 1)
"""How many pixels of a side may become one while decoding, most first."""

# The EXIF tag that says how a picture is turned; 1 is upright.
_ORIENTATION = 0x0112


class EncodedImage:
    """A picture file of known size, decoded as finely as it's asked to be."""

    def __init__(self, data: bytes) -> None:
        """Read the header; a file that only Pillow decodes rightly is decoded at once.

        Raises BadSampleError: ``image_too_large``, or ``unreadable_image``.
        """
        self.width, self.height = image_size(data)
        """Pixels of the upright picture."""
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
        """Whether ``decode`` may give fewer pixels than the file has."""
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
    """Whether a JPEG is stored upright, in colour or grey."""
    try:
        if simplejpeg.decode_jpeg_header(data)[2] not in {"YCbCr", "RGB", "Gray"}:
            return False
        if b"Exif\0\0" not in data:
            return True
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
            return bool(image.getexif().get(_ORIENTATION, 1) == 1)
    except Exception:  # noqa: BLE001  # a broken header raises whatever it provokes
        return False
