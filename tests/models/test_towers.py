"""CLIP and CoCa against open_clip's own models."""

from dataclasses import replace

import open_clip
import pytest
import torch
from torch.nn import functional as F

from clipmill.models.coca import build_coca
from clipmill.models.config import ClipConfig, CocaConfig, TextConfig, VisionConfig
from clipmill.models.tokenizer import Tokenizer
from clipmill.models.towers import build_clip
from helpers.tiny_towers import CLIP, COCA


def shapes(model):
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("ViT-B-16", ClipConfig()),
        (
            "ViT-L-14",
            ClipConfig(
                embed_dim=768,
                vision=VisionConfig(patch_size=14, width=1024, layers=24),
                text=TextConfig(width=768, heads=12),
            ),
        ),
        (
            "MobileCLIP-S1",
            ClipConfig(vision=VisionConfig(image_size=256, timm_model="fastvit_mci1")),
        ),
    ],
)
def test_clip_has_open_clips_parameters(name, config):
    """On the meta device: no memory, no arithmetic. MobileCLIP's text tower is another kind."""
    with torch.device("meta"):
        ours = shapes(build_clip(config))
        theirs = shapes(open_clip.create_model(name, device="meta"))
    if config.vision.timm_model:
        # There the trunk's own classifier is the projection, here it is a layer on the trunk.
        ours, theirs = (
            {k: v for k, v in s.items() if k.startswith("visual.trunk.") and ".head." not in k}
            for s in (ours, theirs)
        )
    assert ours == theirs
    assert len(ours) > 100


def test_coca_has_open_clips_parameters():
    clip = ClipConfig(
        embed_dim=768,
        vision=VisionConfig(patch_size=14, width=1024, layers=24),
        text=TextConfig(context_length=76, width=768, heads=12),
    )
    with torch.device("meta"):
        theirs = shapes(open_clip.create_model("coca_ViT-L-14", device="meta"))
        ours = shapes(build_coca(CocaConfig(clip=clip)))
    assert ours == theirs


def test_clips_embeddings():
    torch.manual_seed(0)
    clip = build_clip(CLIP).eval()
    tokens = Tokenizer.from_config(CLIP.text)(["a cube", "two balls"])
    found = clip(torch.rand(2, 3, 32, 32), tokens)
    for key in ("image_features", "text_features"):
        assert found[key].shape == (2, CLIP.embed_dim)
        torch.testing.assert_close(found[key].norm(dim=1), torch.ones(2))


@pytest.mark.parametrize("timm_model", ["", "test_resnet"])
def test_cocas_forward(timm_model):
    torch.manual_seed(0)
    vision = replace(CLIP.vision, timm_model=timm_model)
    config = replace(COCA, clip=replace(CLIP, vision=vision), token_stride=8)
    coca = build_coca(config).eval()
    texts = Tokenizer.from_config(config.clip.text)(["a cube", "two balls"])
    found = coca(torch.rand(2, 3, 32, 32), texts)
    num_tokens, vocabulary = CLIP.text.context_length - 1, CLIP.text.vocab_size
    assert found["logits"].shape == (2, num_tokens, vocabulary)
    assert torch.equal(found["labels"], texts[:, 1:])
    assert found["image_features"].shape == found["text_features"].shape == (2, CLIP.embed_dim)


@torch.no_grad()
@pytest.mark.parametrize("timm_model", ["", "test_resnet"])
def test_coca_reads_no_token_ahead(timm_model):
    """Its decoder is causal, and looks at the image."""
    torch.manual_seed(0)
    vision = replace(CLIP.vision, timm_model=timm_model)
    coca = build_coca(replace(COCA, clip=replace(CLIP, vision=vision), token_stride=8)).eval()
    images = torch.rand(1, 3, 32, 32)
    texts = torch.randint(1, 500, (1, 12))
    changed = texts.clone()
    changed[0, 6] += 7
    before, after = coca(images, texts)["logits"], coca(images, changed)["logits"]
    torch.testing.assert_close(before[:, :6], after[:, :6])
    assert not torch.allclose(before[:, 6], after[:, 6], atol=1e-4)
    assert not torch.allclose(coca(1 - images, texts)["logits"], before, atol=1e-4)


@pytest.mark.parametrize("timm_model", ["", "test_resnet"])
def test_every_weight_of_coca_comes_from_the_seed(timm_model):
    """open_clip leaves its decoder's last projection as the memory was."""
    vision = replace(CLIP.vision, timm_model=timm_model)
    config = replace(COCA, clip=replace(CLIP, vision=vision), token_stride=8)
    models = []
    for garbage in (1e30, float("nan")):
        # What torch.empty is given next is likely to be this memory.
        for _ in range(200):
            torch.full((CLIP.text.width, CLIP.text.vocab_size), garbage)
        torch.manual_seed(3)
        models.append(build_coca(config).state_dict())
    for name, tensor in models[0].items():
        assert torch.equal(models[1][name], tensor), name
    projection = models[0]["text_decoder.text_projection"]
    assert projection.std().item() == pytest.approx(CLIP.text.width**-0.5, rel=0.1)


def test_every_parameter_of_coca_is_trained():
    vision = replace(CLIP.vision, timm_model="test_resnet")
    config = replace(COCA, clip=replace(CLIP, vision=vision), token_stride=8)
    coca = build_coca(config)
    found = coca(torch.rand(2, 3, 32, 32), torch.randint(1, 500, (2, 12)))
    contrastive = (found["image_features"] @ found["text_features"].T * found["logit_scale"]).sum()
    captioning = F.cross_entropy(found["logits"].transpose(1, 2), found["labels"])
    (contrastive + captioning).backward()
    assert [n for n, p in coca.named_parameters() if p.grad is None] == []


def test_trimmed_texts_embed_as_padded_ones_do_in_open_clip():
    torch.manual_seed(0)
    clip = build_clip(CLIP).eval()
    texts = ["a cube", "b", "!"]
    padded = Tokenizer.from_config(CLIP.text, is_padded=True)(texts)
    trimmed = Tokenizer.from_config(CLIP.text)(texts)
    assert trimmed.shape[1] < padded.shape[1]
    with torch.no_grad():
        expected = open_clip.CLIP.encode_text(clip, padded, normalize=True)
        found = clip.encode_text(trimmed, normalize=True)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_a_tower_that_sees_padding_gets_it():
    both_ways = replace(CLIP, text=replace(CLIP.text, is_causal=False))
    tokens = Tokenizer.from_config(both_ways.text)(["a cube"])
    assert tokens.shape[1] == both_ways.text.context_length
    torch.manual_seed(0)
    clip = build_clip(both_ways).eval()
    with torch.no_grad():
        assert torch.equal(clip.encode_text(tokens), open_clip.CLIP.encode_text(clip, tokens))
