"""Pooled towers against open_clip's and timm's own."""

import pytest
import timm
import torch

from clipmill.models.checkpoint import CheckpointMetadata, save_checkpoint
from clipmill.models.config import ClipConfig, EncoderConfig, TextConfig, VisionConfig
from clipmill.models.encoders import build_pooled
from clipmill.models.pretrained import PretrainedEncoder
from clipmill.models.towers import build_clip

VISION = VisionConfig(image_size=32, patch_size=8, width=16, layers=2, head_width=8)


def test_vit_is_open_clips_before_its_projection(tmp_path):
    torch.manual_seed(0)
    clip = build_clip(
        ClipConfig(embed_dim=8, vision=VISION, text=TextConfig(width=8, heads=2, layers=1))
    ).eval()
    metadata = CheckpointMetadata(kind="clip", architecture={}, recipe={})
    saved = save_checkpoint(str(tmp_path), metadata, clip.state_dict())
    encoder = build_pooled(EncoderConfig(vision=VISION)).eval()
    start = PretrainedEncoder(
        config=EncoderConfig(vision=VISION), parent=saved.as_parent("encoder"), read=clip.state_dict
    )
    start.load_weights(encoder)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        found = encoder(images) @ clip.visual.proj
        torch.testing.assert_close(found, clip.visual(encoder.normalize(images)))
        # At another size the grid of positions is interpolated.
        assert encoder(torch.rand(2, 3, 48, 64)).shape == (2, 16)


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "fastvit_mci0"])
def test_timm_is_its_own_pooling(name):
    torch.manual_seed(0)
    encoder = build_pooled(EncoderConfig(vision=VisionConfig(timm_model=name))).eval()
    own = timm.create_model(name, num_classes=0).eval()
    own.load_state_dict(encoder.trunk.state_dict())
    side = own.pretrained_cfg["input_size"][-1]
    images = torch.rand(1, 3, side, side)
    with torch.no_grad():
        torch.testing.assert_close(encoder(images), own(encoder.normalize(images)))
        assert encoder(images).shape == (1, encoder.width)
    layers = {encoder.layer_id(n) for n, _ in encoder.named_parameters()}
    assert min(layers) == 0
    assert max(layers) <= encoder.num_layers
