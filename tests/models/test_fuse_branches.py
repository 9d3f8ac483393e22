"""Fused mobile encoders give what the trained ones gave."""

import pytest
import torch
from torch import nn

from clipmill.models.config import ClipConfig, VisionConfig
from clipmill.models.execution import fuse_branches
from clipmill.models.towers import build_clip
from helpers.tiny_towers import CLIP, TEXT


def settle(module):
    """Give batch norms statistics and gains that aren't those of their start."""
    torch.manual_seed(0)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(std=0.1)
            norm.running_var.uniform_(0.5, 2.0)
            nn.init.normal_(norm.weight, mean=1.0, std=0.1)
            nn.init.normal_(norm.bias, std=0.1)
    return module


@pytest.mark.parametrize("name", ["fastvit_mci0", "fastvit_mci1", "fastvit_mci2"])
def test_mobile_encoders_are_equal_and_smaller(name):
    vision = VisionConfig(image_size=64, timm_model=name, head="classifier")
    model = settle(build_clip(ClipConfig(embed_dim=16, vision=vision, text=TEXT)))
    model.train()
    fused = fuse_branches(model)
    assert model.training
    assert not fused.training
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = model.eval().encode_image(images, normalize=True)
        found = fused.encode_image(images, normalize=True)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    sizes = [
        sum(1 for m in made.visual.modules() if isinstance(m, nn.Conv2d)) for made in (model, fused)
    ]
    assert sizes[1] < sizes[0]


def test_a_vit_is_copied():
    model = build_clip(CLIP)
    fused = fuse_branches(model)
    assert fused is not model
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(fused.encode_image(images), model.eval().encode_image(images))
