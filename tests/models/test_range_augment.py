"""RangeAugment: operators and PSNR by hand, gradients by finite differences, what it learns."""

import math

import pytest
import torch
from torch import nn

from clipmill.errors import ConfigError
from clipmill.models.config import RangeAugmentConfig
from clipmill.models.range_augment import (
    LearnableRange,
    RangeAugment,
    add_noise,
    change_brightness,
    change_contrast,
    squared_error,
)


def images(count=4, side=6):
    return torch.rand((count, 3, side, side), generator=torch.Generator().manual_seed(0))


def strengths(*values):
    return torch.tensor(values, dtype=torch.float64).reshape(-1, 1, 1, 1)


def test_operators_by_hand():
    pixels = torch.tensor([[0.1, 0.3], [0.5, 0.7]], dtype=torch.float64).expand(1, 3, 2, 2)
    brighter = change_brightness(pixels, strengths(2.0))
    assert brighter[0, 0].flatten().tolist() == pytest.approx([0.2, 0.6, 1.0, 1.4])
    flatter = change_contrast(pixels, strengths(0.5))  # the mean is 0.4
    assert flatter[0, 2].flatten().tolist() == pytest.approx([0.25, 0.35, 0.45, 0.55])
    for change in (change_brightness, change_contrast):
        assert torch.equal(change(pixels, strengths(1.0)), pixels) or torch.allclose(
            change(pixels, strengths(1.0)), pixels
        )


def test_noise_has_the_strength_as_its_deviation():
    flat = torch.full((2, 3, 100, 100), 0.5, dtype=torch.float64)
    noisy = add_noise(flat, strengths(0.1, 0.01), torch.Generator().manual_seed(1))
    assert (noisy - flat).std(dim=(1, 2, 3)).tolist() == pytest.approx([0.1, 0.01], rel=0.02)


def test_squared_error_of_a_psnr():
    """PSNR = 10 log10(255^2 / MSE): an error of 10 steps everywhere has 28.13 dB."""
    assert squared_error(10 * math.log10(255**2 / 100)) == pytest.approx(100)
    assert squared_error(20) == pytest.approx(650.25)
    assert squared_error(40) == pytest.approx(6.5025)


def test_target_goes_from_start_to_end_by_a_cosine_in_errors():
    augment = RangeAugment(RangeAugmentConfig())
    assert augment.target_error(0) == pytest.approx(6.5025)
    assert augment.target_error(0.5) == pytest.approx((6.5025 + 650.25) / 2)
    assert augment.target_error(1) == pytest.approx(650.25)
    # A third of the way: cos(pi / 3) = 1/2.
    assert augment.target_error(1 / 3) == pytest.approx(650.25 - (650.25 - 6.5025) * 0.75)


def test_loss_by_hand():
    """Errors of 20 and 30 steps: squares 400 and 900 against 650.25, beyond smooth L1's knee."""
    augment = RangeAugment(RangeAugmentConfig())
    before = torch.full((2, 3, 4, 4), 0.5)
    after = before + torch.tensor([20 / 255, -30 / 255]).reshape(2, 1, 1, 1)
    expected = ((250.25 - 0.5) + (249.75 - 0.5)) / 2 * 100 / 65025
    augment.set_progress(1.0)
    assert augment.loss(after, before).item() == pytest.approx(expected, rel=1e-3)


def test_starts_where_ml_cvnets_does():
    augment = RangeAugment(RangeAugmentConfig())
    low, high = (end.item() for end in augment.brightness.ends())
    assert low == pytest.approx(0.1 + 0.8 / (1 + math.exp(-0.5)))
    assert high == pytest.approx(1.1 + 8.9 / (1 + math.exp(-1.5)))
    low, high = (end.item() for end in augment.noise.ends())
    assert low == pytest.approx(2.5e-5)
    assert high == pytest.approx(1e-4 + 0.9999 / (1 + math.exp(-0.1)))


def test_ends_stay_in_their_intervals():
    strength = LearnableRange((0.1, 0.9), (1.1, 10.0), (-50.0, 50.0))
    assert [end.item() for end in strength.ends()] == pytest.approx([0.1, 10.0])
    drawn = strength.draw(1000, torch.Generator().manual_seed(0))
    assert drawn.shape == (1000, 1, 1, 1)
    assert 0.1 <= drawn.min() < 0.2
    assert 9.9 < drawn.max() <= 10.0


@pytest.mark.parametrize("name", ["brightness", "contrast", "noise"])
def test_gradients_reach_both_ends(name):
    """Against central differences, with the same random numbers on both sides."""
    augment = RangeAugment(RangeAugmentConfig()).double()
    with torch.no_grad():  # mild strengths, so that clipping doesn't hide them
        for strength in (augment.brightness, augment.contrast, augment.noise):
            strength.raw_low.fill_(3.0)
            strength.raw_high.fill_(-6.0)
    pixels = images().double() * 0.2 + 0.4

    def loss():
        found = augment(pixels, torch.Generator().manual_seed(5))
        return (found - pixels).square().sum()

    loss().backward()
    for end in (getattr(augment, name).raw_low, getattr(augment, name).raw_high):
        step = 1e-5
        with torch.no_grad():
            end.add_(step)
            above = loss()
            end.sub_(2 * step)
            below = loss()
            end.add_(step)
        assert end.grad.item() != 0
        assert end.grad.item() == pytest.approx(((above - below) / (2 * step)).item(), rel=1e-4)


def test_each_operator_takes_its_share_of_the_batch():
    pixels = images(10) * 0.5
    for chance, count in ((0.0, 0), (0.3, 3), (1.0, 10)):
        augment = RangeAugment(RangeAugmentConfig(prob=chance))
        augment.contrast, augment.noise = _Constant(1.0), _Constant(0.0)
        found = augment(pixels, torch.Generator().manual_seed(2))
        changed = (abs(found - pixels) > 1e-6).flatten(1).any(dim=1)
        assert changed.sum() == count


class _Constant(nn.Module):
    """A strength that doesn't vary."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def draw(self, count, generator=None):
        return torch.full((count, 1, 1, 1), self.value)


def test_order_and_strengths_are_drawn_anew():
    augment = RangeAugment(RangeAugmentConfig())
    pixels = images()
    generator = torch.Generator().manual_seed(0)
    first, second = augment(pixels, generator), augment(pixels, generator)
    assert not torch.equal(first, second)
    again = augment(pixels, torch.Generator().manual_seed(0))
    assert torch.equal(first, again)


def test_result_is_in_range_and_keeps_type_and_layout():
    augment = RangeAugment(RangeAugmentConfig(prob=1.0))
    pixels = images().to(torch.bfloat16)
    found = augment(pixels, torch.Generator().manual_seed(0))
    assert found.dtype == torch.bfloat16
    assert found.min() >= 0
    assert found.max() <= 1


def test_evaluation_leaves_images_alone():
    augment = RangeAugment(RangeAugmentConfig()).eval()
    pixels = images()
    assert augment(pixels) is pixels


def test_training_draws_the_error_to_the_target():
    """From its starting ranges, which distort far more, down to 20 dB."""
    augment = RangeAugment(RangeAugmentConfig(psnr_end_db=20))
    optimizer = torch.optim.Adam(augment.parameters(), lr=0.2)
    pixels = images(64, 8)
    generator = torch.Generator().manual_seed(0)
    errors = []
    for _ in range(150):
        found = augment(pixels, generator)
        augment.set_progress(1.0)
        loss = augment.loss(found, pixels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append((255 * (found - pixels)).square().mean().item())
    target = squared_error(20)
    assert sum(errors[:5]) / 5 > 4 * target
    assert sum(errors[-30:]) / 30 < 2 * target


@pytest.mark.parametrize("values", [{"psnr_start_db": 0.0}, {"prob": 1.5}])
def test_config_out_of_range(values):
    with pytest.raises(ConfigError):
        RangeAugmentConfig(**values)
