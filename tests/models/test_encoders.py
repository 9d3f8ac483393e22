"""Dense encoders against the towers that they are made of."""

from dataclasses import replace

import pytest
import timm
import torch
from torch.nn import functional as F

from clipmill.errors import ArtifactError, ConfigError, NotFoundError
from clipmill.models.checkpoint import CheckpointMetadata, save_checkpoint
from clipmill.models.config import CLIP_MEAN, CLIP_STD, EncoderConfig, VisionConfig
from clipmill.models.encoders import build_dense
from clipmill.models.pretrained import open_encoder
from clipmill.models.towers import build_clip
from helpers.tiny_towers import CLIP, VIT

TIMM_MODELS = [
    "resnet10t",
    "test_convnext",
    "test_vit",
    "vit_tiny_patch16_224",
    "test_efficientnet",
]
PLAIN = {"test_vit", "vit_tiny_patch16_224"}


def timm_config(name):
    return EncoderConfig(vision=VisionConfig(timm_model=name))


def shaken_clip(config=CLIP):
    """CLIP with no parameter left at 0 or 1, so that each of them shows in what it computes."""
    torch.manual_seed(0)
    clip = build_clip(config).eval()
    with torch.no_grad():
        for parameter in clip.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return clip


def save_clip(folder, clip, config=CLIP):
    metadata = CheckpointMetadata(kind="clip", architecture=config.to_json(), recipe={})
    return save_checkpoint(str(folder), metadata, clip.state_dict()).uri


def opened(uri, drop_path=0.0):
    start = open_encoder(uri)
    encoder = build_dense(start.config, drop_path=drop_path)
    start.load_weights(encoder)
    return encoder


def normalized(images):
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (CLIP_MEAN, CLIP_STD))
    return (images - mean) / std


@torch.no_grad()
def test_vit_gives_open_clips_last_tokens(tmp_path):
    """The patches' tokens of the last block, after the tower's own last norm."""
    clip = shaken_clip()
    encoder = opened(save_clip(tmp_path, clip)).eval()
    images = torch.rand(2, 3, 32, 32)
    (found,) = encoder(images)
    expected = clip.visual.forward_intermediates(
        normalized(images), indices=1, normalize_intermediates=True, intermediates_only=True
    )["image_intermediates"][-1]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert found.shape == (2, *encoder.channels, 32 // 8, 32 // 8)
    assert found.std() > 0.1


@torch.no_grad()
@pytest.mark.parametrize("size", [(32, 64), (48, 48), (16, 24)])
def test_vit_at_another_size_is_a_tower_with_interpolated_positions(tmp_path, size):
    clip = shaken_clip()
    encoder = opened(save_clip(tmp_path, clip)).eval()
    images = torch.rand(2, 3, *size)
    (found,) = encoder(images)

    height, width = (side // 8 for side in size)
    visual = clip.visual
    kept, grid = visual.positional_embedding[:1], visual.positional_embedding[1:]
    grid = F.interpolate(
        grid.reshape(1, 4, 4, -1).permute(0, 3, 1, 2),
        (height, width),
        mode="bicubic",
        antialias=True,
    )
    visual.positional_embedding = torch.nn.Parameter(
        torch.cat([kept, grid.permute(0, 2, 3, 1).reshape(height * width, -1)])
    )
    expected = visual.forward_intermediates(
        normalized(images), indices=1, normalize_intermediates=True, intermediates_only=True
    )["image_intermediates"][-1]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["", *TIMM_MODELS])
def test_maps_have_the_strides_and_channels_that_are_named(name):
    config = timm_config(name) if name else EncoderConfig(vision=VIT)
    encoder = build_dense(config).eval()
    with torch.no_grad():
        maps = encoder(torch.rand(2, 3, 64, 96))
    expected = zip(encoder.channels, encoder.strides, strict=True)
    assert [tuple(m.shape) for m in maps] == [(2, c, 64 // s, 96 // s) for c, s in expected]
    assert list(encoder.strides) == sorted(encoder.strides)
    assert len(maps) == (1 if not name or name in PLAIN else 4)


@pytest.mark.parametrize("name", ["", *TIMM_MODELS, "mobilenetv3_small_050"])
def test_every_parameter_has_a_layer_and_layers_rise(name):
    encoder = build_dense(timm_config(name) if name else EncoderConfig(vision=VIT))
    layers = {n: encoder.layer_id(n) for n, _ in encoder.named_parameters()}
    assert list(layers.values()) == sorted(layers.values())
    assert min(layers.values()) == 0
    assert max(layers.values()) == encoder.num_layers


def test_layers_of_a_vit():
    encoder = build_dense(EncoderConfig(vision=VIT))
    assert encoder.num_layers == 4
    assert encoder.layer_id("trunk.positional_embedding") == 0
    assert encoder.layer_id("trunk.conv1.weight") == 0
    assert encoder.layer_id("trunk.transformer.resblocks.2.mlp.c_fc.bias") == 3
    assert encoder.layer_id("norm.weight") == 4


@pytest.mark.parametrize("name", ["", *TIMM_MODELS])
def test_every_parameter_is_trained(name):
    """One without a gradient would stop training on several ranks."""
    config = timm_config(name) if name else EncoderConfig(vision=VIT)
    encoder = build_dense(config)
    sum(m.square().sum() for m in encoder(torch.rand(2, 3, 64, 64))).backward()
    assert [n for n, p in encoder.named_parameters() if p.grad is None] == []


@torch.no_grad()
@pytest.mark.parametrize("name", TIMM_MODELS)
def test_a_timm_tower_computes_what_timm_does(tmp_path, name):
    """Weights by way of a CLIP checkpoint; the reference is a fresh timm model that holds them."""
    config = replace(CLIP, vision=VisionConfig(timm_model=name))
    torch.manual_seed(0)
    clip = build_clip(config).eval()
    encoder = opened(save_clip(tmp_path, clip, config)).eval()
    reference = timm.create_model(name, num_classes=0).eval()
    reference.load_state_dict(clip.visual.trunk.state_dict())
    side = reference.default_cfg["input_size"][1]
    images = torch.rand(1, 3, side, side)
    if name in PLAIN:
        tokens = reference.forward_features(normalized(images))[:, reference.num_prefix_tokens :]
        grid = side // encoder.strides[0]
        expected = [tokens.transpose(1, 2).unflatten(2, (grid, grid))]
    else:
        expected = reference.forward_intermediates(normalized(images), intermediates_only=True)[-4:]
    for found, feature in zip(encoder(images), expected, strict=True):
        torch.testing.assert_close(found, feature, rtol=1e-4, atol=1e-5)


def test_drop_path_keeps_the_expectation_and_skips_whole_updates():
    torch.manual_seed(0)
    config = EncoderConfig(vision=replace(VIT, layers=2))
    encoder = build_dense(config, drop_path=0.5)
    image = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        encoder.norm = torch.nn.Identity()  # a mean of normalized tokens would be another
        (kept_once,) = encoder.eval()(image)
        encoder.train()
        (many,) = encoder(image.expand(4000, -1, -1, -1))
        tokens = many.flatten(1)
    # The first block never drops, the last does for half of the samples: two outcomes.
    outcomes = torch.unique(tokens.round(decimals=3), dim=0)
    assert len(outcomes) == 2
    spread = (outcomes[0] - outcomes[1]).abs().max()
    mean = tokens.mean(0)
    assert (mean - kept_once.flatten()).abs().max() < 0.05 * spread


def test_drop_path_is_for_training_alone():
    encoder = build_dense(EncoderConfig(vision=VIT), drop_path=0.9).eval()
    image = torch.rand(1, 3, 32, 32)
    assert torch.equal(encoder(image)[0], encoder(image)[0])


def test_timm_gets_the_rate_of_drop_path():
    encoder = build_dense(timm_config("test_vit"), drop_path=0.3)
    rates = [block.drop_path1.drop_prob for block in encoder.trunk.blocks[1:]]
    assert rates[-1] == pytest.approx(0.3)
    assert rates == sorted(rates)


@pytest.mark.parametrize(
    ("name", "vision"),
    [
        ("random:timm/test_vit", VisionConfig(timm_model="test_vit")),
        ("random:open_clip/ViT-B-32", VisionConfig(patch_size=32, resize="shortest")),
        (
            "random:open_clip/MobileCLIP-S1",
            VisionConfig(
                image_size=256,
                timm_model="fastvit_mci1",
                pool="avg",
                head="classifier",
                resize="shortest",
            ),
        ),
    ],
)
def test_encoders_from_scratch(name, vision):
    found = open_encoder(name)
    assert found.config.vision == vision
    assert found.read is None
    assert name in found.notice
    assert (found.parent.role, found.parent.uri) == ("encoder", name)


def test_the_checkpoint_is_the_encoders_parent(tmp_path):
    clip = build_clip(CLIP)
    metadata = CheckpointMetadata(kind="clip", architecture=CLIP.to_json(), recipe={})
    metadata = save_checkpoint(str(tmp_path), metadata, clip.state_dict())
    assert open_encoder(str(tmp_path)).parent == metadata.as_parent("encoder")


def test_unknown_open_clip_model():
    with pytest.raises(ConfigError, match="no model named 'ViT-B-17'"):
        open_encoder("random:open_clip/ViT-B-17")


def test_no_checkpoint(tmp_path):
    with pytest.raises(NotFoundError):
        open_encoder(str(tmp_path / "nothing"))


def test_a_checkpoint_of_another_kind(tmp_path):
    save_checkpoint(str(tmp_path), CheckpointMetadata(kind="coca", architecture={}, recipe={}), {})
    with pytest.raises(ArtifactError, match="of kind 'coca'"):
        open_encoder(str(tmp_path))


def test_a_checkpoint_that_lacks_a_tensor(tmp_path):
    tensors = build_clip(CLIP).state_dict()
    del tensors["visual.conv1.weight"]
    metadata = CheckpointMetadata(kind="clip", architecture=CLIP.to_json(), recipe={})
    save_checkpoint(str(tmp_path), metadata, tensors)
    with pytest.raises(ArtifactError, match=r"trunk\.conv1\.weight"):
        opened(str(tmp_path))
