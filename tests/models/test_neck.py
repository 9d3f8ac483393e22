"""Four maps for any encoder."""

import pytest
import torch

from clipmill.models.config import EncoderConfig, VisionConfig
from clipmill.models.encoders import build_dense
from clipmill.models.necks import build_neck
from helpers.tiny_towers import VIT


@torch.no_grad()
@pytest.mark.parametrize("vision", [VIT, VisionConfig(timm_model="test_vit")])
def test_a_plain_encoder_gets_a_pyramid(vision):
    encoder = build_dense(EncoderConfig(vision=vision))
    neck = build_neck(encoder, 12)
    maps = neck(encoder(torch.rand(1, 3, 64, 64)))
    assert neck.channels == (12,) * 4
    sides = [64 * scale // (2 * encoder.strides[0]) for scale in (8, 4, 2, 1)]
    assert [tuple(m.shape) for m in maps] == [(1, 12, side, side) for side in sides]


@torch.no_grad()
def test_four_stages_stay_as_they_are():
    encoder = build_dense(EncoderConfig(vision=VisionConfig(timm_model="test_resnet"))).eval()
    neck = build_neck(encoder, 12)
    maps = encoder(torch.rand(1, 3, 64, 64))
    assert neck.channels == encoder.channels
    assert all(a is b for a, b in zip(neck(maps), maps, strict=True))
    assert not list(neck.parameters())
