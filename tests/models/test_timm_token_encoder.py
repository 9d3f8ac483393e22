"""Image tokens of a timm model."""

import pytest
import timm
import torch

from clipmill.errors import ConfigError
from clipmill.models.coca import TimmTokenEncoder


def tokens_of(name="test_resnet", stride=8):
    torch.manual_seed(0)
    return TimmTokenEncoder(name, image_size=64, stride=stride, width=24, embed_dim=10).eval()


@torch.no_grad()
@pytest.mark.parametrize(("stride", "side"), [(8, 8), (16, 4), (32, 2)])
def test_a_token_for_each_place_of_the_map(stride, side):
    tower = tokens_of(stride=stride)
    images = torch.rand(2, 3, 64, 64)
    pooled, tokens = tower(images)
    assert pooled.shape == (2, 10)
    assert tokens.shape == (2, side * side, 24)
    reference = timm.create_model("test_resnet", num_classes=0).eval()
    reference.load_state_dict(tower.trunk.state_dict(), strict=False)
    maps = reference.forward_intermediates(images, intermediates_only=True)
    (map_BDhw,) = [m for m in maps if m.shape[-1] == side]
    rows = tower.to_tokens(map_BDhw.permute(0, 2, 3, 1).reshape(2, side * side, -1))
    torch.testing.assert_close(tokens, tower.norm(rows + tower.positions))
    torch.testing.assert_close(pooled, tower.to_embedding(tokens.mean(1)))


def test_nothing_above_the_map_is_kept():
    tower = tokens_of(stride=8).train()
    pooled, tokens = tower(torch.rand(2, 3, 64, 64))
    (pooled.sum() + tokens.square().sum()).backward()
    assert [n for n, p in tower.named_parameters() if p.grad is None] == []


def test_a_stride_that_the_model_lacks():
    with pytest.raises(ConfigError, match="no map of stride 12"):
        tokens_of(stride=12)
