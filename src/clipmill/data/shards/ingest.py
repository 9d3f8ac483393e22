"""An image-text pair that was read and checked."""

import hashlib
import io
import simplejpeg
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from clipmill.data.sources.base import Entry
from clipmill.errors import BadSampleError
from PIL import (ExifTags, Image)
from clipmill.images import (decode_rgb, image_size)


UID_LENGTH = 20

# Half a SHA-256: among 10^10 samples two that differ agree in it once in 10^18 such datasets.
FINGERPRINT_BYTES = 16

_SCALE = 8

_JPEG = b"\xff\xd8"

# Markers of ITU-T T.81, table B.1.
_START_OF_SCAN, _APP1 = 0xDA, 0xE1

# The orientations of EXIF that turn a picture on its side (TIFF tag 274).
_ON_ITS_SIDE = (5, 6, 7, 8)

# Pillow shrinks by a whole factor first where that can't be seen in the result.
_REDUCING_GAP = 3.0

@dataclass(frozen=True, slots=True)
class ImageLimits:
    """Which images are let in."""

    max_pixels: int
    """Largest width x height."""
    min_side: int
    """Shortest side, in pixels."""

@dataclass(frozen=True, slots=True)
class Pair:
    """What a shard holds of a sample, and what finds its doubles in others."""

    uid: str
    """UID_LENGTH hex digits of the SHA-256 over image bytes, as the source has them, and origin."""
    image_bytes: bytes
    suffix: str
    """The image's suffix in lower case, with its dot."""
    caption: str
    width: int
    """Pixels of the upright picture."""
    height: int
    origin: str
    fingerprint: bytes
    """FINGERPRINT_BYTES each of the SHA-256 over the origin, and over the source's image bytes."""
    rows: Mapping[str, Mapping[str, Any]]
    """See ``RawPair.rows``."""

@dataclass(frozen=True, slots=True)
class Admission:
    """What is let into a shard, and how images are changed on the way."""

    limits: ImageLimits
    max_caption_bytes: int
    shorter_side: int
    """Pixels to which a longer shorter side is reduced; 0 leaves sizes alone."""
    jpeg_quality: int
    """Quality of re-encoded images; 0 leaves all bytes alone."""

    def read(self, entry: Entry) -> Pair:
        """Read an entry and decode its image as a proof that it can be.

        Raises BadSampleError with one of REASONS, SourceError where the machine is at fault.
        """
        raw = entry.load()
        caption = self._caption(raw.caption)
        data = raw.image_bytes
        width, height = check_image(data, self.limits)
        origin = entry.origin.encode()
        content = hashlib.sha256(data)
        halves = (
            hashed.digest()[:FINGERPRINT_BYTES] for hashed in (hashlib.sha256(origin), content)
        )
        fingerprint = b"".join(halves)
        content.update(b"\0" + origin)
        uid = content.hexdigest()[:UID_LENGTH]
        suffix = raw.suffix
        if self.jpeg_quality and (not self.shorter_side or min(width, height) > self.shorter_side):
            from clipmill.data.shards.ingest import reencode

            data, width, height = reencode(
                data, shorter_side=self.shorter_side, jpeg_quality=self.jpeg_quality
            )
            suffix = ".jpg"
        return Pair(uid, data, suffix, caption, width, height, entry.origin, fingerprint, raw.rows)

    def _caption(self, raw: bytes | str) -> str:
        try:
            data = raw.encode() if isinstance(raw, str) else raw
            text = data.decode("utf-8-sig").strip()
        except UnicodeError as error:
            raise BadSampleError("caption-not-utf8", str(error)) from error
        if not text:
            raise BadSampleError("empty-caption", "nothing but white space")
        if len(data) > self.max_caption_bytes:
            raise BadSampleError("caption-too-long", f"{len(data)} bytes")
        return text

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

def reencode(data: bytes, *, shorter_side: int, jpeg_quality: int) -> tuple[bytes, int, int]:
    """The upright picture as JPEG bytes, and its width and height in pixels.

    ``shorter_side`` bounds the shorter side (0: the size stays). Raises BadSampleError.
    """
    image = decode_rgb(data)
    shorter = min(image.size)
    if shorter_side and shorter > shorter_side:
        scale = shorter_side / shorter
        width, height = (max(1, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=_REDUCING_GAP)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=jpeg_quality)
    return buffer.getvalue(), image.width, image.height
