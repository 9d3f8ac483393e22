"""Read and validate one item of a source: its image decodes, its caption is UTF-8.

A JPEG is decoded by libjpeg-turbo at an eighth of its size: that reads every coded bit, which is
where damage shows, and saves most of the arithmetic.
"""

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import simplejpeg
from PIL import ExifTags, Image

from clipmill.data.sources.base import Entry, has_text
from clipmill.data.sources.reinforcement import resized_rows
from clipmill.data.transforms.torchvision_replay import TORCHVISION_AUGMENTATION
from clipmill.errors import BadSampleError, BadSampleReason
from clipmill.images import (
    decode_rgb,
    exif_orientation,
    has_heic,
    image_format,
    image_size,
    open_image,
    to_rgb,
    upright,
)

UID_LENGTH = 20

# Half a SHA-256: among 10^10 samples two that differ agree in it once in 10^18 such datasets.
FINGERPRINT_BYTES = 16

_JPEG_REDUCTION = 8

_JPEG = b"\xff\xd8"

# Formats that shards don't hold, which few tools decode, and what they become.
_CONVERTED = {"AVIF": "JPEG", "HEIC": "JPEG", "GIF": "PNG", "BMP": "PNG", "TIFF": "PNG"}
_CONVERTED_QUALITY = 95

# Markers of ITU-T T.81, table B.1.
_START_OF_SCAN, _APP1 = 0xDA, 0xE1

# EXIF orientations that rotate an image by 90 degrees (TIFF tag 274).
_ROTATED_90 = (5, 6, 7, 8)

# Pillow reduces by an integer factor first where the result shows no difference.
_REDUCING_GAP = 3.0


@dataclass(frozen=True, slots=True)
class ImageConstraints:
    """Sizes of images that are accepted."""

    max_pixels: int
    """Largest width x height."""
    min_side: int
    """Smallest shorter side, pixels."""


@dataclass(frozen=True, slots=True)
class PreparedPair:
    """A validated sample, ready to be written."""

    uid: str
    """UID_LENGTH hex digits of the SHA-256 over the source's image bytes and the origin, or
    what tells it from others of this origin."""
    image_bytes: bytes
    suffix: str
    """The image's suffix in lower case, with its dot."""
    caption: str
    width: int
    """Pixels of the upright image."""
    height: int
    origin: str
    fingerprint: bytes
    """FINGERPRINT_BYTES each of the SHA-256 over the origin and over the source's image bytes:
    samples with an equal half are duplicates."""
    rows: Mapping[str, Mapping[str, Any]]
    """See ``RawPair.rows``."""
    metadata: Mapping[str, str | int] = field(default_factory=dict)
    """See ``RawPair.metadata``; with the size before resizing, unless the source has another."""


@dataclass(frozen=True, slots=True)
class IngestConfig:
    """Constraints that samples must meet, and re-encoding of images."""

    constraints: ImageConstraints
    max_caption_bytes: int
    resize_shorter_side: int
    """Pixels to which a longer shorter side is resized; 0 for no resizing."""
    jpeg_quality: int
    """JPEG quality of re-encoded images; 0 keeps the bytes of all images."""

    def read(self, entry: Entry) -> PreparedPair:
        """Read and validate an entry.

        Raises BadSampleError with one of REASONS, SourceError for a failure of the machine.
        """
        raw = entry.load()
        caption = self._caption(raw.caption)
        data = convert(raw.image_bytes, self.constraints)
        header_size = check_size(data, self.constraints)
        origin = entry.identity or entry.origin.encode()
        content = hashlib.sha256(raw.image_bytes)
        halves = (
            hashed.digest()[:FINGERPRINT_BYTES] for hashed in (hashlib.sha256(origin), content)
        )
        fingerprint = b"".join(halves)
        content.update(b"\0" + origin)
        uid = content.hexdigest()[:UID_LENGTH]
        suffix, rows = actual_suffix(raw.suffix, data), raw.rows
        is_large = min(header_size) > self.resize_shorter_side
        if self.jpeg_quality and (not self.resize_shorter_side or is_large):
            if any(row.get(TORCHVISION_AUGMENTATION) for row in rows.values()) and _is_turned(data):
                raise BadSampleError(
                    BadSampleReason.DAMAGED_RECORD,
                    "its augmentations are of the image before its EXIF turn, and it is encoded "
                    "again upright",
                )
            image = decode_rgb(data)
            original = image.size
            data, width, height = reencode(
                image, shorter_side=self.resize_shorter_side, jpeg_quality=self.jpeg_quality
            )
            rows = resized_rows(rows, original, (width, height))
            suffix = ".jpg"
        else:
            width, height = original = check_image(data, self.constraints)
        metadata = raw.metadata
        if (width, height) != original:
            sizes = {"original_height": original[1], "original_width": original[0]}
            metadata = dict(sorted({**sizes, **metadata}.items()))
        return PreparedPair(
            uid,
            data,
            suffix,
            caption,
            width,
            height,
            entry.origin,
            fingerprint,
            rows,
            metadata,
        )

    def _caption(self, raw: bytes | str) -> str:
        try:
            data = raw.encode() if isinstance(raw, str) else raw
            text = data.decode("utf-8-sig").strip()
        except UnicodeError as error:
            raise BadSampleError(BadSampleReason.CAPTION_NOT_UTF8, str(error)) from error
        if not has_text(text):
            raise BadSampleError(BadSampleReason.EMPTY_CAPTION, "no character that shows")
        if len(data) > self.max_caption_bytes:
            raise BadSampleError(BadSampleReason.CAPTION_TOO_LONG, f"{len(data)} bytes")
        return text


def actual_suffix(suffix: str, data: bytes) -> str:
    """Return ``suffix`` if it's that of the image's format, and else the format's.

    Readers of tars choose a decoder by it, and the web has many a WebP named ``.jpg``.
    """
    if data.startswith(_JPEG):
        return suffix if suffix in (".jpg", ".jpeg") else ".jpg"
    return ".png" if data.startswith(b"\x89PNG") else ".webp"


def convert(data: bytes, constraints: ImageConstraints) -> bytes:
    """Return a JPEG, PNG or WebP as it is, and an image of another format as JPEG or PNG, upright.

    AVIF and HEIC become JPEG of quality 95, the others PNG; of animations the first frame is kept.
    Raises BadSampleError: ``unreadable_image``, ``image_too_large``.
    """
    name = image_format(data)
    if name == "HEIC" and not has_heic():
        raise BadSampleError(
            BadSampleReason.UNREADABLE_IMAGE,
            "HEIC, which is read with the extra 'heic': pip install 'clipmill[heic]'",
        )
    kind = _CONVERTED.get(name or "")
    if name is None or kind is None:
        return data
    file = io.BytesIO()
    try:
        with open_image(data, name) as image:
            if image.width * image.height <= constraints.max_pixels:
                converted = to_rgb(upright(image))
                converted.save(file, kind, quality=_CONVERTED_QUALITY, subsampling="4:4:4")
                return file.getvalue()
            size = f"{image.width} x {image.height} pixels"
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadSampleError(BadSampleReason.IMAGE_TOO_LARGE, "beyond what Pillow opens") from error
    except Exception as error:  # decoders raise whatever a broken file provokes
        raise BadSampleError(BadSampleReason.UNREADABLE_IMAGE, f"no whole {name}") from error
    raise BadSampleError(BadSampleReason.IMAGE_TOO_LARGE, size)


def check_size(data: bytes, constraints: ImageConstraints) -> tuple[int, int]:
    """Return width and height (pixels) from an image's header, before any turn.

    Raises BadSampleError: ``empty_file``, ``unreadable_image``, ``image_too_large``,
    ``image_too_small``.
    """
    if not data:
        raise BadSampleError(BadSampleReason.EMPTY_FILE, "0 bytes")
    width, height = image_size(data)
    if width * height > constraints.max_pixels:
        raise BadSampleError(BadSampleReason.IMAGE_TOO_LARGE, f"{width} x {height} pixels")
    if min(width, height) < constraints.min_side:
        raise BadSampleError(BadSampleReason.IMAGE_TOO_SMALL, f"{width} x {height} pixels")
    return width, height


def check_image(data: bytes, constraints: ImageConstraints) -> tuple[int, int]:
    """Decode an image to its end, and return width and height (pixels) of the upright image.

    Raises BadSampleError, as ``check_size`` too.
    """
    width, height = check_size(data, constraints)
    if data.startswith(_JPEG) and _jpeg_decodes(data):
        return (height, width) if _is_rotated_90(data) else (width, height)
    # Not a JPEG, or one that libjpeg warns about: Pillow decides.
    image = decode_rgb(data)
    return image.width, image.height


def _jpeg_decodes(data: bytes) -> bool:
    try:
        simplejpeg.decode_jpeg(data, "GRAY", min_factor=_JPEG_REDUCTION, min_width=1, min_height=1)
    except ValueError:
        return False
    return True


def _has_exif(data: bytes) -> bool:
    """Return whether an EXIF segment (APP1) precedes the image data."""
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


def _is_rotated_90(data: bytes) -> bool:
    # Without an EXIF segment, which is cheap to check, skip Pillow.
    if not _has_exif(data):
        return False
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            if "exif" not in image.info:
                return False
            return image.getexif().get(ExifTags.Base.Orientation) in _ROTATED_90
    except Exception as error:  # decoders raise whatever a broken file provokes
        raise BadSampleError(BadSampleReason.UNREADABLE_IMAGE, str(error)) from error


def _is_turned(data: bytes) -> bool:
    with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as image:
        return exif_orientation(image) != 1


def reencode(image: Image.Image, *, shorter_side: int, jpeg_quality: int) -> tuple[bytes, int, int]:
    """Return an image as JPEG bytes, and its width and height (pixels).

    ``shorter_side`` bounds the shorter side (0: no resizing).
    """
    shorter = min(image.size)
    if shorter_side and shorter > shorter_side:
        scale = shorter_side / shorter
        width, height = (max(1, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=_REDUCING_GAP)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=jpeg_quality)
    return buffer.getvalue(), image.width, image.height
