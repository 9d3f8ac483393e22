"""Public weights through a few steps of all four tasks.

Patch 14, registers, rotary positions, no class token, QuickGELU.
"""

import json

import numpy as np
import open_clip
import pytest
import timm
import torch
from safetensors.torch import save_file

from clipmill.engine.config import AdamWConfig
from clipmill.engine.optim import build_optimizer, set_lr
from clipmill.errors import ConfigError
from clipmill.models.pretrained import open_encoder
from clipmill.tasks.config import ClassificationConfig, DetectionConfig
from clipmill.tasks.training_registry import get_training_task
from helpers.tiny_tasks import DEPTH, SEGMENTATION

TASKS = {
    "segmentation": SEGMENTATION,
    "depth": DEPTH,
    "detection": DetectionConfig(neck_channels=8, roi_hidden_dim=16, num_proposals=20),
    "classification": ClassificationConfig(test_size=448),
}
CLASSES = ("floor", "wall", "cube")
TINY = {"embed_dim": 48, "depth": 2, "num_heads": 4}
TIMM = {
    "DINOv2 with registers, patch 14": ("vit_base_patch14_reg4_dinov2", 56),
    "DINOv3, rotary": ("vit_small_patch16_dinov3", 64),
    "Perception Encoder, rotary, pooled by attention": ("vit_pe_core_base_patch16_224", 64),
    "TIPS, patch 14": ("vit_base_patch14_reg1_tipsv2", 56),
    "SigLIP 2, no class token": ("vit_base_patch16_siglip_256", 64),
}
NAMES = ["open_clip's ViT, QuickGELU", *TIMM]


def saved(name, folder):
    """The address of the model in its own library's layout, and a side of images that fits."""
    torch.manual_seed(0)  # and shaken, so that scales of 1e-5 in the blocks hide no gradient
    if name in TIMM:
        architecture, side = TIMM[name]
        arguments = TINY | {"img_size": side}
        model = timm.create_model(architecture, num_classes=0, **arguments)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
        save_file(model.state_dict(), folder / "model.safetensors")
        value = {"architecture": architecture, "model_args": arguments, "pretrained_cfg": {}}
        (folder / "config.json").write_text(json.dumps(value))
        return f"file:{folder}", side
    config = {
        "embed_dim": 16,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 64, "patch_size": 16, "width": 32, "layers": 2,
                       "head_width": 16},
        "text_cfg": {"width": 16, "heads": 2, "layers": 1},
    }  # fmt: skip
    save_file(open_clip.CLIP(**config).state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    return f"file:{folder}", 64


def batch_of(task, side):
    images = torch.randint(0, 256, (2, side, side, 3), dtype=torch.uint8)
    if task == "classification":
        return {"images": images, "labels": torch.tensor([0, 2])}
    if task != "detection":
        labels = torch.randint(0, 3, (2, side, side), dtype=torch.uint8)
        return {"images": images, "labels": labels, "depth": 1 + 8 * torch.rand(2, side, side)}
    masks = np.zeros((2, 1, side, side), np.uint8)
    masks[:, :, 8:32, 8:40] = 1
    return {
        "images": images,
        "boxes": torch.tensor([[[8.0, 8.0, 40.0, 32.0]]] * 2),
        "labels": torch.tensor([[1], [2]]),
        "masks": torch.from_numpy(np.packbits(masks, axis=-1)),
        "has_mask": torch.ones(2, 1, dtype=torch.bool),
        "is_crowd": torch.zeros(2, 1, dtype=torch.bool),
    }


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", NAMES)
def test_three_steps(name, task, tmp_path):
    """The weights are the file's at first, and every one of them moves."""
    address, side = saved(name, tmp_path)
    start = open_encoder(address)
    size = "image_size" if task in {"classification", "detection"} else "crop_size"
    config = TASKS[task].override([f"{size}={side}"])
    objective = get_training_task(task).build_objective(config, start.config, CLASSES).train()
    for needed in get_training_task(task).input_sizes(config):
        objective.encoder.validate_image_size(needed)
    start.load_weights(objective.encoder)
    first = {n: p.detach().clone() for n, p in objective.encoder.named_parameters()}
    optimizer = build_optimizer(objective, AdamWConfig(layer_decay=0.8))
    set_lr(optimizer, 1e-3)
    for _ in range(3):
        loss = sum(objective(batch_of(task, side)).values())
        assert torch.isfinite(loss)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    still = [n for n, p in objective.encoder.named_parameters() if torch.equal(p, first[n])]
    assert still == []


def test_a_patch_of_14_in_a_recipe_for_16_is_refused_with_sizes_that_fit(tmp_path):
    address, _ = saved("TIPS, patch 14", tmp_path)
    start = open_encoder(address)
    objective = get_training_task("depth").build_objective(DEPTH, start.config, ())
    with pytest.raises(ConfigError, match="504 or 518"):
        objective.encoder.validate_image_size(512)
