"""CLIP and SigLIP in the layout of transformers: conversion of the config and of tensors' names.

transformers itself isn't imported.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipmill.errors import ConfigError
from clipmill.models.config import Activation, ClipConfig, TextConfig, VisionConfig
from clipmill.models.weights.files import read_tensors
from clipmill.models.weights.open_clip_layout import image_config

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS_FILES = ("model.safetensors", "pytorch_model.bin")
PREPROCESSING_FILE = "preprocessor_config.json"
MODEL_TYPES = ("clip", "clip_vision_model", "siglip", "siglip_vision_model")
# Values of PIL's Resampling, as transformers stores them.
_RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
_ACTIVATIONS: Mapping[str, Activation] = {"quick_gelu": "quick_gelu", "gelu": "gelu"}
_CLIP_DEFAULTS: Mapping[str, dict[str, Any]] = {
    "vision": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": 224,
        "patch_size": 32,
        "hidden_act": "quick_gelu",
    },
    "text": {
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "max_position_embeddings": 77,
        "vocab_size": 49408,
        "hidden_act": "quick_gelu",
    },
}


def towers(
    source: str, config: Mapping[str, Any], preprocessing: Mapping[str, Any]
) -> tuple[VisionConfig, ClipConfig | None, str]:
    """Return the image tower, both towers if clipmill has the text tower, and else why not.

    ``config`` and ``preprocessing`` are the contents of ``config.json`` and of
    ``preprocessor_config.json``.

    Raises:
        ConfigError: clipmill has no such image tower.
    """
    kind = config.get("model_type")
    if kind not in MODEL_TYPES:
        raise ConfigError(
            f"{source} is a model of transformers of type {kind!r}",
            expected=f"one of {', '.join(MODEL_TYPES)}",
            action="take the same weights from timm (timm:NAME.TAG) or open_clip, if they have "
            "them, such as DINOv3's and SigLIP 2's",
        )
    is_clip = kind.startswith("clip")
    vision_part = config if kind.endswith("vision_model") else config.get("vision_config", {})
    images = _images(vision_part, preprocessing, is_clip=is_clip)
    if not is_clip:
        reason = "SigLIP's text tower needs a tokenizer that clipmill doesn't have"
        return _siglip(source, vision_part, images), None, reason
    values: dict[str, Any] = _CLIP_DEFAULTS["vision"] | dict(vision_part)
    width = values["hidden_size"]
    vision = VisionConfig(
        patch_size=values["patch_size"],
        width=width,
        layers=values["num_hidden_layers"],
        head_width=width // values["num_attention_heads"],
        mlp_ratio=values["intermediate_size"] / width,
        activation=_activation(source, values["hidden_act"]),
        **images,
    )
    _check_epsilon(source, values, 1e-5)
    if kind == "clip_vision_model":
        return vision, None, "the weights have none"
    text = _CLIP_DEFAULTS["text"] | config.get("text_config", {})
    if text["intermediate_size"] != 4 * text["hidden_size"]:
        return vision, None, f"its MLPs are {text['intermediate_size']} wide, not 4 times its width"
    if text["hidden_act"] != values["hidden_act"]:
        return vision, None, f"its activation is {text['hidden_act']}, another than the images'"
    return (
        vision,
        ClipConfig(
            embed_dim=config.get("projection_dim", 512),
            vision=vision,
            text=TextConfig(
                context_length=text["max_position_embeddings"],
                vocab_size=text["vocab_size"],
                width=text["hidden_size"],
                heads=text["num_attention_heads"],
                layers=text["num_hidden_layers"],
                activation=vision.activation,
            ),
        ),
        "",
    )


def read_clip_tensors(
    path: Path, vision: VisionConfig, clip: ClipConfig | None
) -> "dict[str, Tensor]":
    """Read CLIP's tensors, or those of the image tower alone, under open_clip's names."""
    tensors = read_tensors(path)
    renamed = _transformer(tensors, "vision_model.", "visual.", vision.layers)
    for theirs, ours in (
        ("embeddings.class_embedding", "class_embedding"),
        ("embeddings.patch_embedding.weight", "conv1.weight"),
        ("embeddings.position_embedding.weight", "positional_embedding"),
        ("pre_layrnorm", "ln_pre"),  # transformers' own spelling
        ("post_layernorm", "ln_post"),
    ):
        _take(tensors, f"vision_model.{theirs}", renamed, f"visual.{ours}")
    if "visual_projection.weight" in tensors:
        renamed["visual.proj"] = tensors["visual_projection.weight"].T.contiguous()
    if clip is None:
        return renamed
    renamed |= _transformer(tensors, "text_model.", "", clip.text.layers)
    for theirs, ours in (
        ("text_model.embeddings.token_embedding.weight", "token_embedding.weight"),
        ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
        ("text_model.final_layer_norm", "ln_final"),
        ("logit_scale", "logit_scale"),
    ):
        _take(tensors, theirs, renamed, ours)
    if "text_projection.weight" in tensors:
        renamed["text_projection"] = tensors["text_projection.weight"].T.contiguous()
    return renamed


def read_siglip_tensors(path: Path, vision: VisionConfig) -> "dict[str, Tensor]":
    """Read the image tower of a SigLIP under timm's names."""
    import torch

    tensors = read_tensors(path)
    renamed: dict[str, Tensor] = {}
    for theirs, ours in (
        ("embeddings.patch_embedding", "patch_embed.proj"),
        ("post_layernorm", "norm"),
        ("head.probe", "attn_pool.latent"),
        ("head.attention.out_proj", "attn_pool.proj"),
        ("head.layernorm", "attn_pool.norm"),
        ("head.mlp", "attn_pool.mlp"),
    ):
        _take(tensors, f"vision_model.{theirs}", renamed, ours)
    positions = tensors.get("vision_model.embeddings.position_embedding.weight")
    if positions is not None:
        renamed["pos_embed"] = positions[None]
    for number in range(int(vision.timm_args["depth"])):
        theirs, ours = f"vision_model.encoder.layers.{number}.", f"blocks.{number}."
        for one, other in (
            ("layer_norm1", "norm1"),
            ("layer_norm2", "norm2"),
            ("self_attn.out_proj", "attn.proj"),
            ("mlp", "mlp"),
        ):
            _take(tensors, theirs + one, renamed, ours + other)
        for part in ("weight", "bias"):
            names = [f"{theirs}self_attn.{n}_proj.{part}" for n in "qkv"]
            if all(name in tensors for name in names):
                renamed[f"{ours}attn.qkv.{part}"] = torch.cat([tensors[name] for name in names])
    for part in ("weight", "bias"):  # MultiheadAttention keeps query, key and value together
        joint = tensors.get(f"vision_model.head.attention.in_proj_{part}")
        if joint is not None:
            width = len(joint) // 3
            renamed[f"attn_pool.q.{part}"] = joint[:width]
            renamed[f"attn_pool.kv.{part}"] = joint[width:]
    return {f"visual.trunk.{name}": tensor.contiguous() for name, tensor in renamed.items()}


def read_json_file(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file that another library wrote (ConfigError for none)."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} can't be read: {error}",
            expected="a JSON object, as the library wrote it",
            action="download it again",
        ) from error
    if not isinstance(value, dict):
        raise ConfigError(
            f"{path} holds a JSON {type(value).__name__}",
            expected="a JSON object",
            action="download it again",
        )
    return value


def _siglip(source: str, part: Mapping[str, Any], images: Mapping[str, Any]) -> VisionConfig:
    """The timm model that a SigLIP's image tower is."""
    width = part.get("hidden_size", 768)
    activation = part.get("hidden_act", "gelu_pytorch_tanh")
    if activation not in {"gelu_pytorch_tanh", "gelu"}:
        raise _activation_error(source, activation)
    _check_epsilon(source, part, 1e-6)
    return VisionConfig(
        timm_model="vit_base_patch16_siglip_224",
        timm_args={
            "img_size": images["image_size"],
            "patch_size": part.get("patch_size", 16),
            "embed_dim": width,
            "depth": part.get("num_hidden_layers", 12),
            "num_heads": part.get("num_attention_heads", 12),
            "mlp_ratio": part.get("intermediate_size", 3072) / width,
            "act_layer": "gelu_tanh" if activation == "gelu_pytorch_tanh" else "gelu",
        },
        head="none",
        **images,
    )


def _images(
    vision: Mapping[str, Any], preprocessing: Mapping[str, Any], *, is_clip: bool
) -> dict[str, Any]:
    default = VisionConfig()
    half = (0.5, 0.5, 0.5)
    resample = preprocessing.get("resample", 3)
    crop = preprocessing.get("do_center_crop", is_clip)
    return image_config(
        vision.get("image_size", 224),
        preprocessing.get("image_mean", default.mean if is_clip else half),
        preprocessing.get("image_std", default.std if is_clip else half),
        _RESAMPLING.get(resample, str(resample)),
        is_squashed=not crop,
    )


def _activation(source: str, name: str) -> Activation:
    if name not in _ACTIVATIONS:
        raise _activation_error(source, name)
    return _ACTIVATIONS[name]


def _activation_error(source: str, name: str) -> ConfigError:
    return ConfigError(
        f"{source} has the activation {name!r}",
        expected=f"one of {', '.join(_ACTIVATIONS)}, or SigLIP's gelu_pytorch_tanh",
        action="choose other weights",
    )


def _check_epsilon(source: str, part: Mapping[str, Any], expected: float) -> None:
    epsilon = part.get("layer_norm_eps", expected)
    if epsilon != expected:
        raise ConfigError(
            f"{source} has norms that add {epsilon}",
            expected=f"{expected}, as all public weights of its kind have",
            action="choose other weights",
        )


def _transformer(
    tensors: "Mapping[str, Tensor]", theirs: str, ours: str, layers: int
) -> "dict[str, Tensor]":
    """The blocks of a CLIP's tower under open_clip's names."""
    import torch

    renamed: dict[str, Tensor] = {}
    for number in range(layers):
        old = f"{theirs}encoder.layers.{number}."
        new = f"{ours}transformer.resblocks.{number}."
        for one, other in (
            ("layer_norm1", "ln_1"),
            ("layer_norm2", "ln_2"),
            ("self_attn.out_proj", "attn.out_proj"),
            ("mlp.fc1", "mlp.c_fc"),
            ("mlp.fc2", "mlp.c_proj"),
        ):
            _take(tensors, old + one, renamed, new + other)
        for part in ("weight", "bias"):
            names = [f"{old}self_attn.{n}_proj.{part}" for n in "qkv"]
            if all(name in tensors for name in names):
                joint = torch.cat([tensors[name] for name in names])
                renamed[f"{new}attn.in_proj_{part}"] = joint
    return renamed


def _take(
    tensors: "Mapping[str, Tensor]", old: str, renamed: "dict[str, Tensor]", new: str
) -> None:
    """Copy what is named ``old``, or begins with it, under the new name."""
    for name, tensor in tensors.items():
        if name == old or name.startswith(f"{old}."):
            renamed[new + name.removeprefix(old)] = tensor
