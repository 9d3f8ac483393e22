"""Attention as it is seen, against PyTorch's and a computation by loops."""

import math

import pytest
import timm
import torch
from torch import nn

from clipmill.errors import ConfigError
from clipmill.models.attention import AttentionMeter, capture_attention, patch_distances
from clipmill.models.config import EncoderConfig, VisionConfig
from clipmill.models.encoders import build_dense

VIT = EncoderConfig(
    vision=VisionConfig(image_size=32, patch_size=8, width=32, layers=3, head_width=8)
)


def seen(model: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    maps = []
    with torch.no_grad(), capture_attention(model, maps.append):
        model(images)
    return maps


def test_maps_are_what_the_blocks_multiply_values_with():
    torch.manual_seed(0)
    encoder = build_dense(VIT).eval()
    images = torch.rand(2, 3, 32, 32)
    inputs = []
    block = encoder.trunk.transformer.resblocks[1]
    with torch.no_grad(), block.ln_1.register_forward_hook(lambda _, __, out: inputs.append(out)):
        encoder(images)
    maps = seen(encoder, images)
    assert [tuple(m.shape) for m in maps] == [(2, 4, 17, 17)] * 3
    attn = block.attn
    query, key, _ = (inputs[0] @ attn.in_proj_weight.T + attn.in_proj_bias).chunk(3, dim=-1)
    heads = (2, 17, 4, 8)
    query, key = (x.reshape(heads).transpose(1, 2) for x in (query, key))
    expected = (query @ key.transpose(-1, -2) / math.sqrt(8)).softmax(-1)
    torch.testing.assert_close(maps[1], expected)


@pytest.mark.parametrize(
    ("name", "patch_size", "others"),
    [
        ("test_vit", 16, 1),
        ("test_vit3", 16, 1),
        ("beit_base_patch16_224", 16, 1),
        ("eva02_tiny_patch14_224", 14, 1),
    ],
)
def test_timm_models_are_seen_and_compute_the_same(name, patch_size, others):
    torch.manual_seed(0)
    small = {} if name.startswith("test_") else {"depth": 2, "embed_dim": 48, "num_heads": 3}
    model = timm.create_model(name, num_classes=3, **small).eval()
    size = model.pretrained_cfg["input_size"][-1]
    images = torch.rand(1, 3, size, size)
    with torch.no_grad():
        expected = model(images)
        maps = []
        with capture_attention(model, maps.append):
            found = model(images)
        again = model(images)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(again, expected)
    tokens = (size // patch_size) ** 2 + others
    assert {m.shape[-2:] for m in maps[: len(model.blocks)]} == {(tokens, tokens)}
    for attention in maps:
        torch.testing.assert_close(attention.sum(-1), torch.ones(attention.shape[:-1]))


def test_distance_and_divergence_are_those_of_loops():
    torch.manual_seed(1)
    encoder = build_dense(VIT).eval()
    images = torch.rand(3, 3, 32, 32)
    meter = AttentionMeter(encoder, patch_size=8)
    meter.add(images[:2])
    meter.add(images[2:])
    result = meter.result()
    assert (result.num_images, result.image_size) == (3, 32)
    maps = torch.stack(seen(encoder, images))[..., 1:, 1:].double()
    maps /= maps.sum(-1, keepdim=True)
    for layer, head in [(0, 0), (1, 2), (2, 3)]:
        total = sum(
            maps[layer, image, head, q, k].item() * 8 * math.dist(divmod(q, 4), divmod(k, 4))
            for image in range(3)
            for q in range(16)
            for k in range(16)
        )
        assert result.distance_LH[layer, head].item() == pytest.approx(total / 48, rel=1e-5)
    layer = maps[1]
    pairs = [
        (layer[:, a] * (layer[:, a] / layer[:, b]).log()).sum(-1).mean()
        for a in range(4)
        for b in range(4)
        if a != b
    ]
    assert result.divergence_L[1].item() == pytest.approx(
        torch.stack(pairs).mean().item(), rel=1e-3
    )
    assert result.head_distance_std_L[1] == pytest.approx(result.distance_LH[1].std(correction=0))


def test_a_head_that_sees_only_itself_looks_no_distance_and_an_even_one_the_mean():
    class Uniform(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn_drop, self.fused_attn = nn.Identity(), True

        def forward(self, images):
            even = torch.full((16, 16), 1 / 16)
            return self.attn_drop(
                torch.stack([torch.eye(16), even]).expand(len(images), -1, -1, -1)
            )

    meter = AttentionMeter(Uniform(), patch_size=8)
    meter.add(torch.rand(2, 3, 32, 32))
    own, even = meter.result().distance_LH[0]
    assert own == 0
    assert even.item() == pytest.approx(8 * patch_distances(4).mean().item())


def test_equal_heads_do_not_diverge():
    class Equal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn_drop, self.fused_attn = nn.Identity(), True

        def forward(self, images):
            one = torch.rand(len(images), 1, 196, 196).softmax(-1)
            return self.attn_drop(one.expand(-1, 6, -1, -1))

    meter = AttentionMeter(Equal(), patch_size=16)
    meter.add(torch.rand(16, 3, 224, 224))
    assert meter.result().divergence_L[0].item() == pytest.approx(0, abs=1e-12)


def test_what_has_no_attention_over_patches_is_refused():
    with pytest.raises(ConfigError, match="no attention over patches"):
        AttentionMeter(nn.Conv2d(3, 3, 1), patch_size=8)
    swin = timm.create_model("swin_tiny_patch4_window7_224", num_classes=0)
    with pytest.raises(ConfigError, match="attention is over 49 tokens, of 3136 patches"):
        AttentionMeter(swin, patch_size=4).add(torch.rand(1, 3, 224, 224))
