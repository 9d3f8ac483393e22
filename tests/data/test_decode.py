"""Decoding for a crop, against Pillow: plain files, odd files, broken files."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clipmill.data.transforms.augmentation import REDUCTIONS, EncodedImage
from clipmill.errors import BadSampleError
from clipmill.images import decode_rgb
from clipmill.scenes import SceneConfig, draw

WIDTH, HEIGHT = 61, 37
PICTURE = Image.fromarray(draw(SceneConfig(size=64, supersample=1), 0).image_HW3[:HEIGHT, :WIDTH])


def encode(mode="RGB", **options):
    buffer = io.BytesIO()
    PICTURE.convert(mode).save(buffer, **{"format": "JPEG", **options})
    return buffer.getvalue()


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(exif=exif)


REDUCIBLE = {
    "baseline": encode(),
    "progressive": encode(progressive=True),
    "gray": encode("L"),
    "4:4:4": encode(subsampling=0),
    "4:2:2": encode(subsampling=1),
    "exif, upright": turned(1),
    "exif without orientation": encode(exif=Image.Exif()),
    "best quality": encode(quality=100),
}
WHOLE = {
    "cmyk": encode("CMYK"),
    "png": encode("RGBA", format="PNG"),
    "webp": encode(format="WEBP"),
    **{f"turned {orientation}": turned(orientation) for orientation in range(2, 9)},
}


@pytest.mark.parametrize("name", REDUCIBLE)
def test_a_plain_jpeg_is_decoded_to_pillows_pixels(name):
    image = EncodedImage(REDUCIBLE[name])
    assert image.can_downscale
    pixels, reduction = image.decode(1)
    assert reduction == 1
    np.testing.assert_array_equal(pixels, np.asarray(decode_rgb(REDUCIBLE[name])))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", REDUCIBLE)
def test_each_reduced_pixel_is_about_the_mean_of_those_it_stands_for(name, reduction):
    whole = decode_rgb(REDUCIBLE[name])
    pixels, found = EncodedImage(REDUCIBLE[name]).decode(reduction)
    assert found == reduction
    assert pixels.shape == (-(-HEIGHT // reduction), -(-WIDTH // reduction), 3)
    expected = np.asarray(whole.reduce(reduction)).astype(int)
    # The last row and column may stand for fewer pixels than the rest.
    assert abs(pixels[:-1, :-1] - expected[:-1, :-1]).mean() < 4


@pytest.mark.parametrize("name", WHOLE)
def test_anything_else_is_decoded_as_pillow_does(name):
    image = EncodedImage(WHOLE[name])
    expected = np.asarray(decode_rgb(WHOLE[name]))
    assert not image.can_downscale
    assert (image.height, image.width) == expected.shape[:2]
    pixels, reduction = image.decode(8)
    assert reduction == 1
    np.testing.assert_array_equal(pixels, expected)


def test_damage_that_pillow_forgives_is_forgiven():
    data = encode()
    start = data.index(b"\xff\xda")
    data = data[:start] + b"\0\0\0" + data[start:]  # bytes between segments
    pixels, reduction = EncodedImage(data).decode(2)
    assert reduction == 1
    np.testing.assert_array_equal(pixels, np.asarray(decode_rgb(data)))


def test_too_many_pixels_are_refused_by_the_header():
    data = bytearray(encode())
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = b"\xff\xff\xff\xff"
    with pytest.raises(BadSampleError, match="image_too_large"):
        EncodedImage(bytes(data))


@pytest.mark.parametrize("name", [*REDUCIBLE, *WHOLE])
def test_a_cut_file_is_a_bad_sample(name):
    data = {**REDUCIBLE, **WHOLE}[name]
    with pytest.raises(BadSampleError, match="unreadable_image"):
        EncodedImage(data[: len(data) * 2 // 3]).decode(2)


@given(st.sampled_from(sorted({**REDUCIBLE, **WHOLE})), st.data())
def test_any_damage_is_pixels_or_a_bad_sample(name, data):
    damaged = bytearray({**REDUCIBLE, **WHOLE}[name])
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        image = EncodedImage(bytes(damaged))
        pixels, reduction = image.decode(2)
    except BadSampleError as bad:
        outcome = bad.reason
    else:
        outcome = "pixels"
        size = (-(-image.height // reduction), -(-image.width // reduction), 3)
        assert pixels.shape == size
    assert outcome in {"pixels", "unreadable_image", "image_too_large"}
