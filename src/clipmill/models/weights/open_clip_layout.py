"""Weights in open_clip's layout: conversion of its config and of its tensors' names."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipmill.errors import ArtifactError, ConfigError, NotFoundError, did_you_mean
from clipmill.models.config import ClipConfig, Interpolation, TextConfig, VisionConfig
from clipmill.models.weights.addresses import Address
from clipmill.models.weights.files import OPENAI_KEYS, HubFile, hub_file, read_tensors

if TYPE_CHECKING:
    from torch import Tensor

CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")

# Settings of a tower that clipmill supports with these values only.
_VISION_DEFAULTS: Mapping[str, Any] = {
    "ls_init_value": None,
    "attentional_pool": False,
    "pos_embed_type": "learnable",
    "final_ln_after_pool": False,
    "pool_type": "tok",
    "output_tokens": False,
    "act_kwargs": None,
    "norm_kwargs": None,
    "block_type": None,
    "qk_norm": False,
    "scaled_cosine_attn": False,
    "scale_heads": False,
    "scale_attn_inner": False,
    "scale_attn": False,
    "scale_fc": False,
    "timm_proj_bias": False,
}
_TEXT_DEFAULTS: Mapping[str, Any] = {
    "hf_tokenizer_name": None,
    "tokenizer_mode": None,
    "tokenizer_kwargs": None,
    "mlp_ratio": 4.0,
    "ls_init_value": None,
    "embed_cls": False,
    "pad_id": 0,
    "final_ln_after_pool": False,
    "pool_type": "argmax",
    "proj_bias": False,
    "proj_type": "linear",
    "output_tokens": False,
    "act_kwargs": None,
    "norm_kwargs": None,
    "block_type": None,
    "qk_norm": False,
    "scaled_cosine_attn": False,
    "scale_heads": False,
    "scale_attn_inner": False,
    "scale_attn": False,
    "scale_fc": False,
    "hf_model_name": None,
}
# What concerns training alone.
_IGNORED = {
    "patch_dropout", "timm_model_pretrained", "timm_drop", "timm_drop_path", "attn_pooler_queries",
    "attn_pooler_heads", "hf_model_pretrained", "eos_id",
}  # fmt: skip


def model_config(name: str) -> dict[str, Any]:
    """Return open_clip's config of an architecture.

    Raises:
        ConfigError: open_clip has no such model.
    """
    import open_clip

    if name not in open_clip.list_models():
        raise ConfigError(
            f"open_clip has no model named {name!r}{did_you_mean(name, open_clip.list_models())}",
            expected="a name that open_clip.list_models() gives",
            action="correct the name",
        )
    config: dict[str, Any] = open_clip.get_model_config(name)
    return config


def pretrained_file(address: Address) -> tuple[dict[str, Any], dict[str, Any], HubFile]:
    """Return the model's config, its preprocessing and the weights of ``open_clip:NAME/TAG``.

    Raises:
        ConfigError: open_clip has no such model, or no such weights of it.
        NotFoundError: the weights aren't in the cache and can't be downloaded.
    """
    config, preprocessing = pretrained_config(address.name, address.tag)
    repository, _, file = preprocessing["hf_hub"].rpartition("/")
    weights = hub_file(
        repository,
        (file,) if file else WEIGHTS_FILES,
        architecture=f"open_clip/{address.name}/{address.tag}",
    )
    if weights is None:
        raise NotFoundError(
            f"https://huggingface.co/{repository} has none of {', '.join(WEIGHTS_FILES)}",
            expected="the file that open_clip names for these weights",
            action="download the weights by hand, and give them as "
            f"file:PATH#open_clip/{address.name}/{address.tag}",
        )
    return config, preprocessing, weights


def pretrained_config(name: str, tag: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the config of pretrained weights and their preprocessing, without the file.

    The activation is that of the weights, whatever the architecture's name says.

    Raises:
        ConfigError: open_clip has no such model, or no such weights of it.
    """
    from open_clip import pretrained

    config = model_config(name)
    tags = pretrained.list_pretrained_tags_by_model(name)
    if tag.startswith("/") or tag.endswith((".pt", ".bin", ".safetensors")):
        raise ConfigError(
            f"open_clip:{name}/{tag} names a file in the place of a tag",
            expected="open_clip:NAME/TAG",
            action=f"write file:{tag}#open_clip/{name}",
        )
    settings: dict[str, Any] = pretrained.get_pretrained_cfg(name, tag)
    if not settings:
        what = f"open_clip has no weights {tag!r} of {name}{did_you_mean(tag, tags)}"
        raise ConfigError(
            what if tag else f"open_clip:{name} names an architecture, and no weights of it",
            expected=f"open_clip:{name}/TAG with one of {', '.join(tags)}"
            if tags
            else f"random:open_clip/{name}, since open_clip lists no weights of it",
            action=f"name the weights; random:open_clip/{name} has random ones",
        )
    return config | {"quick_gelu": settings.get("quick_gelu", False)}, settings


def common_preprocessing(name: str) -> dict[str, Any]:
    """Return the preprocessing that all weights of an architecture share; empty if they differ."""
    from open_clip import pretrained

    names = ("mean", "std", "interpolation", "resize_mode")
    candidates = [
        {key: config[key] for key in names}
        for tag in pretrained.list_pretrained_tags_by_model(name)
        for config in [pretrained.get_pretrained_cfg(name, tag)]
    ]
    return candidates[0] if candidates and all(c == candidates[0] for c in candidates) else {}


def towers(
    source: str, config: Mapping[str, Any], preprocessing: Mapping[str, Any]
) -> tuple[VisionConfig, ClipConfig | None, str]:
    """Return the image tower, both towers if clipmill has the text tower, and else why not.

    ``config`` is open_clip's model config, ``preprocessing`` the weights' (empty for open_clip's
    defaults).

    Raises:
        ConfigError: clipmill has no such image tower.
    """
    vision = _vision(source, config, preprocessing)
    if "multimodal_cfg" in config:
        return vision, None, "it is a CoCa's, with tokens of its own"
    text = config["text_cfg"]
    differing = _differing(
        text,
        _TEXT_DEFAULTS,
        ("context_length", "vocab_size", "width", "heads", "layers", "no_causal_mask"),
    )
    if differing:
        return vision, None, f"it has {differing}"
    activation = "quick_gelu" if config.get("quick_gelu") else "gelu"
    both = ClipConfig(
        embed_dim=config["embed_dim"],
        vision=vision,
        text=TextConfig(
            **{
                k: v
                for k, v in text.items()
                if k in {"context_length", "vocab_size", "width", "heads", "layers"}
            },
            is_causal=not text.get("no_causal_mask", False),
            activation="quick_gelu" if activation == "quick_gelu" else "gelu",
        ),
        loss="sigmoid" if config.get("init_logit_bias") is not None else "softmax",
    )
    return vision, both, ""


def image_config(
    size: Any, mean: Any, std: Any, interpolation: str, *, is_squashed: bool
) -> dict[str, Any]:
    """Return the fields of a VisionConfig that say how images are prepared.

    Raises:
        ConfigError: images aren't square, or are resized in a way that clipmill doesn't have.
    """
    sides = {int(s) for s in size} if isinstance(size, list | tuple) else {int(size)}
    if len(sides) != 1:
        raise ConfigError(
            f"the weights' images are of {size} pixels",
            expected="square images",
            action="choose other weights",
        )
    if interpolation not in INTERPOLATIONS:
        raise ConfigError(
            f"the weights' images are resized by {interpolation!r}",
            expected=f"one of {', '.join(INTERPOLATIONS)}",
            action="choose other weights",
        )
    kind: Interpolation = interpolation  # type: ignore[assignment]  # checked above
    return {
        "image_size": sides.pop(),
        "mean": tuple(float(m) for m in mean),
        "std": tuple(float(s) for s in std),
        "interpolation": kind,
        "resize": "squash" if is_squashed else "shortest",
    }


def _vision(
    source: str, config: Mapping[str, Any], preprocessing: Mapping[str, Any]
) -> VisionConfig:
    vision = config["vision_cfg"]
    default = VisionConfig()
    images = image_config(
        vision.get("image_size", 224),
        preprocessing.get("mean", default.mean),
        preprocessing.get("std", default.std),
        preprocessing.get("interpolation", "bicubic"),
        is_squashed=preprocessing.get("resize_mode", "shortest") == "squash",
    )
    taken = ("image_size", "patch_size", "width", "layers", "head_width", "mlp_ratio", "no_ln_pre",
             "timm_model_name", "timm_pool", "timm_proj")  # fmt: skip
    if isinstance(vision.get("layers"), list):
        raise _unsupported(source, "a ResNet with attentional pooling")
    if differing := _differing(vision, _VISION_DEFAULTS, taken):
        raise _unsupported(source, differing)
    if name := vision.get("timm_model_name"):
        proj = vision.get("timm_proj", "linear")
        heads = {"linear": "projection", "mlp": "mlp", "none": "none", None: "classifier"}
        if proj not in heads or vision.get("timm_pool") in {"abs_attn", "rot_attn"}:
            raise _unsupported(source, f"timm_pool={vision.get('timm_pool')!r}, timm_proj={proj!r}")
        return VisionConfig(
            timm_model=name,
            pool=vision.get("timm_pool", "avg") or "default",
            head=heads[proj],  # type: ignore[arg-type]  # the values are those of the field
            **images,
        )
    return VisionConfig(
        **{k: vision[k] for k in ("patch_size", "width", "layers", "head_width") if k in vision},
        mlp_ratio=float(vision.get("mlp_ratio", 4.0)),
        has_input_norm=not vision.get("no_ln_pre", False),
        activation="quick_gelu" if config.get("quick_gelu") else "gelu",
        **images,
    )


def _differing(
    tower: Mapping[str, Any], defaults: Mapping[str, Any], taken: tuple[str, ...]
) -> str:
    """The settings of a tower that clipmill's doesn't have, as text."""
    return ", ".join(
        f"{name}={value!r}"
        for name, value in tower.items()
        if name not in taken
        and name not in _IGNORED
        and (name not in defaults or (value or None) != (defaults[name] or None))
    )


def _unsupported(source: str, what: str) -> ConfigError:
    return ConfigError(
        f"{source} has an image tower that clipmill doesn't: {what}",
        expected="a ViT with a class token, or a model of timm",
        action="choose other weights; timm has many of the same as timm:NAME.TAG",
    )


def read_clip_tensors(
    path: Path, vision: VisionConfig, clip: ClipConfig | None
) -> "dict[str, Tensor]":
    """Read the tensors of both towers, or of the image tower alone, under CLIP's names.

    Raises:
        ArtifactError: the file can't be read.
    """
    tensors = read_tensors(path)
    if any(key in tensors for key in OPENAI_KEYS) and vision.activation != "quick_gelu":
        raise ArtifactError(
            f"{path} was written by OpenAI, whose CLIPs were trained with QuickGELU",
            expected="an architecture with QuickGELU",
            action="add -quickgelu to the architecture's name",
        )
    if any(k.startswith("image_encoder.model.") for k in tensors):
        tensors = _from_mobileclip(vision, tensors)
    # open_clip's CLIP has its text tower's tensors at the top, its CustomTextCLIP below text.
    tensors = {k.removeprefix("text."): v for k, v in tensors.items() if k not in OPENAI_KEYS}
    if not any(k.startswith("visual.") for k in tensors):
        raise ArtifactError(
            f"{path} has no image tower of open_clip: it begins with {', '.join([*tensors][:3])}",
            expected="tensors whose names begin with visual.",
            action="name the architecture's library: file:PATH#timm/NAME for one of timm",
        )
    if clip is None:
        return {k: v for k, v in tensors.items() if k.startswith("visual.")}
    if clip.loss == "softmax":
        tensors.pop("logit_bias", None)
    scalars = ("logit_scale", "logit_bias")
    return {k: v.reshape(()) if k in scalars else v for k, v in tensors.items()}


def _from_mobileclip(vision: VisionConfig, tensors: "dict[str, Tensor]") -> "dict[str, Tensor]":
    """Return the tensors of Apple's own files under open_clip's names."""
    from types import SimpleNamespace

    from open_clip.convert import convert_state_dict

    from clipmill.models.encoders import timm_trunk

    trunk = timm_trunk(vision, 0.0)
    model = SimpleNamespace(visual=SimpleNamespace(trunk=trunk))
    converted: dict[str, Tensor] = convert_state_dict(model, tensors)
    return converted


def known_architectures(tensors: "Mapping[str, Tensor]") -> list[str]:
    """Return open_clip's names of the CLIPs with a ViT that have tensors of these shapes."""
    import open_clip

    shapes = {k.removeprefix("text."): tuple(v.shape) for k, v in tensors.items()}
    kernel = shapes.get("visual.conv1.weight")
    if kernel is None or "token_embedding.weight" not in shapes:
        return []
    named = []
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        vision, text = config["vision_cfg"], config["text_cfg"]
        if "timm_model_name" in vision or "hf_model_name" in text or "multimodal_cfg" in config:
            continue
        if isinstance(vision["layers"], list):
            continue
        side, patch = vision["image_size"], vision["patch_size"]
        width, mlp_ratio = vision["width"], vision.get("mlp_ratio", 4.0)
        last = f"visual.transformer.resblocks.{vision['layers'] - 1}.mlp.c_fc.weight"
        expected = {
            "visual.conv1.weight": (width, 3, patch, patch),
            "visual.positional_embedding": ((side // patch) ** 2 + 1, width),
            "visual.proj": (width, config["embed_dim"]),
            last: (int(width * mlp_ratio), width),
            "token_embedding.weight": (text["vocab_size"], text["width"]),
            "positional_embedding": (text["context_length"], text["width"]),
        }
        beyond = last.replace(str(vision["layers"] - 1), str(vision["layers"]))
        if beyond not in shapes and all(shapes.get(k) == v for k, v in expected.items()):
            named.append(name)
    return named
