"""Random crops against torchvision's, and their statistics."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from clipmill.data.transforms.augmentation import (
    Box,
    CropTransform,
    EncodedImage,
    RandomResizedCropConfig,
    crop_to_square,
    draw_crop,
)
from clipmill.images import decode_rgb
from clipmill.models.preprocess import center_crop_resize
from clipmill.scenes import SceneConfig, draw


def coordinates(width, height):
    """A picture whose red says the column and whose green says the row."""
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([columns, rows, columns * 0], -1).astype(np.uint8))


def windows(size, config, count=400):
    """Left, top, width and height of crops that were drawn."""
    boxes = [draw_crop(*size, config, np.random.default_rng(seed)) for seed in range(count)]
    return np.array([[box.left, box.top, box.width, box.height] for box in boxes])


def encode(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, **{"format": "PNG", **options})
    return buffer.getvalue()


def scene(size, index):
    return Image.fromarray(draw(SceneConfig(size=size, supersample=1), index).image_HW3)


def cropped(image, box, size):
    """Pillow's crop of a decoded picture, bicubic: what every faster way is measured by."""
    edges = (box.left, box.top, box.left + box.width, box.top + box.height)
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, edges)).astype(int)


def ratio_in_decibels(found, expected):
    return 10 * np.log10(255**2 / np.square(found - expected).mean())


def test_area_and_aspect_keep_their_bounds():
    config = RandomResizedCropConfig(scale=(0.25, 0.5), ratio=(0.5, 2.0))
    left, top, width, height = windows((200, 160), config).T
    share = width * height / (200 * 160)
    assert 0.245 < share.min() < 0.26
    assert 0.48 < share.max() < 0.505
    ratio = width / height
    assert 0.495 < ratio.min() < 0.55
    assert 1.8 < ratio.max() < 2.02
    assert left.min() == top.min() == 0
    assert (left + width).max() == 200
    assert (top + height).max() == 160


def test_draws_as_torchvision_does():
    """The same distributions of area and aspect, by their quartiles."""
    config = RandomResizedCropConfig(scale=(0.1, 0.4), ratio=(0.4, 2.5))
    _, _, width, height = windows((200, 200), config, count=1500).T
    torch.manual_seed(0)
    image = coordinates(200, 200)
    theirs = np.array(
        [RandomResizedCrop.get_params(image, [0.1, 0.4], [0.4, 2.5]) for _ in range(2000)]
    )
    quartiles = (25, 50, 75)
    for ours, reference in (
        (width * height, theirs[:, 2] * theirs[:, 3]),
        (width / height, theirs[:, 3] / theirs[:, 2]),
    ):
        np.testing.assert_allclose(
            np.percentile(ours, quartiles), np.percentile(reference, quartiles), rtol=0.08
        )


@pytest.mark.parametrize("size", [(200, 20), (20, 200), (1, 1), (3, 200)])
def test_a_picture_too_long_for_any_crop_gives_its_middle(size):
    """As torchvision: the largest central crop of an allowed aspect."""
    config = RandomResizedCropConfig(scale=(0.9, 1.0), ratio=(0.75, 1.33))
    box = draw_crop(*size, config, np.random.default_rng(0))
    torch.manual_seed(0)
    image = coordinates(*size)
    top, left, height, width = RandomResizedCrop.get_params(image, [0.9, 1.0], [0.75, 1.33])
    assert (box.left, box.top, box.width, box.height) == (left, top, width, height)
    found = CropTransform(16, config)(encode(image), np.random.default_rng(0))
    assert abs(found.permute(1, 2, 0).numpy() - cropped(image, box, 16)).max() <= 2


@given(st.integers(0, 99), st.integers(0, 99), st.integers(1, 99), st.integers(1, 99))
def test_a_snapped_box_lies_on_the_grid_inside_the_box(left, top, width, height):
    box = Box(left, top, width, height)
    assert box.snapped(1) == box
    for step in (2, 4, 8):
        found = box.snapped(step)
        edges = (found.left, found.top, found.left + found.width, found.top + found.height)
        assert all(edge % step == 0 for edge in edges)
        assert 0 <= found.left - left < step
        assert 0 <= found.top - top < step
        assert 0 <= left + width - edges[2] < step
        assert 0 <= top + height - edges[3] < step


@pytest.mark.parametrize("size", [(64, 64), (30, 75), (20, 20)])
def test_a_crop_that_no_reduction_fits_is_pillows(size):
    """Smaller and larger than the target: bicubic as Pillow's, but for rounding."""
    image = scene(96, 1)
    box = Box(5, 3, *size)
    for data in (encode(image), encode(image, format="WEBP", lossless=True)):
        found = crop_to_square(EncodedImage(data), box, 48)
        assert found.shape == (3, 48, 48)
        assert found.dtype == torch.uint8
        expected = cropped(image, box, 48)
        assert ratio_in_decibels(found.permute(1, 2, 0).numpy(), expected) > 50


@pytest.mark.parametrize("subsampling", [0, 2])
@pytest.mark.parametrize(("size", "box"), [(512, Box(7, 3, 490, 501)), (333, Box(1, 2, 331, 320))])
def test_reduced_decoding_looks_like_the_whole(size, box, subsampling):
    """Against Pillow's full decoding and bicubic of the same window, at 4:4:4 and 4:2:0."""
    for target, reduction in ((300, 1), (150, 2), (75, 4), (36, 8)):
        for index in range(3):
            data = encode(scene(size, index), format="JPEG", quality=90, subsampling=subsampling)
            window = box.snapped(reduction)
            found = crop_to_square(EncodedImage(data), box, target).permute(1, 2, 0).numpy()
            expected = cropped(decode_rgb(data), window, target)
            assert ratio_in_decibels(found, expected) > 36
            assert abs(found - expected).mean() < 2


def test_reduced_decoding_keeps_the_place():
    """Half a pixel's shift would show: the picture's red says the column, its green the row."""
    data = encode(coordinates(250, 250), format="JPEG", quality=98, subsampling=0)
    box = Box(13, 29, 200, 210)
    found = crop_to_square(EncodedImage(data), box, 48).permute(1, 2, 0).numpy()
    window = box.snapped(4)
    places = np.arange(48) + 0.5
    columns = window.left - 0.5 + places * window.width / 48
    rows = window.top - 0.5 + places * window.height / 48
    assert abs(found[24, 2:-2, 0] - columns[2:-2]).mean() < 0.6
    assert abs(found[2:-2, 24, 1] - rows[2:-2]).mean() < 0.6


def test_transform_is_the_crop_channels_first():
    data = encode(scene(64, 0), format="JPEG")
    config = RandomResizedCropConfig()
    found = CropTransform(32, config)(data, np.random.default_rng(3))
    box = draw_crop(64, 64, config, np.random.default_rng(3))
    assert torch.equal(found, crop_to_square(EncodedImage(data), box, 32))
    other = CropTransform(32, config)(data, np.random.default_rng(4))
    assert not torch.equal(found, other)


@pytest.mark.parametrize("size", [(100, 60), (60, 100), (60, 60)])
def test_center_resize_takes_the_largest_central_square(size):
    found = center_crop_resize(coordinates(*size), 30)
    assert found.shape == (30, 30, 3)
    width, height = size
    for value, middle in zip(found[15, 15, :2], (width / 2, height / 2), strict=True):
        assert value == pytest.approx(middle, abs=1.5)
    span = found[15, 29, 0].astype(int) - found[15, 0, 0]
    assert span == pytest.approx(58, abs=2)
