"""ImageEncoder: the features of the pooled and of the dense encoder, in one pass."""

import numpy as np
import pytest
import torch
from PIL import Image

from clipmill.errors import ConfigError
from clipmill.models.encoders import build_dense, build_pooled
from clipmill.models.image_encoder import load_encoder
from clipmill.models.pretrained import open_encoder

ADDRESSES = (
    "random:open_clip/ViT-S-32-alt",
    "random:timm/test_byobnet",
    "random:timm/test_convnext",
    "random:timm/test_vit",
    "random:timm/fastvit_mci0",
)


@pytest.mark.parametrize("address", ADDRESSES)
def test_features_are_those_of_the_single_encoders(address, monkeypatch):
    encoder = load_encoder(address, seed=3)
    config = open_encoder(address).config
    pooled, dense = build_pooled(config).eval(), build_dense(config).eval()
    tensors = encoder.tower.state_dict()
    pooled.load_state_dict(tensors)
    dense.load_state_dict({k: v for k, v in tensors.items() if k not in dense.pruned})
    images = torch.rand(2, 3, *(2 * [2 * encoder.stride]))
    with torch.no_grad():
        features = encoder(images)
        torch.testing.assert_close(features.pooled, pooled(images))
        for ours, theirs in zip(features.dense, dense(images), strict=True):
            torch.testing.assert_close(ours, theirs)
    assert features.pooled.shape == (2, encoder.width)
    assert [level.shape[1] for level in features.dense] == list(encoder.channels)
    assert encoder.strides == dense.strides


def test_preprocessing_gives_the_towers_size_in_0_to_1():
    encoder = load_encoder("random:timm/test_byobnet")
    gray = Image.fromarray(np.full((40, 70), 255, np.uint8))
    image = encoder.preprocess(gray)
    assert image.shape == (3, encoder.image_size, encoder.image_size)
    assert image.min() == image.max() == 1
    assert not encoder.training


def test_random_weights_follow_from_the_seed_and_leave_torchs_own_stream():
    torch.manual_seed(1)
    first, other = (load_encoder("random:timm/test_byobnet", seed=s).state_dict() for s in (0, 1))
    after = torch.rand(3)
    torch.manual_seed(1)
    again = load_encoder("random:timm/test_byobnet").state_dict()
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert any(not torch.equal(first[k], other[k]) for k in first)
    torch.testing.assert_close(after, torch.rand(3))


def test_gradients_reach_the_tower():
    encoder = load_encoder("random:timm/test_vit").train()
    features = encoder(torch.rand(2, 3, encoder.image_size, encoder.image_size))
    (features.pooled.sum() + features.dense[0].sum()).backward()
    assert any(p.grad is not None for p in encoder.parameters())


def test_an_unknown_address_is_refused():
    with pytest.raises(ConfigError):
        load_encoder("timn:resnet18")
