import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clipmill.images import decode_rgb
from clipmill.serve.config import ServingConfig
from clipmill.serve.errors import BadRequestError
from clipmill.serve.protocol.images import decode_image, images_from_tensor

CONFIG = ServingConfig(max_pixels=10_000, max_image_bytes=100_000)
RGB = np.random.default_rng(1).integers(0, 256, (24, 40, 3), np.uint8)


def file_of(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def sideways() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees
    return exif


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"")


def webp_canvas(width: int, height: int) -> bytes:
    """An extended WebP that claims a size and holds no pixels."""
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    chunk = b"VP8X" + struct.pack("<I", 10) + bytes(4) + size
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


PICTURE = Image.fromarray(RGB)
FILES = {
    "png": file_of(PICTURE, "PNG"),
    "jpeg": file_of(PICTURE, "JPEG", quality=80),
    "webp": file_of(PICTURE, "WEBP", quality=80),
    "webp lossless": file_of(PICTURE, "WEBP", lossless=True),
    "webp with alpha": file_of(PICTURE.convert("RGBA"), "WEBP", exact=True),
    "grey": file_of(PICTURE.convert("L"), "JPEG"),
    "cmyk": file_of(PICTURE.convert("CMYK"), "JPEG"),
    "palette": file_of(PICTURE.convert("P"), "PNG", transparency=3),
    "alpha": file_of(Image.fromarray(np.concatenate([RGB, RGB[..., :1]], axis=-1), "RGBA"), "PNG"),
    "16 bits": file_of(Image.fromarray(RGB[..., 0].astype(np.uint16) * 257), "PNG"),
    "turned": file_of(PICTURE, "JPEG", exif=sideways()),
}


@pytest.mark.parametrize("kind", FILES)
def test_an_image_is_read_as_training_reads_it(kind: str) -> None:
    expected = np.asarray(decode_rgb(FILES[kind]))
    found = decode_image(FILES[kind], CONFIG)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)


def test_a_lossless_image_keeps_its_pixels_and_a_turned_one_is_turned_back() -> None:
    np.testing.assert_array_equal(decode_image(FILES["png"], CONFIG), RGB)
    upright = decode_image(file_of(PICTURE, "PNG", exif=sideways()), CONFIG)
    np.testing.assert_array_equal(upright, np.rot90(RGB, -1))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "image_unreadable"),
        (b"no image at all", "image_unreadable"),
        (FILES["jpeg"][: len(FILES["jpeg"]) // 2], "image_unreadable"),
        (FILES["png"][:-30], "image_unreadable"),
        (FILES["webp"][:-30], "image_unreadable"),
        (b"RIFF", "image_unreadable"),
        (png_header(30_000, 30_000), "image_size"),
        (png_header(10_000, 9_500), "image_size"),
        (png_header(101, 100), "image_size"),
        (webp_canvas(16_383, 16_383), "image_size"),
        (png_header(100, 4), "image_shape"),
        (FILES["png"] + bytes(100_000), "image_size"),
        (file_of(PICTURE, "GIF"), "image_unreadable"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_file_beyond_a_limit_or_broken_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(BadRequestError) as refusal:
        decode_image(data, CONFIG)
    assert refusal.value.reason == reason
    assert "/" not in refusal.value.message
    assert len(refusal.value.message) < 120


def test_pixels_are_held_to_the_same_limits() -> None:
    np.testing.assert_array_equal(decode_image(RGB, CONFIG), RGB)
    with pytest.raises(BadRequestError, match="10000 pixels"):
        decode_image(np.zeros((101, 100, 3), np.uint8), CONFIG)
    with pytest.raises(BadRequestError, match="factor of 4"):
        decode_image(np.zeros((2, 9, 3), np.uint8), CONFIG)


@given(st.sampled_from(list(FILES.values())), st.data())
def test_a_damaged_file_is_decoded_or_refused(file: bytes, data: st.DataObject) -> None:
    damaged = bytearray(file)
    for _ in range(data.draw(st.integers(1, 8))):
        place = data.draw(st.integers(0, min(len(file) - 1, 200)))
        damaged[place] = data.draw(st.integers(0, 255))
    try:
        found = decode_image(bytes(damaged), CONFIG)
    except BadRequestError:
        return
    assert found.ndim == 3
    assert found.size <= 3 * CONFIG.max_pixels


def test_pixels_in_a_tensor_are_one_image_or_several() -> None:
    (one,) = images_from_tensor("UINT8", RGB.shape, RGB.ravel())
    np.testing.assert_array_equal(one, RGB)
    pair = np.stack([RGB, RGB[::-1]])
    first, second = images_from_tensor("UINT8", pair.shape, pair.ravel().astype(np.int64))
    np.testing.assert_array_equal(first, RGB)
    np.testing.assert_array_equal(second, RGB[::-1])


def test_files_in_a_tensor_are_bytes_or_base64() -> None:
    values = np.array([b"\xff\xd8", "/9g="], object)
    assert images_from_tensor("BYTES", [2], values) == [b"\xff\xd8", b"\xff\xd8"]


@pytest.mark.parametrize(
    ("datatype", "shape", "values"),
    [
        ("FP64", [2, 2, 3], np.zeros(12)),
        ("FP32", [1, 1, 3], np.array([0, 0.5, np.nan], np.float32)),
        ("FP32", [1, 1, 3], np.array([0, 0.5, 1.5], np.float32)),
        ("UINT8", [12], np.zeros(12, np.uint8)),
        ("UINT8", [2, 2, 4], np.zeros(16, np.uint8)),
        ("UINT8", [2, 2, 3], np.zeros(11, np.uint8)),
        ("UINT8", [2**40, 2**40, 3], np.zeros(12, np.uint8)),
        ("UINT8", [1, 1, 3], np.array([0, 1, 256])),
        ("UINT8", [1, 1, 3], np.array([0, 1, -1])),
        ("UINT8", [1, 1, 3], np.array([0.0, 0.5, 1.0])),
        ("UINT8", [1, 1, 3], np.array(["a", "b", "c"])),
        ("BYTES", [2], np.array([b"one"], object)),
        ("BYTES", [1, 1], np.array([b"one"], object)),
        ("BYTES", [1], np.array(["not base64!"], object)),
        ("BYTES", [1], np.array([3], object)),
    ],
)
def test_a_tensor_of_another_kind_is_refused(
    datatype: str, shape: list[int], values: np.ndarray
) -> None:
    with pytest.raises(BadRequestError):
        images_from_tensor(datatype, shape, values)
