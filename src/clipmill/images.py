"""Image bytes to RGB pixels, with the size known before anything is decoded.

The files come from the web, so a header is read by hand first: Pillow's decoders may allocate
the whole canvas on opening, and its own guard is a process-wide setting. imagesize takes 8 to 50
times as long, and tries a dozen formats by their contents, XML included: 10 MB of digits in
place of a width keep it busy for more than 15 s.
"""

import io
import re
import struct
from functools import cache
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from clipmill.errors import BadSampleError, BadSampleReason, SourceError

# What Pillow accepts without a warning.
MAX_PIXELS = 89_478_485

_FORMATS = ("JPEG", "PNG", "WEBP")
# What brings an image upright, by EXIF orientation (CIPA DC-008, 4.6.5.1.6); 1 is upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BY_START = (
    (re.compile(rb"\xff\xd8\xff"), "JPEG"),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "PNG"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "WEBP"),
    (re.compile(rb"GIF8[79]a"), "GIF"),
    (re.compile(rb"BM.{4}\0{4}", re.DOTALL), "BMP"),
    (re.compile(rb"II\*\0|MM\0\*"), "TIFF"),
    (re.compile(rb"....ftyp(avif|avis)", re.DOTALL), "AVIF"),
    (re.compile(rb"....ftyp(hei[cfmsx]|hev[cmsx]|mif1|msf1)", re.DOTALL), "HEIC"),
    (re.compile(rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51"), "JPEG 2000"),
    (re.compile(rb"\0\0\0\x0cJXL |\xff\x0a"), "JPEG XL"),
    (re.compile(rb"\x00\x00\x01\x00"), "ICO"),
    (re.compile(rb"8BPS"), "PSD"),
    (re.compile(rb"%PDF"), "PDF"),
    (re.compile(rb"\s*(<\?xml[^>]*>\s*)?<svg\b"), "SVG"),
)
_SNIFFED_BYTES = 1024
# Start-of-frame markers of JPEG (ITU-T T.81, table B.1): C0..CF without DHT, JPG and DAC.
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# Markers that stand alone, without a length (T.81, B.1.1.3): TEM, RST0..7, SOI.
_JPEG_BARE = frozenset({0x01, *range(0xD0, 0xD9)})


def image_size(data: bytes) -> tuple[int, int]:
    """Return (width, height) in pixels from the header of a JPEG, PNG or WebP file.

    Raises BadSampleError (``unreadable_image``) for anything else, or a header that is cut.
    """
    try:
        if data.startswith(b"\xff\xd8"):
            return _jpeg_size(data)
        if data.startswith(b"\x89PNG\r\n\x1a\n") and data[12:16] == b"IHDR":
            width, height = struct.unpack_from(">II", data, 16)
            return width, height
        if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
            return _webp_size(data)
    except (IndexError, struct.error) as error:
        raise BadSampleError(
            BadSampleReason.UNREADABLE_IMAGE, "the file ends within its header"
        ) from error
    name = image_format(data)
    detail = f"{name}, which isn't read: convert it to JPEG, PNG or WebP" if name else ""
    raise BadSampleError(BadSampleReason.UNREADABLE_IMAGE, detail or "neither JPEG, PNG nor WebP")


def image_format(data: bytes) -> str | None:
    """Return the name of an image file's format by its first bytes; None for anything else."""
    start = data[:_SNIFFED_BYTES]
    return next((name for pattern, name in _BY_START if pattern.match(start)), None)


@cache
def has_heic() -> bool:
    """Return whether HEIC is decoded: by Pillow's plugin of the extra ``heic``."""
    try:
        import pi_heif  # type: ignore[import-untyped]
    except ImportError:
        return False
    pi_heif.register_heif_opener()
    return True


def open_image(data: bytes, name: str) -> Image.Image:
    """Open an image file, not yet decoded, as the format that ``image_format`` returned."""
    return Image.open(io.BytesIO(data), formats=["HEIF" if name == "HEIC" else name])


def decode_rgb(data: bytes, *, apply_exif: bool = True) -> Image.Image:
    """Return the decoded image in mode RGB, upright unless ``apply_exif`` is false.

    Transparent pixels are laid over white, and 16-bit gray is scaled to 8 bits. Raises
    BadSampleError (``unreadable_image``) if any part of the file can't be decoded, or the decoder
    sees another size than ``image_size``.
    """
    size = image_size(data)
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            if image.size == size:
                image.load()
                return to_rgb(upright(image) if apply_exif else image)
    except UnidentifiedImageError as error:
        # Pillow's message holds a buffer's address, and records must be the same in every run.
        raise BadSampleError(
            BadSampleReason.UNREADABLE_IMAGE, "not an image behind its header"
        ) from error
    except Exception as error:  # decoders raise whatever a broken file provokes
        raise BadSampleError(BadSampleReason.UNREADABLE_IMAGE, str(error)) from error
    # Callers checked the size in the header, which isn't that of the image.
    raise BadSampleError(BadSampleReason.UNREADABLE_IMAGE, "its headers disagree about its size")


def upright(image: Image.Image) -> Image.Image:
    """Return the image as its EXIF orientation says."""
    turn = _TURNS.get(exif_orientation(image))
    return image if turn is None else image.transpose(turn)


def exif_orientation(image: Image.Image) -> int:
    """Return an image's EXIF orientation, 1 to 8; 1 where it has none or its EXIF is broken.

    Pillow's ``exif_transpose`` fails where any of the EXIF data are broken, since it writes them.
    """
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1) if "exif" in image.info else 1
    except Exception:  # noqa: BLE001  # Pillow raises whatever the data provoke
        return 1
    return value if value in _TURNS else 1


def read_rgb(path: Path, *, apply_exif: bool = True) -> Image.Image:
    """Return a file's image as ``decode_rgb`` does; SourceError, with its name, if it can't."""
    try:
        return decode_rgb(path.read_bytes(), apply_exif=apply_exif)
    except BadSampleError as error:
        raise SourceError(
            f"{path} can't be decoded: {error.detail}",
            expected="a whole JPEG, PNG or WebP file",
            action="restore the image, or take it and its label out",
        ) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Return 8-bit RGB: transparent pixels over white, 16-bit gray scaled down."""
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.uint32)
        gray = (values >> 8).astype(np.uint8)
        # Of these modes Pillow converts no transparency: one value of a PNG (its tRNS chunk).
        gray[values == image.info.get("transparency", -1)] = 255
        return Image.fromarray(gray).convert("RGB")
    if image.has_transparency_data:
        ground = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _jpeg_size(data: bytes) -> tuple[int, int]:
    position = 2
    while True:
        if data[position] != 0xFF:
            raise BadSampleError(BadSampleReason.UNREADABLE_IMAGE, "a JPEG marker is missing")
        while data[position] == 0xFF:  # any number of fill bytes may precede a marker
            position += 1
        marker = data[position]
        position += 1
        if marker in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", data, position + 3)
            return width, height
        if marker not in _JPEG_BARE:
            position += struct.unpack_from(">H", data, position)[0]


def _webp_size(data: bytes) -> tuple[int, int]:
    """Read the canvas size of the three kinds of WebP (RFC 9649, sections 2.4 to 2.7)."""
    kind = data[12:16]
    if kind == b"VP8X":
        width, height = (int.from_bytes(data[i : i + 3], "little") + 1 for i in (24, 27))
        return width, height
    if kind == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    raise BadSampleError(BadSampleReason.UNREADABLE_IMAGE, f"a WebP chunk of unknown kind {kind!r}")
