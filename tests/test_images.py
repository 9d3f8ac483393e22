"""Sizes and pixels against Pillow's own, and broken files."""

import io
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clipmill.errors import BadSampleError
from clipmill.images import MAX_PIXELS, decode_rgb, image_size

WIDTH, HEIGHT = 37, 21


def encode(mode: str = "RGB", **options: object) -> bytes:
    gradient = np.linspace(0, 255, WIDTH * HEIGHT, dtype=np.uint8).reshape(HEIGHT, WIDTH)
    image = Image.fromarray(gradient).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, **options)
    return buffer.getvalue()


FILES = {
    "jpeg": encode(format="JPEG"),
    "jpeg progressive": encode(format="JPEG", progressive=True),
    "jpeg gray": encode("L", format="JPEG"),
    "jpeg cmyk": encode("CMYK", format="JPEG"),
    "jpeg with exif": encode(format="JPEG", exif=Image.Exif()),
    "png": encode(format="PNG"),
    "png palette": encode("P", format="PNG"),
    "png bits": encode("1", format="PNG"),
    "webp lossy": encode(format="WEBP"),
    "webp lossless": encode(format="WEBP", lossless=True),
    "webp extended": encode("RGBA", format="WEBP", exif=b"Exif\0\0"),
}


@pytest.mark.parametrize("name", FILES)
def test_size_from_the_header_is_pillows(name: str) -> None:
    assert image_size(FILES[name]) == (WIDTH, HEIGHT)


@pytest.mark.parametrize("name", [n for n in FILES if "extended" not in n])
def test_opaque_pixels_are_pillows(name: str) -> None:
    with Image.open(io.BytesIO(FILES[name])) as image:
        expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(np.asarray(decode_rgb(FILES[name])), expected)


def test_limit_is_pillows() -> None:
    assert MAX_PIXELS == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_transparent_pixels_become_white(mode: str) -> None:
    image = Image.new(mode, (2, 1), 0)
    options: dict[str, object] = (
        {"transparency": {"P": b"\0", "RGB": (0, 0, 0)}[mode]} if (mode in {"P", "RGB"}) else {}
    )
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    assert decode_rgb(buffer.getvalue()).getpixel((0, 0)) == (255, 255, 255)


def test_sixteen_bit_gray_is_scaled() -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.array([[0, 0x8000, 0xFFFF]], np.uint16)).save(buffer, "PNG")
    assert np.asarray(decode_rgb(buffer.getvalue()))[0, :, 0].tolist() == [0, 128, 255]


def test_picture_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees clockwise to see it upright
    upright = decode_rgb(encode(format="JPEG", exif=exif, quality=100))
    assert upright.size == (HEIGHT, WIDTH)
    # The gradient gets brighter downwards in the file, so from right to left when upright.
    pixels = np.asarray(upright).astype(int)
    assert pixels[:, 0].mean() > pixels[:, -1].mean() + 100


def outcome(read: Callable[[bytes], object], data: bytes) -> str:
    """Return "image", or the reason of the BadSampleError; anything else that is raised fails."""
    try:
        read(data)
    except BadSampleError as bad:
        return "unstable detail" if " at 0x" in bad.detail else bad.reason
    return "image"


@given(st.binary(max_size=80))
def test_any_bytes_are_an_image_or_a_bad_sample(data: bytes) -> None:
    for magic in (b"", b"\xff\xd8", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"RIFFxxxxWEBPVP8X"):
        assert outcome(image_size, magic + data) in {"image", "unreadable_image"}


@given(st.sampled_from(sorted(FILES)), st.data())
def test_any_damage_is_an_image_or_a_bad_sample(name: str, data: st.DataObject) -> None:
    damaged = bytearray(FILES[name])
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    for read in (image_size, decode_rgb):
        assert outcome(read, bytes(damaged)) in {"image", "unreadable_image"}


@pytest.mark.parametrize("name", FILES)
def test_cut_file_is_unreadable(name: str) -> None:
    data = FILES[name]
    with pytest.raises(BadSampleError, match="unreadable_image"):
        decode_rgb(data[: len(data) * 2 // 3])
