"""Encoders as open_clip and timm load them: a local folder that either takes by ``local-dir:``."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipmill.errors import ArtifactError, ConfigError
from clipmill.models.checkpoint import ModelCard, load_checkpoint
from clipmill.models.tokenizer import CLIP_VOCAB_SIZE
from clipmill.models.towers import ClipConfig, VisionConfig, text_kwargs, vision_kwargs
from clipmill.storage import replacing

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


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """What was written."""

    name: str
    """What the other library's ``create_model`` takes."""
    notes: tuple[str, ...] = ()
    """What the format can't hold."""


def export(uri: str, folder: Path, target: str) -> Exported:
    """Write the CLIP checkpoint at ``uri`` for ``open_clip`` or ``timm``.

    open_clip gets both towers, timm the image tower: a ViT with its projection as the classifier,
    so that its output is the embedding before normalisation; of other towers the pooled features.

    Raises:
        ConfigError: no such format.
        ArtifactError: it is no CLIP checkpoint.
    """
    if target not in _FORMATS:
        raise ConfigError(
            f"{target!r} is no format to export to",
            expected=f"one of {', '.join(sorted(_FORMATS))}",
            action="choose one",
        )
    card, tensors = load_checkpoint(uri)
    if card.kind != "clip":
        raise ArtifactError(
            f"{uri} is a checkpoint of kind {card.kind!r}",
            expected="a CLIP checkpoint, as pretrain makes",
            action="give the URI of an encoder",
        )
    notes = _FORMATS[target](card, tensors, folder)
    return Exported(name=f"local-dir:{folder}", notes=notes)


def _open_clip(card: ModelCard, tensors: Mapping[str, "Tensor"], folder: Path) -> tuple[str, ...]:
    config = ClipConfig.from_json(card.architecture)
    value = {
        "model_cfg": {
            "embed_dim": config.embed_dim,
            "vision_cfg": vision_kwargs(config.vision),
            "text_cfg": text_kwargs(config.text),
            **({"quick_gelu": True} if config.text.activation == "quick_gelu" else {}),
            **({"init_logit_bias": 0.0} if config.loss == "sigmoid" else {}),
        },
        "preprocess_cfg": {
            "size": config.vision.image_size,
            "mean": list(config.vision.mean),
            "std": list(config.vision.std),
            "interpolation": config.vision.interpolation,
            "resize_mode": "squash" if config.vision.resize == "squash" else "shortest",
        },
        **_origin(card),
    }
    _write(folder, "open_clip_config.json", value, "open_clip_model.safetensors", tensors)
    if config.text.vocab_size == CLIP_VOCAB_SIZE:
        return ()
    note = (
        f"note: open_clip's tokenizer has {CLIP_VOCAB_SIZE} tokens and this text tower "
        f"{config.text.vocab_size}: give it ids from clipmill.models.tokenizer"
    )
    return (note,)


def _timm(card: ModelCard, tensors: Mapping[str, "Tensor"], folder: Path) -> tuple[str, ...]:
    config = ClipConfig.from_json(card.architecture)
    vision = config.vision
    visual = {k.removeprefix("visual."): v for k, v in tensors.items() if k.startswith("visual.")}
    if vision.timm_model:
        kept = {k.removeprefix("trunk."): v for k, v in visual.items() if k.startswith("trunk.")}
        value = {
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
                "act_layer": vision.activation,
            },
            "pretrained_cfg": _preprocessing(vision, config.embed_dim),
        }
        notes = ()
    _write(folder, "config.json", {**value, **_origin(card)}, "model.safetensors", kept)
    return notes


def _timm_vit(visual: Mapping[str, "Tensor"]) -> dict[str, "Tensor"]:
    """open_clip's ViT under timm's names; the projection becomes a classifier without bias."""
    import torch

    found = {}
    for key, tensor in visual.items():
        name = key
        for old, new in _VIT_NAMES:
            name = name.replace(old, new)
        if name == "proj":
            found["head.weight"] = tensor.T
            found["head.bias"] = torch.zeros(tensor.shape[1])
        elif name == "cls_token":
            found[name] = tensor[None, None]
        elif name == "pos_embed":
            found[name] = tensor[None]
        else:
            found[name] = tensor
    if "norm_pre.weight" not in found:  # timm's patches have a bias where no norm follows
        found["patch_embed.proj.bias"] = torch.zeros(len(found["patch_embed.proj.weight"]))
    return found


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


def _origin(card: ModelCard) -> dict[str, Any]:
    """What lets a lineage be followed from the exported files back to ours."""
    return {"clipmill": {"uri": card.uri, "digest": card.digest}}


def _write(
    folder: Path,
    config_name: str,
    config: Mapping[str, Any],
    tensors_name: str,
    tensors: Mapping[str, "Tensor"],
) -> None:
    """The config comes last: without it the folder is no model to either library."""
    from safetensors.torch import save_file

    with replacing(folder / tensors_name) as path:
        save_file({k: v.contiguous() for k, v in tensors.items()}, path, metadata={"format": "pt"})
    with replacing(folder / config_name) as path:
        path.write_text(json.dumps(config, indent=2) + "\n")


_Writer = Callable[[ModelCard, Mapping[str, "Tensor"], Path], tuple[str, ...]]
_FORMATS: Mapping[str, _Writer] = {"open_clip": _open_clip, "timm": _timm}
