"""Weights in timm's layout: conversion of its config and of its tensors' names."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipmill.errors import ConfigError, NotFoundError, did_you_mean
from clipmill.models.config import VisionConfig
from clipmill.models.towers import check_timm_model
from clipmill.models.weights.addresses import Address
from clipmill.models.weights.files import HubFile, check_fit, hub_file, read_tensors, url_file
from clipmill.models.weights.open_clip_layout import image_config

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS_FILES = ("model.safetensors", "pytorch_model.bin")
# Tags of CLIPs trained with QuickGELU, which timm lists for its GELU architectures too.
_QUICK_GELU_TAGS = {"openai", "dfn2b", "dfn5b", "metaclip_400m", "metaclip_2pt5b"}


def pretrained_file(address: Address) -> tuple[VisionConfig, HubFile]:
    """Return the tower and the weights of ``timm:NAME[.TAG]``.

    Raises:
        ConfigError: timm has no such model, or no such weights of it.
        NotFoundError: the weights aren't in the cache and can't be downloaded.
    """
    vision, config = pretrained_tower(address.name, address.tag)
    if config.hf_hub_id:
        repository, _, revision = config.hf_hub_id.partition("@")
        names = (config.hf_hub_filename,) if config.hf_hub_filename else WEIGHTS_FILES
        architecture = f"timm/{address.name}.{config.tag}"
        file = hub_file(repository, names, revision=revision, architecture=architecture)
        if file is None:
            raise NotFoundError(
                f"https://huggingface.co/{repository} has none of {', '.join(names)}",
                expected="the file that timm names for these weights",
                action=f"download the weights by hand, and give them as file:PATH#{architecture}",
            )
        return vision, file
    import torch

    url = config.url[0] if isinstance(config.url, tuple) else config.url
    path = url_file(url, Path(torch.hub.get_dir()) / "checkpoints", f"timm/{address.name}")
    return vision, HubFile(path=path, revision="")


def pretrained_tower(name: str, tag: str) -> tuple[VisionConfig, Any]:
    """Return the tower of a model's pretrained weights (the default ones without a tag).

    CLIPs that were trained with QuickGELU get timm's architecture that has it. The second value is
    timm's ``PretrainedCfg``.

    Raises:
        ConfigError: timm has no such model, or no such weights of it.
    """
    import timm
    from timm.models import get_pretrained_cfg

    check_timm_model(VisionConfig(timm_model=name))
    tags = [m.partition(".")[2] for m in timm.list_pretrained(f"{name}.*")]
    if not tags:
        raise ConfigError(
            f"timm has no pretrained weights of {name}",
            expected="a model of timm.list_pretrained()",
            action=f"write random:timm/{name} for random weights",
        )
    if tag and tag not in tags:
        raise ConfigError(
            f"timm has no weights {tag!r} of {name}{did_you_mean(tag, tags)}",
            expected=f"one of {', '.join(tags)}",
            action="correct what follows the point",
        )
    config = get_pretrained_cfg(f"{name}.{tag}" if tag else name)
    assert config is not None
    return tower(name, {}, config.to_dict()), config


def tower(
    name: str, arguments: Mapping[str, Any], config: Mapping[str, Any] | None = None
) -> VisionConfig:
    """Return the tower of a timm model with these arguments and this ``pretrained_cfg``.

    Without a config that of the architecture holds. CLIPs that were trained with QuickGELU get
    timm's architecture that has it.

    Raises:
        ConfigError: timm has no such model, or it reads other than square RGB images.
    """
    from timm.models import get_pretrained_cfg

    check_timm_model(VisionConfig(timm_model=name))
    own = get_pretrained_cfg(name)
    name = _with_its_activation(name, str((config or {}).get("tag") or ""))
    config = (own.to_dict() if own is not None else {}) | dict(config or {})
    kept = {k: v for k, v in arguments.items() if k not in {"num_classes", "drop_path_rate"}}
    if strange := {k: v for k, v in kept.items() if not isinstance(v, bool | int | float | str)}:
        raise ConfigError(
            f"the timm model {name} has the arguments {strange}",
            expected="numbers, text and booleans",
            action="choose other weights",
        )
    size = kept.get("img_size", config.get("input_size", (3, 224, 224))[1:])
    default = VisionConfig()
    return VisionConfig(
        timm_model=name,
        timm_args=kept,
        head="none",
        **image_config(
            size,
            config.get("mean", default.mean),
            config.get("std", default.std),
            config.get("interpolation", "bicubic"),
            is_squashed=config.get("crop_mode") == "squash",
        ),
    )


def read_tower_tensors(path: Path, vision: VisionConfig) -> "dict[str, Tensor]":
    """Read a timm model's tensors, without its classifier, as ``visual.trunk.NAME``.

    Files under other names, as their authors published them, are converted by timm.

    Raises:
        ArtifactError: the file can't be read, or holds another model.
    """
    tensors = read_tensors(path)
    if all(k.startswith("visual.trunk.") for k in tensors):  # exported by open_clip
        tensors = {k.removeprefix("visual.trunk."): v for k, v in tensors.items()}
    model = timm_model(vision, num_classes=0)
    own = model.state_dict()
    left_out = tuple(f"{name}." for name in _classifiers(vision.timm_model))
    if not any(k.startswith("attn_pool.") for k in own):
        left_out += ("attn_pool.",)  # a SigLIP whose features are averaged instead
    plain = {k: v for k, v in tensors.items() if k in own or not k.startswith(left_out)}
    if plain.keys() != own.keys():
        model = _converted(tensors, vision)
        if model is not None:
            plain = model.state_dict()
    check_fit(f"{path}, as timm's {vision.timm_model},", plain, own)
    return {f"visual.trunk.{name}": tensor for name, tensor in plain.items()}


def timm_model(vision: VisionConfig, **arguments: Any) -> Any:
    """Build the timm model of a tower, with random weights (the owning library's own module)."""
    import timm

    return timm.create_model(vision.timm_model, **vision.timm_args, **arguments)


def _converted(tensors: "Mapping[str, Tensor]", vision: VisionConfig) -> Any:
    """The model, if timm knows how to load a state dict with these names into it."""
    from timm.models import get_pretrained_cfg

    config = get_pretrained_cfg(vision.timm_model)
    try:
        # With the classes of the published weights every name must fit.
        model = timm_model(
            vision,
            pretrained=True,
            pretrained_cfg_overlay={"state_dict": dict(tensors), "custom_load": False},
            **({"num_classes": config.num_classes} if config is not None else {}),
        )
    except (RuntimeError, KeyError, AttributeError, IndexError, ValueError):
        return None
    model.reset_classifier(0)
    return model


def _classifiers(name: str) -> tuple[str, ...]:
    """Names of the modules above a timm model's features."""
    from timm.models import get_pretrained_cfg_value

    names = get_pretrained_cfg_value(name, "classifier") or ()
    return (names,) if isinstance(names, str) else tuple(names)


def _with_its_activation(name: str, tag: str) -> str:
    """The architecture with QuickGELU, where these weights of a CLIP were trained with it."""
    import timm

    first, separator, rest = name.partition("_clip_")
    quick = f"{first}_clip_quickgelu_{rest}"
    if not (separator and first.startswith("vit_")) or not timm.is_model(quick):
        return name
    listed = tag and timm.list_pretrained(f"{quick}.{tag}")
    return quick if listed or tag in _QUICK_GELU_TAGS else name
