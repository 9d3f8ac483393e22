"""ViTDet's pyramid: shapes, size, what each place sees, and its layer norm by formula."""

import pytest
import torch

from clipmill.errors import ConfigError
from clipmill.models.necks import LayerNorm2d, SimpleFeaturePyramid


def test_shapes():
    pyramid = SimpleFeaturePyramid(24, width=10)
    maps = pyramid(torch.randn(2, 24, 6, 9))
    assert [tuple(map_BDhw.shape) for map_BDhw in maps] == [
        (2, 10, 24, 36),
        (2, 10, 12, 18),
        (2, 10, 6, 9),
        (2, 10, 3, 4),
    ]


def test_number_of_parameters():
    """As counted from Li et al.'s description, for ViT-B."""
    width, out = 768, 256
    twice_as_fine = {n: n * (n // 2) * 4 + n // 2 for n in (width, width // 2)}
    to_out = {n: n * out + 2 * out + out * out * 9 + 2 * out for n in (768, 384, 192)}
    finest = twice_as_fine[768] + 2 * 384 + twice_as_fine[384] + to_out[192]
    finer = twice_as_fine[768] + to_out[384]
    pyramid = SimpleFeaturePyramid(width)
    assert sum(p.numel() for p in pyramid.parameters()) == finest + finer + 2 * to_out[768]


@pytest.mark.parametrize(("level", "zoom"), [(0, 4), (1, 2), (2, 1), (3, 0.5)])
def test_a_place_maps_to_its_own_place(level, zoom):
    """Each place of the input moves those of its own footprint, and one more for the 3x3."""
    torch.manual_seed(0)
    pyramid, map_BDhw = SimpleFeaturePyramid(8, width=4), torch.randn(1, 8, 12, 12)
    touched = map_BDhw.clone()
    touched[:, :, 6, 4] += 5
    changed_hw = (pyramid(touched)[level] - pyramid(map_BDhw)[level])[0].abs().amax(0) > 1e-6
    expected_hw = torch.zeros_like(changed_hw)
    top, left = int(6 * zoom), int(4 * zoom)
    side = max(1, int(zoom))
    expected_hw[top - 1 : top + side + 1, left - 1 : left + side + 1] = True
    assert torch.equal(changed_hw, expected_hw)


def test_gradients_reach_every_parameter():
    torch.manual_seed(0)
    pyramid = SimpleFeaturePyramid(8, width=4)
    sum(m.square().mean() * m.abs().sum() for m in pyramid(torch.randn(2, 8, 4, 4))).backward()
    still = [name for name, p in pyramid.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


def test_layer_norm_by_formula():
    torch.manual_seed(0)
    norm = LayerNorm2d(5)
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
    map_BDhw = torch.randn(2, 5, 3, 4)
    mean, variance = map_BDhw.mean(1, True), map_BDhw.var(1, correction=0, keepdim=True)
    expected = (map_BDhw - mean) / (variance + 1e-6).sqrt()
    expected = expected * norm.weight[:, None, None] + norm.bias[:, None, None]
    torch.testing.assert_close(norm(map_BDhw), expected)


def test_width_that_cannot_be_halved_twice():
    with pytest.raises(ConfigError, match="pyramid on 6 channels"):
        SimpleFeaturePyramid(6)
