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
from helpers.heic import HEIC

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
    "gray": file_of(PICTURE.convert("L"), "JPEG"),
    "cmyk": file_of(PICTURE.convert("CMYK"), "JPEG"),
    "palette": file_of(PICTURE.convert("P"), "PNG", transparency=3),
    "alpha": file_of(Image.fromarray(np.concatenate([RGB, RGB[..., :1]], axis=-1), "RGBA"), "PNG"),
    "16 bits": file_of(Image.fromarray(RGB[..., 0].astype(np.uint16) * 257), "PNG"),
    "turned": file_of(PICTURE, "JPEG", exif=sideways()),
}


@pytest.mark.parametrize("kind", FILES)
def test_an_image_is_read_as_training_reads_it(kind: str) -> None:
    expected = np.asarray(decode_rgb(FILES[kind]))
    found, size = decode_image(FILES[kind], CONFIG)
    assert found.dtype == np.uint8
    assert size == found.shape[:2]
    np.testing.assert_array_equal(found, expected)


def test_a_lossless_image_keeps_its_pixels_and_a_turned_one_is_turned_back() -> None:
    np.testing.assert_array_equal(decode_image(FILES["png"], CONFIG).pixels_HW3, RGB)
    upright = decode_image(file_of(PICTURE, "PNG", exif=sideways()), CONFIG)
    np.testing.assert_array_equal(upright.pixels_HW3, np.rot90(RGB, -1))
    assert upright.size == (40, 24)


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "AVIF"])
def test_formats_that_training_doesnt_read_are_decoded_too(kind: str) -> None:
    options = {"quality": 100, "subsampling": "4:4:4"} if kind == "AVIF" else {}
    found = decode_image(file_of(PICTURE, kind, **options), CONFIG).pixels_HW3
    if kind == "GIF":
        np.testing.assert_array_equal(found, np.asarray(PICTURE.quantize().convert("RGB")))
    elif kind == "AVIF":
        assert np.abs(found.astype(int) - RGB).mean() < 3
    else:
        np.testing.assert_array_equal(found, RGB)


def test_heic_is_decoded_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    image = decode_image(HEIC, CONFIG)
    assert image.size == (48, 32)
    assert image.pixels_HW3[5, 5].tolist() == pytest.approx([21, 60, 201], abs=8)
    monkeypatch.setattr("clipmill.serve.protocol.images.has_heic", lambda: False)
    with pytest.raises(BadRequestError, match=r"an image is HEIC; .* with the extra 'heic'"):
        decode_image(HEIC, CONFIG)


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (b"\0\0\0\x0cjP  \r\n", "JPEG 2000"),
        (b"\0\0\0\x0cJXL \r\n", "JPEG XL"),
        (b'<?xml version="1.0"?>\n<svg xmlns="x">', "SVG"),
        (b"\0\0\1\0\1\0", "ICO"),
        (b"hello", "of an unknown format"),
    ],
)
def test_formats_that_arent_decoded_are_named(start: bytes, name: str) -> None:
    with pytest.raises(BadRequestError, match=f"an image is {name}; JPEG, PNG, WebP, AVIF, GIF"):
        decode_image(start + bytes(100), CONFIG)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_each_orientation_is_brought_upright(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {"quality": 95} if kind == "JPEG" else {}
    file = file_of(PICTURE, kind, exif=exif, **options)
    found = decode_image(file, CONFIG)
    turns = {1: (0, 0), 2: (0, 1), 3: (2, 0), 4: (2, 1), 5: (1, 1), 6: (3, 0), 7: (3, 1), 8: (1, 0)}
    rotations, is_mirrored = turns[orientation]
    source = np.asarray(Image.open(io.BytesIO(file_of(PICTURE, kind, **options))).convert("RGB"))
    expected = np.rot90(source[:, ::-1] if is_mirrored else source, rotations)
    np.testing.assert_array_equal(found.pixels_HW3, expected)
    assert found.size == expected.shape[:2]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"Exif\0\0",
        b"Exif\0\0nothing of the kind",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12" * 20,
        b"Exif\0\0MM\0*\xff\xff\xff\xff",
        b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\x63\0\0\0\0\0\0\0",
        # Upside down, and a GPS directory that lies beyond the end: Pillow can't write it anew.
        (
            b"Exif\0\0II*\0\x08\0\0\0\2\0\x12\1\3\0\1\0\0\0\1\0\0\0"
            b"\x25\x88\4\0\1\0\0\0\xff\xff\xff\x7f\0\0\0\0"
        ),
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_broken_exif_never_refuses_an_image(kind: str, exif: bytes) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    found = decode_image(file_of(PICTURE, kind, exif=exif, **options), CONFIG)
    assert found.size == (24, 40)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_large_image_is_scaled_down_and_keeps_its_size(kind: str) -> None:
    ramp = np.broadcast_to(np.linspace(0, 255, 3000)[None, :, None], (2001, 3000, 3))
    exif = Image.Exif()
    exif[0x0112] = 6
    file = file_of(Image.fromarray(ramp.astype(np.uint8)), kind, exif=exif)
    found, size = decode_image(file, ServingConfig(max_network_pixels=60_000))
    assert size == (3000, 2001)
    assert 59_000 < found.shape[0] * found.shape[1] <= 60_000
    expected = np.linspace(0, 255, found.shape[0])[:, None, None]
    assert np.abs(found - expected).max() < 4


def test_a_photo_of_50_megapixels_is_read_by_default() -> None:
    found, size = decode_image(file_of(Image.new("RGB", (8160, 6120)), "JPEG"), ServingConfig())
    assert size == (6120, 8160)
    assert found.shape[0] * found.shape[1] <= ServingConfig().max_network_pixels


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
        (file_of(PICTURE, "GIF")[:-200], "image_unreadable"),
        (file_of(PICTURE, "AVIF")[:-200], "image_unreadable"),
        (file_of(Image.new("L", (101, 100)), "GIF"), "image_size"),
        (file_of(Image.new("L", (101, 100)), "TIFF"), "image_size"),
        (file_of(Image.new("L", (101, 100)), "BMP"), "image_size"),
        (file_of(Image.new("L", (101, 100)), "AVIF"), "image_size"),
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
    np.testing.assert_array_equal(decode_image(RGB, CONFIG).pixels_HW3, RGB)
    with pytest.raises(
        BadRequestError, match=r"100 x 101 pixels; at most 10000 are read \(max_pixels\)"
    ):
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
        found = decode_image(bytes(damaged), CONFIG).pixels_HW3
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
    texts = ["/9g=", "/9g", "_9g", "/9\r\ng=\n", "data:image/jpeg;base64,/9g="]
    values = np.array([b"\xff\xd8", *texts], object)
    assert images_from_tensor("BYTES", [6], values) == [b"\xff\xd8"] * 6


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
