"""Any encoder: twelve of different families through two steps of segmentation and of depth.

Of timm: convolution and attention, hierarchical and plain, absolute, relative and rotary
positions, with and without class token; of open_clip: its ViT, and its timm towers.
"""

import itertools

import pytest
import torch

from clipmill.engine.config import AdamWConfig
from clipmill.engine.optim import build_optimizer, set_lr
from clipmill.models.config import EncoderConfig
from clipmill.models.execution import to_channels_last
from clipmill.models.pretrained import open_encoder
from clipmill.tasks.training_registry import get_training_task
from helpers.tiny_tasks import DEPTH, SEGMENTATION, VIT

TASKS = {"segmentation": SEGMENTATION, "depth": DEPTH}
SIDE = 64
FIXED = {"random:timm/test_vit_relpos": 160, "random:timm/test_maxvit": 160}
"""Sides of those that timm builds for one size, or windows that divide it."""

ENCODERS = {
    "open_clip's ViT": VIT,
    "open_clip's MobileCLIP-S1, FastViT": "random:open_clip/MobileCLIP-S1",
    "ViT with class token": "random:timm/vit_tiny_patch16_224",
    "ViT without class token": "random:timm/test_vit3",
    "ViT with relative positions": "random:timm/test_vit_relpos",
    "ViT with rotary positions": "random:timm/vit_small_patch16_rope_224",
    "ResNet": "random:timm/test_resnet",
    "EfficientNet": "random:timm/test_efficientnet",
    "ConvNeXt": "random:timm/test_convnext",
    "Swin, windows with relative positions": "random:timm/swinv2_cr_tiny_ns_224",
    "MaxViT, convolution and attention": "random:timm/test_maxvit",
    "PVT, hierarchical attention": "random:timm/pvt_v2_b0",
}


def opened(name):
    encoder = ENCODERS[name]
    return encoder if isinstance(encoder, EncoderConfig) else open_encoder(encoder).config


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", ENCODERS)
def test_two_steps(name, task):
    """Both steps change the encoder's first and last layer; the trained weights are servable."""
    torch.manual_seed(0)
    side = FIXED.get(ENCODERS[name], SIDE) if isinstance(ENCODERS[name], str) else SIDE
    config = TASKS[task].override(["drop_path=0.1", f"crop_size={side}"])
    encoder = opened(name)
    classes = ("floor", "wall", "cube") if task == "segmentation" else ()
    objective = get_training_task(task).build_objective(config, encoder, classes).train()
    to_channels_last(objective)  # as training does
    batch = {
        "images": torch.randint(0, 256, (2, side, side, 3), dtype=torch.uint8),
        "labels": torch.randint(0, 3, (2, side, side), dtype=torch.uint8),
        "depth": 1 + 8 * torch.rand(2, side, side),
    }
    optimizer = build_optimizer(objective, AdamWConfig(layer_decay=0.8))
    set_lr(optimizer, 1e-3)
    layers = {n: objective.layer_id(n) for n, p in objective.named_parameters() if p.requires_grad}
    own = [layer for layer in layers.values() if layer is not None]
    assert min(own) in {0, 1}  # a stem that timm counts as a stage is layer 1
    assert max(own) <= objective.encoder.num_layers
    for _ in range(2):
        before = {n: p.detach().clone() for n, p in objective.named_parameters()}
        loss = sum(objective(batch).values())
        assert torch.isfinite(loss)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    moved = {n for n, p in objective.named_parameters() if not torch.equal(p, before[n])}
    assert {min(own), max(own)} <= {layers[n] for n in moved if n in layers}

    served = get_training_task(task).build_inference_model(config, encoder, classes).eval()
    state = objective.state_dict()
    names = {n: get_training_task(task).inference_key(n) for n in state}
    served.load_state_dict({s: state[n] for n, s in names.items() if s is not None})
    with torch.no_grad():
        found = served(torch.rand(1, 3, side, side))
    assert found.shape == (1, side, side)
    assert torch.isfinite(found.float()).all()


def test_they_are_twelve_and_differ():
    assert len(ENCODERS) == 12
    assert len({e if isinstance(e, str) else "ours" for e in ENCODERS.values()}) == 12
    families = list(itertools.islice(ENCODERS, 12))
    assert len({name.split(",")[0] for name in families}) == 12
