"""Augmentation of pictures with labels: both must move together."""

from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipmill.data.transforms.dense import (
    crop_pair,
    cutdepth,
    flip_pair,
    photometric_distortion,
    resize_pair,
)
from clipmill.tasks.config import PhotometricConfig


def pair(height=40, width=60):
    """The label is the picture's red, so that they can be compared anywhere."""
    values = np.random.default_rng(0).integers(0, 200, (height, width), dtype=np.uint8)
    return np.stack([values] * 3, -1), values


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.7])
def test_resizing(factor):
    image, label = pair()
    resized, labels = resize_pair(image, label, factor)
    size = (round(40 * factor), round(60 * factor))
    assert resized.shape == (*size, 3)
    assert labels.shape == size
    assert labels.dtype == label.dtype
    assert set(np.unique(labels)) <= set(np.unique(label))
    if factor == 1:
        assert np.array_equal(resized, image)
        assert np.array_equal(labels, label)


def test_resizing_moves_both_alike():
    step = np.zeros((40, 60), np.uint8)
    step[:, 30:] = 200
    resized, labels = resize_pair(np.stack([step] * 3, -1), step, 1.5)
    assert ((resized[..., 0] > 100) == (labels > 100)).mean() > 0.98


def test_depth_keeps_its_values():
    depth = np.array([[0.5, 9.25], [3.0, 0.0]], np.float32)
    _, labels = resize_pair(np.zeros((2, 2, 3), np.uint8), depth, 3.0)
    assert labels.dtype == np.float32
    assert set(np.unique(labels)) == {0.0, 0.5, 3.0, 9.25}


def test_a_picture_never_vanishes():
    resized, labels = resize_pair(*pair(2, 3), 0.01)
    assert (resized.shape, labels.shape) == ((1, 1, 3), (1, 1))


@settings(max_examples=30, deadline=None)
@given(
    height=st.integers(1, 30),
    width=st.integers(1, 30),
    size=st.integers(1, 30),
    seed=st.integers(0, 1000),
)
def test_cropping(height, width, size, seed):
    image, label = pair(height, width)
    cropped, labels = crop_pair(image, label, size, np.random.default_rng(seed), fill=255)
    assert cropped.shape == (size, size, 3)
    assert labels.shape == (size, size)
    known = labels != 255
    assert known.sum() == min(height, size) * min(width, size)
    assert np.array_equal(cropped[known][:, 0], labels[known])
    assert (cropped[~known] == 0).all()


def test_crops_lie_anywhere():
    label = np.arange(50 * 50).reshape(50, 50)
    image = np.zeros((50, 50, 3), np.uint8)
    corners = {
        int(crop_pair(image, label, 48, np.random.default_rng(seed), fill=0)[1][0, 0])
        for seed in range(200)
    }
    assert corners == {50 * row + column for row in range(3) for column in range(3)}


def test_flipping():
    image, label = pair()
    flipped = 0
    for seed in range(100):
        mirrored, labels = flip_pair(image, label, np.random.default_rng(seed))
        assert np.array_equal(mirrored[..., 0], labels)
        if not np.array_equal(labels, label):
            assert np.array_equal(labels, label[:, ::-1])
            flipped += 1
    assert 35 < flipped < 65


def test_cut_depth_shows_depth_in_one_band_of_columns():
    image = np.full((20, 50, 3), 7, np.uint8)
    depth = np.tile(np.linspace(1, 12, 20, dtype=np.float32)[:, None], (1, 50))
    shown = (np.clip(depth / 10, 0, 1) * 255).astype(np.uint8)
    widths, starts = [], []
    for seed in range(300):
        mixed = cutdepth(image, depth, 10.0, np.random.default_rng(seed))
        columns = np.flatnonzero((mixed != image).any(axis=(0, 2)))
        assert np.array_equal(columns, np.arange(columns[0], columns[-1] + 1))
        assert np.array_equal(mixed[:, columns], np.repeat(shown[:, columns, None], 3, -1))
        widths.append(len(columns))
        starts.append(columns[0])
        assert len(columns) <= max(0.75 * (50 - columns[0]), 1)
    assert min(widths) == 1
    assert max(widths) > 25
    assert min(starts) == 0
    assert max(starts) > 45
    assert (image == 7).all()  # the original is left alone


def test_without_chance_colors_stay():
    image, _ = pair()
    config = asdict(PhotometricConfig(probability=0.0))
    assert np.array_equal(photometric_distortion(image, np.random.default_rng(0), **config), image)


def only(**changes):
    """Options whose every change is sure, and nothing but the named ones does anything."""
    still = {"brightness_contrast": 0.0, "gamma": (1.0, 1.0)}
    still |= {"hue": 0.0, "saturation": 0.0, "value": 0.0}
    return {"probability": 1.0, **still, **changes}


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_gamma(gamma):
    gray = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, -1)
    found = photometric_distortion(gray, np.random.default_rng(0), **only(gamma=(gamma, gamma)))
    expected = 255 * (np.arange(256) / 255) ** gamma
    assert abs(found[0, :, 0] - expected).max() <= 1.01


def test_brightness_and_contrast_are_one_line():
    gray = np.repeat(np.arange(60, 190, dtype=np.uint8)[None, :, None], 3, -1)
    slopes, shifts = [], []
    for seed in range(60):
        config = only(brightness_contrast=0.2)
        found = photometric_distortion(gray, np.random.default_rng(seed), **config)[0, :, 0].astype(
            float
        )
        inside = (found > 2) & (found < 253)
        x, y = gray[0, inside, 0] / 255, found[inside] / 255
        slope, shift = np.polyfit(x, y, 1)
        assert abs(y - (slope * x + shift)).max() < 0.01
        slopes.append(slope)
        shifts.append(shift)
    for values, middle in ((slopes, 1), (shifts, 0)):
        assert middle - 0.21 < min(values) < middle - 0.1
        assert middle + 0.1 < max(values) < middle + 0.21


def test_gray_has_no_hue_to_turn():
    gray = np.full((4, 4, 3), 90, np.uint8)
    found = photometric_distortion(gray, np.random.default_rng(0), **only(hue=0.4))
    assert np.array_equal(found, gray)


def test_hue_turns_within_its_limit_and_round_the_circle():
    red = np.zeros((2, 2, 3), np.uint8)
    red[..., 0] = 255
    others = set()
    for seed in range(40):
        found = photometric_distortion(red, np.random.default_rng(seed), **only(hue=0.1))[
            0, 0
        ].astype(int)
        assert found[0] == 255  # a tenth of the circle from red, red still leads
        others.add(("green" if found[1] else "") + ("blue" if found[2] else ""))
    assert {"green", "blue"} <= others


def test_the_generator_alone_decides():
    image, _ = pair()
    config = asdict(PhotometricConfig())
    found = [
        photometric_distortion(image, np.random.default_rng(s), **config).tobytes()
        for s in (1, 1, 2, 3)
    ]
    assert found[0] == found[1]
    assert len(set(found)) > 1
