"""Colors that can be told apart, and PNGs that hold them."""

import io

import numpy as np
from PIL import Image

from clipmill.tasks.visualization import (
    IGNORED_COLOR,
    UNKNOWN_COLOR,
    class_colors,
    class_palette,
    depth_colors,
    encode_png,
)


def test_classes_have_colors_of_their_own():
    palette = class_palette().astype(int)
    assert palette.shape == (256, 3)
    # ADE20K's 150: no two alike, and the first dozens far apart.
    assert len({tuple(color) for color in palette[:150]}) == 150
    apart = abs(palette[:14, None] - palette[None, :14]).sum(-1)
    assert apart[~np.eye(14, dtype=bool)].min() > 30


def test_a_picture_of_classes():
    found = class_colors(np.array([[0, 3], [255, 3]], np.uint8))
    palette = class_palette()
    assert found.dtype == np.uint8
    assert np.array_equal(found[0, 0], palette[0])
    assert np.array_equal(found[0, 1], found[1, 1])
    assert tuple(found[1, 0]) == IGNORED_COLOR


def test_near_is_bright_and_far_is_dark():
    depth = np.linspace(0.01, 10, 50)[None]
    brightness = depth_colors(depth, 10.0).astype(int).sum(-1)[0]
    assert (np.diff(brightness) <= 0).all()
    assert brightness[0] > 600
    assert brightness[-1] < 120


def test_beyond_the_range_and_unknown():
    found = depth_colors(np.array([[10.0, 99.0, 0.0]]), 10.0)[0]
    assert np.array_equal(found[0], found[1])
    assert tuple(found[2]) == UNKNOWN_COLOR


def test_png():
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    with Image.open(io.BytesIO(encode_png(picture))) as image:
        assert image.format == "PNG"
        assert np.array_equal(np.asarray(image), picture)
