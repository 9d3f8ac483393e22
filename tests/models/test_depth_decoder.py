"""The depth decoder: its size, its range, its layers at each stride."""

import pytest
import torch
from torch import nn

from clipmill.models import execution
from clipmill.models.heads import DepthDecoder


@torch.no_grad()
@pytest.mark.parametrize("stride", [1, 2, 4, 8, 12, 14, 16, 32])
def test_reaches_the_images_size(stride):
    decoder = DepthDecoder(6, 5, stride, 10.0).eval()
    depth = decoder(torch.randn(2, 6, 3, 4))
    assert depth.shape == (2, 1, 3 * stride, 4 * stride)


@pytest.mark.parametrize(("stride", "num_learned"), [(4, 2), (8, 3), (16, 3), (32, 3)])
def test_learned_steps(stride, num_learned):
    """Three deconvolutions where the stride needs them, as in Xie et al. 2023."""
    decoder = DepthDecoder(6, 5, stride, 10.0)
    found = [m for m in decoder.modules() if isinstance(m, nn.ConvTranspose2d)]
    assert len(found) == num_learned
    assert [m.in_channels for m in found] == [6, 32, 32][:num_learned]


@torch.no_grad()
def test_depth_lies_between_0_and_the_largest():
    torch.manual_seed(0)
    decoder = DepthDecoder(6, 5, 8, 4.0)
    for parameter in decoder.parameters():
        parameter.copy_(torch.randn_like(parameter))
    depth = decoder(10 * torch.randn(2, 6, 4, 4))
    assert 0 <= depth.min() < 1
    assert 3 < depth.max() <= 4


@torch.no_grad()
def test_it_starts_in_the_middle():
    """Small weights and a sigmoid: half of the range."""
    depth = DepthDecoder(6, 5, 16, 10.0)(torch.randn(2, 6, 4, 4))
    torch.testing.assert_close(depth, torch.full_like(depth, 5.0), rtol=0, atol=1e-3)


def test_a_batch_too_large_for_one_map(monkeypatch):
    """What resizing counts in 32 bits on a GPU comes in pieces, gradients too."""
    torch.manual_seed(0)
    decoder = DepthDecoder(6, 5, 16, 10.0, init_std=0.1).double()
    maps = torch.randn(5, 6, 2, 3, dtype=torch.float64)
    whole = decoder(maps)
    expected = torch.autograd.grad(whole.square().sum(), list(decoder.parameters()))
    resized = []
    decoder.head.register_forward_pre_hook(lambda _, given: resized.append(len(given[0])))
    monkeypatch.setattr(execution, "MAX_ELEMENTS", 2 * 5 * 32 * 48)
    depth = decoder(maps)
    assert resized == [2, 2, 1]
    torch.testing.assert_close(depth, whole)
    found = torch.autograd.grad(depth.square().sum(), list(decoder.parameters()))
    torch.testing.assert_close(found, expected)
