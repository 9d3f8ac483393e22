"""Large-scale jitter: image and masks stay together."""

import numpy as np
import pytest

from clipmill.data.transforms.dense import boxes_of, large_scale_jitter


def scene():
    image, mask = np.zeros((40, 60, 3), np.uint8), np.zeros((40, 60), np.uint8)
    image[8:30, 12:40], mask[8:30, 12:40] = 255, 1
    return image, mask[None], np.array([[12, 8, 40, 30]])


@pytest.mark.parametrize("seed", range(8))
def test_the_mask_covers_what_it_covered(seed):
    image, masks, boxes = large_scale_jitter(*scene(), 48, (0.3, 2.0), np.random.default_rng(seed))
    assert image.shape == (48, 48, 3)
    assert masks.shape == (1, 48, 48)
    wrong = (image[..., 0] > 127) != (masks[0] > 0)
    # At the object's edge a pixel may fall to either side.
    assert wrong.sum() <= 2 * np.abs(np.diff(masks[0].astype(int))).sum()
    # A box is moved exactly, a mask to whole pixels.
    np.testing.assert_allclose(boxes, boxes_of(masks), atol=1)


def test_a_small_picture_lies_at_the_corner():
    image, masks, _ = large_scale_jitter(*scene(), 48, (0.5, 0.5), np.random.default_rng(0))
    assert image[:16, :24].any()
    assert not image[16:].any()
    assert not image[:, 24:].any()
    assert not masks[:, 16:].any()


def test_a_large_picture_is_cut_anywhere():
    firsts = {
        large_scale_jitter(*scene(), 48, (2.0, 2.0), np.random.default_rng(seed))[1].sum()
        for seed in range(9)
    }
    assert len(firsts) > 3


def test_half_are_mirrored():
    found = [
        large_scale_jitter(*scene(), 60, (1.0, 1.0), np.random.default_rng(s))[0] for s in range(20)
    ]
    plain = [np.array_equal(f[:40], scene()[0]) for f in found]
    mirrored = [np.array_equal(f[:40], scene()[0][:, ::-1]) for f in found]
    assert all(a != b for a, b in zip(plain, mirrored, strict=True))
    assert 5 <= sum(mirrored) <= 15


def test_a_picture_without_objects():
    image, _, _ = scene()
    _, masks, boxes = large_scale_jitter(
        image, np.zeros((0, 40, 60), np.uint8), np.zeros(0), 48, (0.5, 2), np.random.default_rng(0)
    )
    assert boxes.shape == (0, 4)
    assert masks.shape == (0, 48, 48)
    assert boxes_of(masks).shape == (0, 4)


def test_boxes_hold_their_masks():
    masks = np.zeros((2, 10, 12), np.uint8)
    masks[0, 2:5, 3:9] = 1
    assert boxes_of(masks).tolist() == [[3, 2, 9, 5], [0, 0, 0, 0]]
