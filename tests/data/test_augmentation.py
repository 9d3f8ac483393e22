"""Random crops against torchvision's, and their statistics."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as T

from clipmill.data.augmentation import (
    CropTransform,
    RandomResizedCropConfig,
    center_resize,
    random_resized_crop,
)


def coordinates(width, height):
    """A picture whose red says the column and whose green says the row."""
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([columns, rows, columns * 0], -1).astype(np.uint8))


def windows(size, config, count=400):
    """Left, top, width and height of crops, read off the coordinates in their pixels."""
    image = coordinates(*size)
    found = []
    for seed in range(count):
        crop = random_resized_crop(image, 100, config, np.random.default_rng(seed))
        columns, rows = crop[50, :, 0].astype(float), crop[:, 50, 1].astype(float)
        # Away from the rim the resize is linear: slope and intercept give the window.
        slopes = [(v[80] - v[20]) / 60 for v in (columns, rows)]
        starts = [v[20] - 20.5 * s + 0.5 for v, s in zip((columns, rows), slopes, strict=True)]
        found.append([*starts, *(100 * s for s in slopes)])
    return np.array(found)


def test_area_and_aspect_keep_their_bounds():
    config = RandomResizedCropConfig(scale=(0.25, 0.5), ratio=(0.5, 2.0))
    left, top, width, height = windows((200, 160), config).T
    share = width * height / (200 * 160)
    assert 0.23 < share.min() < 0.28
    assert 0.46 < share.max() < 0.53
    ratio = width / height
    assert 0.48 < ratio.min() < 0.6
    assert 1.7 < ratio.max() < 2.1
    assert (left > -1.5).all()
    assert (left + width < 201.5).all()
    assert (top > -1.5).all()
    assert (top + height < 161.5).all()
    assert left.min() < 5
    assert (left + width).max() > 195


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


def test_the_whole_picture_is_resized_as_torchvision_does():
    picture = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    image = Image.fromarray(picture)
    config = RandomResizedCropConfig(scale=(1.0, 1.0), ratio=(1.0, 1.0))
    found = random_resized_crop(image, 24, config, np.random.default_rng(0))
    expected = T.resized_crop(image, 0, 0, 40, 40, [24, 24], InterpolationMode.BICUBIC)
    assert np.array_equal(found, np.asarray(expected))


@pytest.mark.parametrize("size", [(200, 20), (20, 200), (1, 1), (3, 200)])
def test_a_picture_too_long_for_any_crop_gives_its_middle(size):
    """As torchvision: the largest central crop of an allowed aspect."""
    config = RandomResizedCropConfig(scale=(0.9, 1.0), ratio=(0.75, 1.33))
    image = coordinates(*size)
    generator = np.random.default_rng(0)
    found = random_resized_crop(image, 16, config, generator)
    torch.manual_seed(0)
    top, left, height, width = RandomResizedCrop.get_params(image, [0.9, 1.0], [0.75, 1.33])
    expected = image.resize(
        (16, 16), Image.Resampling.BICUBIC, (left, top, left + width, top + height)
    )
    assert np.array_equal(found, np.asarray(expected))


def test_transform_is_the_crop_channels_first():
    image = coordinates(60, 50)
    config = RandomResizedCropConfig()
    found = CropTransform(32, config)(image, np.random.default_rng(3))
    expected = random_resized_crop(image, 32, config, np.random.default_rng(3))
    assert found.dtype == torch.uint8
    assert np.array_equal(found.permute(1, 2, 0).numpy(), expected)
    other = CropTransform(32, config)(image, np.random.default_rng(4))
    assert not torch.equal(found, other)


@pytest.mark.parametrize("size", [(100, 60), (60, 100), (60, 60)])
def test_center_resize_takes_the_largest_central_square(size):
    found = center_resize(coordinates(*size), 30)
    assert found.shape == (30, 30, 3)
    width, height = size
    for value, middle in zip(found[15, 15, :2], (width / 2, height / 2), strict=True):
        assert value == pytest.approx(middle, abs=1.5)
    span = found[15, 29, 0].astype(int) - found[15, 0, 0]
    assert span == pytest.approx(58, abs=2)
