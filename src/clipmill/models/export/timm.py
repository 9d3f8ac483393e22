"""Image towers as timm loads them: a folder that it takes by ``local-dir:``."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipmill.models.checkpoint import CheckpointMetadata
from clipmill.models.config import ClipConfig, VisionConfig
from clipmill.models.export.base import ExportResult, origin, preprocessing, write_model

if TYPE_CHECKING:
    from torch import Tensor

# Any of timm's ViTs of CLIP's kind; sizes and the norm before the blocks are given beside it.
_TIMM_VIT = "vit_base_patch16_clip_224"
_VIT_NAMES = (
    ("conv1", "patch_embed.proj"),
    ("positional_embedding", "pos_embed"),
    ("class_embedding", "cls_token"),
    ("transformer.resblocks.", "blocks."),
    ("ln_pre", "norm_pre"),
    ("ln_post", "norm"),
    ("ln_1", "norm1"),
    ("ln_2", "norm2"),
    ("attn.in_proj_", "attn.qkv."),
    ("attn.out_proj", "attn.proj"),
    ("mlp.c_fc", "mlp.fc1"),
    ("mlp.c_proj", "mlp.fc2"),
)


def export_timm(
    metadata: CheckpointMetadata, config: ClipConfig, tensors: Mapping[str, "Tensor"], folder: Path
) -> ExportResult:
    """Write ``config.json`` and ``model.safetensors`` of the image tower.

    A ViT has its projection as the classifier, so that its output is the embedding before
    normalization; other towers give their pooled features.
    """
    vision = config.vision
    visual = {k.removeprefix("visual."): v for k, v in tensors.items() if k.startswith("visual.")}
    if vision.timm_model:
        kept = {k.removeprefix("trunk."): v for k, v in visual.items() if k.startswith("trunk.")}
        value: dict[str, Any] = {
            "architecture": vision.timm_model,
            "num_classes": 0,
            "global_pool": "avg",
            "pretrained_cfg": _preprocessing(vision, 0),
        }
        notes: tuple[str, ...] = (
            "note: timm's model gives pooled features; the projection to the embedding isn't in it",
        )
    else:
        kept = dict(_timm_vit(visual))
        value = {
            "architecture": _TIMM_VIT,
            "num_classes": config.embed_dim,
            "model_args": {
                "img_size": vision.image_size,
                "patch_size": vision.patch_size,
                "embed_dim": vision.width,
                "depth": vision.layers,
                "num_heads": vision.width // vision.head_width,
                "pre_norm": vision.has_input_norm,
                "mlp_ratio": vision.mlp_ratio,
                **({"act_layer": "quick_gelu"} if vision.activation == "quick_gelu" else {}),
            },
            "pretrained_cfg": _preprocessing(vision, config.embed_dim),
        }
        notes = ()
    value |= {"clipmill": origin(metadata)}
    write_model(folder, "config.json", value, "model.safetensors", kept)
    return ExportResult(
        name=f"local-dir:{folder}",
        usage=f'import timm\n\nmodel = timm.create_model("local-dir:{folder}", pretrained=True)',
        library="timm",
        preprocessing=preprocessing(vision),
        notes=notes,
    )


def _timm_vit(visual: Mapping[str, "Tensor"]) -> dict[str, "Tensor"]:
    """open_clip's ViT under timm's names; the projection becomes a classifier without bias."""
    import torch

    renamed = {}
    for key, tensor in visual.items():
        name = key
        for old, new in _VIT_NAMES:
            name = name.replace(old, new)
        if name == "proj":
            renamed["head.weight"] = tensor.T
            renamed["head.bias"] = torch.zeros(tensor.shape[1])
        elif name == "cls_token":
            renamed[name] = tensor[None, None]
        elif name == "pos_embed":
            renamed[name] = tensor[None]
        else:
            renamed[name] = tensor
    if "norm_pre.weight" not in renamed:  # timm's patches have a bias where no norm follows
        renamed["patch_embed.proj.bias"] = torch.zeros(len(renamed["patch_embed.proj.weight"]))
    return renamed


def _preprocessing(vision: VisionConfig, num_classes: int) -> dict[str, Any]:
    size = vision.image_size
    return {
        "input_size": [3, size, size],
        "mean": list(vision.mean),
        "std": list(vision.std),
        "interpolation": vision.interpolation,
        "crop_pct": 1.0,
        "num_classes": num_classes,
    }
