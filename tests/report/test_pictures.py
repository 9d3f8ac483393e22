"""Pictures as data URIs."""

import base64
import io
import re

import numpy as np
from PIL import Image

from clipmill.report.html.page import image_tag


def decoded(element: str) -> Image.Image:
    found = re.search(r'src="data:image/(\w+);base64,([^"]+)"', element)
    assert found is not None
    image = Image.open(io.BytesIO(base64.b64decode(found[2])))
    assert image.format == found[1].upper()
    return image


def encode(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_a_small_picture_keeps_its_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    element = image_tag(encode(Image.fromarray(pixels), "PNG"), 'a "b" <c>')
    assert np.array_equal(np.asarray(decoded(element)), pixels)
    assert 'alt="a &quot;b&quot; &lt;c&gt;"' in element
    assert 'width="30" height="20"' in element
    assert "pixels" in element


def test_a_large_picture_is_made_smaller_in_its_shape() -> None:
    ramp = np.linspace(0, 255, 1600).astype(np.uint8)
    image = Image.fromarray(np.broadcast_to(ramp[None, :, None], (400, 1600, 3)).copy())
    element = image_tag(encode(image, "JPEG"), "ramp")
    small = decoded(element)
    assert small.size == (384, 96)
    left, right = (np.asarray(small.convert("L"))[:, s].mean() for s in (slice(8), slice(-8, None)))
    assert (left < 20, right > 235) == (True, True)
    assert 'class="picture"' in element


def test_metadata_stays_behind() -> None:
    exif = Image.Exif()
    exif[0x010E] = "taken at home"
    data = encode(Image.new("RGB", (8, 8)), "JPEG", exif=exif)
    assert b"taken at home" in data
    assert not decoded(image_tag(data, "x")).getexif()
