"""The masked autoencoder against transformers' ViTMAE, with the same weights and the same noise."""

import numpy as np
import pytest
import torch
from transformers import ViTMAEConfig, ViTMAEForPreTraining
from transformers.models.vit_mae.modeling_vit_mae import get_2d_sincos_pos_embed

from clipmill.errors import ConfigError
from clipmill.models.config import MaeConfig, VisionConfig
from clipmill.pretrain.mae import MaskedAutoencoder, sine_positions
from helpers.tiny_towers import VIT

CONFIG = MaeConfig(
    vision=VisionConfig(
        image_size=32, patch_size=8, width=32, layers=2, head_width=16, has_input_norm=False
    ),
    decoder_width=16,
    decoder_layers=2,
    decoder_heads=4,
)


def reference(config):
    """transformers' model of the same shape; its patches have biases, and they aren't zero."""
    torch.manual_seed(0)
    vision = config.vision
    made = ViTMAEForPreTraining(
        ViTMAEConfig(
            hidden_size=vision.width,
            num_hidden_layers=vision.layers,
            num_attention_heads=vision.width // vision.head_width,
            intermediate_size=4 * vision.width,
            layer_norm_eps=1e-5,
            image_size=vision.image_size,
            patch_size=vision.patch_size,
            decoder_num_attention_heads=config.decoder_heads,
            decoder_hidden_size=config.decoder_width,
            decoder_num_hidden_layers=config.decoder_layers,
            decoder_intermediate_size=4 * config.decoder_width,
            mask_ratio=config.mask_ratio,
            norm_pix_loss=True,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    ).eval()
    with torch.no_grad():
        # transformers 4.55 starts these at zero, and takes them from its checkpoints.
        grid = vision.image_size // vision.patch_size
        places = get_2d_sincos_pos_embed(config.decoder_width, grid, add_cls_token=True)
        made.decoder.decoder_pos_embed.copy_(torch.from_numpy(places)[None])
        for name, parameter in made.named_parameters():
            if "position" not in name and "pos_embed" not in name:
                parameter.normal_(std=0.1)
    return made


def block(theirs, prefix, ours):
    """A transformer block's weights, by open_clip's names."""
    parts = [f"{prefix}.attention.attention.{p}" for p in ("query", "key", "value")]
    names = {
        "ln_1": "layernorm_before",
        "attn.out_proj": "attention.output.dense",
        "ln_2": "layernorm_after",
        "mlp.c_fc": "intermediate.dense",
        "mlp.c_proj": "output.dense",
    }
    found = {}
    for kind in ("weight", "bias"):
        found[f"{ours}.attn.in_proj_{kind}"] = torch.cat([theirs[f"{p}.{kind}"] for p in parts])
        found |= {f"{ours}.{a}.{kind}": theirs[f"{prefix}.{b}.{kind}"] for a, b in names.items()}
    return found


def our_weights(config, model):
    theirs = model.state_dict()
    positions = theirs["vit.embeddings.position_embeddings"][0].clone()
    # Their patches' bias is the same for every place, so positions can carry it.
    positions[1:] += theirs["vit.embeddings.patch_embeddings.projection.bias"]
    found = {
        "visual.conv1.weight": theirs["vit.embeddings.patch_embeddings.projection.weight"],
        "visual.class_embedding": theirs["vit.embeddings.cls_token"][0, 0],
        "visual.positional_embedding": positions,
        "mask_token": theirs["decoder.mask_token"][0, 0],
    }
    for ours, name in (
        ("visual.ln_post", "vit.layernorm"),
        ("to_decoder", "decoder.decoder_embed"),
        ("norm", "decoder.decoder_norm"),
        ("to_pixels", "decoder.decoder_pred"),
    ):
        found |= {f"{ours}.{kind}": theirs[f"{name}.{kind}"] for kind in ("weight", "bias")}
    for i in range(config.vision.layers):
        found |= block(theirs, f"vit.encoder.layer.{i}", f"visual.transformer.resblocks.{i}")
    for i in range(config.decoder_layers):
        found |= block(theirs, f"decoder.decoder_layers.{i}", f"decoder.resblocks.{i}")
    return found


def same_pair(config):
    theirs = reference(config)
    ours = MaskedAutoencoder(config)
    ours.load_state_dict(our_weights(config, theirs))  # strict: nothing is left over
    return ours, theirs


@pytest.mark.parametrize("mask_ratio", [0.75, 0.6])
def test_forward_and_loss_are_those_of_transformers(mask_ratio):
    config = MaeConfig.from_json(CONFIG.to_json() | {"mask_ratio": mask_ratio})
    ours, theirs = same_pair(config)
    images, noise = torch.randn(3, 3, 32, 32), torch.rand(3, 16)
    found, expected = ours(images, noise), theirs(images, noise=noise)
    assert torch.equal(found.is_masked_BN, expected.mask.bool())
    torch.testing.assert_close(found.patches_BNP, expected.logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-5, atol=1e-6)


def test_gradients_are_those_of_transformers():
    ours, theirs = same_pair(CONFIG)
    images, noise = torch.randn(3, 3, 32, 32), torch.rand(3, 16)
    ours(images, noise).loss.backward()
    theirs(images, noise=noise).loss.backward()
    pairs = [
        (ours.visual.conv1.weight, theirs.vit.embeddings.patch_embeddings.projection.weight),
        (ours.mask_token, theirs.decoder.mask_token),
        (ours.to_pixels.weight, theirs.decoder.decoder_pred.weight),
    ]
    for a, b in pairs:
        torch.testing.assert_close(a.grad, b.grad.reshape(a.shape), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("grid", "width"), [(4, 32), (14, 768)])
def test_positions_are_those_of_transformers(grid, width):
    expected = torch.from_numpy(get_2d_sincos_pos_embed(width, grid, add_cls_token=True))
    torch.testing.assert_close(sine_positions(grid, width), expected.float())


def test_positions_are_fixed_and_masks_are_drawn():
    torch.manual_seed(0)
    made = MaskedAutoencoder(CONFIG)
    images = torch.randn(2, 3, 32, 32)
    first, second = made(images), made(images)
    assert first.is_masked_BN.sum(1).tolist() == [12, 12]
    assert not torch.equal(first.is_masked_BN, second.is_masked_BN)
    first.loss.backward()
    assert made.visual.positional_embedding.grad is None
    without = [n for n, p in made.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []


def test_hidden_patches_are_not_seen():
    made = MaskedAutoencoder(CONFIG).eval()
    images, noise = torch.randn(1, 3, 32, 32), torch.arange(16.0)[None]
    changed = images.clone()
    changed[..., 8:, :] = 0  # noise is lowest in the upper left: the first four patches are seen
    with torch.no_grad():
        pairs = made(images, noise), made(changed, noise)
    assert np.flatnonzero(~pairs[0].is_masked_BN[0].numpy()).tolist() == [0, 1, 2, 3]
    assert torch.equal(pairs[0].patches_BNP, pairs[1].patches_BNP)
    assert pairs[0].loss != pairs[1].loss


def test_what_cannot_be_masked():
    with pytest.raises(ConfigError, match="timm_model was 'resnet18'"):
        MaeConfig(vision=VisionConfig(timm_model="resnet18"))
    with pytest.raises(ConfigError, match=r"mask_ratio was 1\.0"):
        MaeConfig(vision=VIT, mask_ratio=1.0)
