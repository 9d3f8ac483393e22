"""Mixup, CutMix and random erasing."""

import pytest
import torch

from clipmill.data.transforms.mixup import erase, mix

# Each picture is filled with its own number, and each target names it.
IMAGES = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 16, 16)
TARGETS = torch.eye(4)


@pytest.mark.parametrize("alphas", [{"mixup": 1.0, "cutmix": 0.0}, {"mixup": 0.0, "cutmix": 1.0}])
def test_targets_are_mixed_as_the_pixels_are(alphas):
    torch.manual_seed(0)
    shares = []
    for _ in range(20):
        images, targets = mix(IMAGES, TARGETS, **alphas)
        torch.testing.assert_close(targets.sum(1), torch.ones(4))
        # A picture's mean is its number and its partner's, in the shares of its target.
        torch.testing.assert_close(images.mean((1, 2, 3)), targets @ torch.arange(4.0))
        shares.append(targets[0, 0].item())
    assert max(shares) - min(shares) > 0.5


def test_mixup_blends_and_cutmix_cuts():
    torch.manual_seed(0)
    blended, _ = mix(IMAGES, TARGETS, mixup=1.0, cutmix=0.0)
    assert len(blended[0].unique()) == 1
    cut, _ = mix(IMAGES, TARGETS, mixup=0.0, cutmix=1.0)
    assert set(cut[0].unique().tolist()) <= {0.0, 3.0}


def test_both_come_at_even_odds():
    torch.manual_seed(0)
    is_blended = []
    for _ in range(200):
        images, _ = mix(IMAGES, TARGETS, mixup=1.0, cutmix=1.0)
        values = set(images[0].unique().tolist())
        is_blended.append(not values <= {0.0, 3.0})
    assert 70 < sum(is_blended) < 130


def test_neither():
    images, targets = mix(IMAGES, TARGETS, mixup=0.0, cutmix=0.0)
    assert images is IMAGES
    assert targets is TARGETS


def test_erasing_fills_rectangles_of_some_pictures():
    torch.manual_seed(0)
    before = torch.full((400, 3, 16, 16), 7.0)
    after = erase(before, 0.25)
    assert torch.all(before == 7)
    is_filled = (after != 7).all(1)
    areas = is_filled.sum((1, 2))
    assert 60 < (areas > 0).sum() < 140
    for picture, area in zip(is_filled, areas.tolist(), strict=True):
        if area:
            tall, wide = picture.any(1).sum().item(), picture.any(0).sum().item()
            assert tall * wide == area
            assert area <= 0.4 * 256
    assert torch.equal(erase(before, 0.0), before)
