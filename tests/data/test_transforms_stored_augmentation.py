"""Augmentations as numbers: drawn once, replayed at will."""

import numpy as np
import pytest
from PIL import Image

from clipmill.data.transforms import augmentation as stored_augmentation
from clipmill.data.transforms.augmentation import (
    RandomResizedCropConfig,
    StoredAugmentationConfig,
    replay,
    sample_augmentation,
)

OPERATIONS = list(stored_augmentation._OPERATIONS)


def picture(width=60, height=40):
    """Every row and column different."""
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([4 * x, 6 * y, x * y % 251], axis=-1).astype(np.uint8)
    return Image.fromarray(pixels)


DEFAULTS = StoredAugmentationConfig()


def drawn(config=DEFAULTS, seed=0, size=(60, 40)):
    return sample_augmentation(*size, config, np.random.default_rng(seed))


def test_a_replay_is_exact():
    numbers = drawn()
    again = [float(np.float32(n)) for n in numbers]  # as a layer keeps them
    first, second = (np.asarray(replay(picture(), 32, again)) for _ in range(2))
    assert first.shape == (32, 32, 3)
    assert np.array_equal(first, second)
    assert not np.array_equal(first, np.asarray(replay(picture(), 32, drawn(seed=1))))


def test_the_whole_picture_without_operations():
    found = replay(picture(), 32, [0.0, 0.0, 1.0, 1.0])
    assert found.tobytes() == picture().resize((32, 32), Image.Resampling.BICUBIC).tobytes()


def test_a_crop_is_in_shares_of_the_picture():
    found = replay(picture(), 16, [0.5, 0.25, 0.5, 0.5])
    expected = picture().resize((16, 16), Image.Resampling.BICUBIC, box=(30, 10, 60, 30))
    assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("size", [(60, 40), (40, 60), (500, 20), (20, 500)])
def test_crops_lie_inside_and_are_as_asked(size):
    config = StoredAugmentationConfig(
        crop=RandomResizedCropConfig(scale=(0.3, 0.6)), num_operations=0
    )
    for seed in range(50):
        left, top, width, height = drawn(config, seed, size)
        assert left >= 0
        assert top >= 0
        assert left + width <= 1 + 1e-9
        assert top + height <= 1 + 1e-9
        ratio = width * size[0] / (height * size[1])
        assert 0.75 - 1e-6 <= ratio <= 1.33 + 1e-6
        if max(size) == 60:
            assert 0.3 - 1e-9 <= width * height <= 0.6 + 1e-9


def test_operations_are_drawn_at_the_asked_strength():
    config = StoredAugmentationConfig(num_operations=3, magnitude=5.0, magnitude_deviation=0.5)
    numbers = np.array([drawn(config, seed)[4:] for seed in range(300)])
    assert numbers.shape == (300, 6)
    levels = numbers[:, 1::2].ravel()
    assert np.abs(levels).mean() == pytest.approx(0.5, abs=0.01)
    assert np.abs(levels).std() == pytest.approx(0.05, abs=0.01)
    assert np.mean(levels > 0) == pytest.approx(0.5, abs=0.07)
    assert set(numbers[:, ::2].ravel().astype(int)) == set(range(len(OPERATIONS)))


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_changes_the_picture_at_both_signs(name):
    whole = [0.0, 0.0, 1.0, 1.0]
    plain = np.asarray(replay(picture(), 32, whole))
    number = float(OPERATIONS.index(name))
    for level in (0.9, -0.9):
        found = np.asarray(replay(picture(), 32, [*whole, number, level]))
        assert found.shape == plain.shape
        if name == "auto_contrast":  # has no strength, and this picture is nearly full already
            continue
        assert not np.array_equal(found, plain)


def test_places_of_operations_never_change():
    """Layers on disk name them by number."""
    assert OPERATIONS == [
        "auto_contrast",
        "equalize",
        "invert",
        "rotate",
        "posterize",
        "solarize",
        "solarize_add",
        "color",
        "contrast",
        "brightness",
        "sharpness",
        "shear_x",
        "shear_y",
        "translate_x",
        "translate_y",
    ]


def test_translation_moves_a_share_of_the_picture():
    pixels = np.zeros((20, 20, 3), np.uint8)
    pixels[:, 5:] = 255
    number = float(OPERATIONS.index("translate_x"))
    found = np.asarray(replay(Image.fromarray(pixels), 20, [0, 0, 1, 1, number, -1 / 3]))
    # 0.45 / 3 of 20 pixels is 3: the edge moves from 5 to 8.
    assert found[10, 6, 0] < 10
    assert found[10, 9, 0] > 245
