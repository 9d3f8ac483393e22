"""CLIP's towers from a config, built of open_clip's modules."""

import math
from typing import Any

from clipmill.errors import ConfigError, did_you_mean
from clipmill.models.config import (
    ClipConfig,
    TextConfig,
    TowerOptions,
    VisionConfig,
)

MAX_LOGIT_SCALE = math.log(100)  # CLIP's clamp (Radford et al. 2021)


def build_clip(
    config: ClipConfig,
    options: TowerOptions = TowerOptions(),  # noqa: B008  # frozen
) -> Any:
    """Build CLIP with the config's towers: ``encode_image``, ``encode_text`` and ``logit_scale``.

    Raises:
        ConfigError: the image tower has no patches to drop, timm has no such model, or the towers
            have two activations.
    """
    from clipmill.models.clip_module import Clip

    check_towers(config)
    sigmoid = {"init_logit_scale": math.log(10), "init_logit_bias": -10.0}  # SigLIP, section 3.2
    try:
        model = Clip(
            embed_dim=config.embed_dim,
            vision_cfg=vision_kwargs(config.vision) | {"patch_dropout": options.patch_dropout},
            text_cfg=text_kwargs(config.text),
            quick_gelu=config.text.activation == "quick_gelu",
            output_dict=True,
            **(sigmoid if config.loss == "sigmoid" else {}),
        )
    except TypeError as error:
        if "patch_drop" not in str(error):
            raise
        raise ConfigError(
            f"patch_dropout was {options.patch_dropout}, and {config.vision.timm_model} has no "
            "patches to drop",
            expected="0 for such a tower",
            action="set tower_options.patch_dropout=0.0",
        ) from error
    if options.gradient_checkpointing:
        model.set_grad_checkpointing()
    return model


def build_vit(config: VisionConfig) -> Any:
    """Build open_clip's ViT of the config, with a projection to a single number."""
    from open_clip.model import _build_vision_tower

    return _build_vision_tower(1, vision_kwargs(config), config.activation == "quick_gelu")


def check_towers(config: ClipConfig) -> None:
    """Refuse an unknown timm model, or two activations (ConfigError)."""
    check_timm_model(config.vision)
    if not config.vision.timm_model and config.vision.activation != config.text.activation:
        raise ConfigError(
            f"model.vision.activation was {config.vision.activation!r} and model.text.activation "
            f"{config.text.activation!r}",
            expected="one activation for both towers, as in every public CLIP",
            action="set both to the same",
        )


def check_timm_model(config: VisionConfig) -> None:
    """Refuse the name of a timm model that timm doesn't have (ConfigError)."""
    if not config.timm_model:
        return
    import timm

    if not timm.is_model(config.timm_model):
        name = config.timm_model
        raise ConfigError(
            f"timm has no model named {name!r}{did_you_mean(name, timm.list_models())}",
            expected="a name that timm.list_models() gives",
            action="correct the name",
        )


def vision_kwargs(config: VisionConfig) -> dict[str, Any]:
    """Return open_clip's ``vision_cfg`` of an image tower.

    Raises:
        ConfigError: it is a timm model with arguments, which open_clip doesn't take.
    """
    kwargs: dict[str, Any] = {"image_size": config.image_size}
    if config.timm_args:
        raise ConfigError(
            f"timm_args was {config.timm_args}, in a CLIP",
            expected="no arguments: open_clip's towers take timm's models as they are",
            action="name another timm_model",
        )
    if config.timm_model:
        pool = {"": "avg", "default": ""}.get(config.pool, config.pool)
        proj = {"projection": "linear", "classifier": None}.get(config.head, config.head)
        return kwargs | {
            "timm_model_name": config.timm_model,
            "timm_pool": pool,
            **({"timm_proj": proj} if proj != "linear" else {}),
        }
    return kwargs | {
        "patch_size": config.patch_size,
        "width": config.width,
        "layers": config.layers,
        "head_width": config.head_width,
        "mlp_ratio": config.mlp_ratio,
        "no_ln_pre": not config.has_input_norm,
    }


def text_kwargs(config: TextConfig) -> dict[str, Any]:
    """Return open_clip's ``text_cfg`` of a text tower."""
    return {
        "context_length": config.context_length,
        "vocab_size": config.vocab_size,
        "width": config.width,
        "heads": config.heads,
        "layers": config.layers,
        "no_causal_mask": not config.is_causal,
    }
