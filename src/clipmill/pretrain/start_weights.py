"""Copying a start's weights into a fresh CLIP."""

import json
import shlex

from torch import nn

from clipmill.config import Config
from clipmill.errors import ConfigError
from clipmill.models.encoders import head_prefixes
from clipmill.models.tensor_files import check_fit
from clipmill.models.towers import ClipConfig
from clipmill.pretrain.start import Start

# The new model's own: how a timm model reaches the embedding, and how images are resized.
_FREE = {"pool", "head", "interpolation", "resize"}
_VIT_ONLY = {
    "patch_size", "width", "layers", "head_width", "has_input_norm", "mlp_ratio", "activation",
}  # fmt: skip


def load_start(start: Start, clip: nn.Module, config: ClipConfig) -> None:
    """Copy the weights in; what an image tower alone doesn't bring keeps its start values.

    Raises:
        ConfigError: ``config`` isn't that of the model that the weights were trained as.
        ArtifactError: the weights can't be read, or aren't what their config says.
    """
    _check_config(start, config)
    own = clip.state_dict()
    tensors = dict(start.read())
    optional: tuple[str, ...] = ("logit_bias",)
    if start.clip is None:
        heads = head_prefixes(config.vision)
        tensors = {
            k: v for k, v in tensors.items() if k.startswith("visual.") and not k.startswith(heads)
        }
        optional = (*heads, *(k for k in own if not k.startswith("visual.")))
    elif "logit_bias" not in own:
        tensors.pop("logit_bias", None)
    check_fit(start.parent.uri, tensors, own, optional=optional)
    clip.load_state_dict(tensors, strict=False)


def _check_config(start: Start, config: ClipConfig) -> None:
    """Refuse a model of another shape, activation or preprocessing than the weights' (ConfigError).

    Weights would load into some of these without an error, and compute something else.
    """
    sets = _differences("model.vision", start.vision, config.vision)
    if start.clip is not None:
        sets += _differences("model.text", start.clip.text, config.text)
        if start.clip.embed_dim != config.embed_dim:
            sets.append(f"model.embed_dim={start.clip.embed_dim}")
    if sets:
        raise ConfigError(
            f"{start.parent.uri} was trained as another model than the recipe's",
            expected=", ".join(sets),
            action=f"add {' '.join(f'--set {shlex.quote(one)}' for one in sets)}",
        )


def _differences(path: str, theirs: Config, ours: Config) -> list[str]:
    """The overrides that make our tower theirs."""
    old, new = theirs.to_json(), ours.to_json()
    left_out = _FREE | (_VIT_ONLY if old.get("timm_model") else {"timm_args"})
    if old.get("timm_model"):
        left_out |= {"image_size"}  # any size fits, or the tensors' shapes say so
    return [
        f"{path}.{name}={value if isinstance(value, str) else json.dumps(value)}"
        for name, value in old.items()
        if name not in left_out and value != new[name]
    ]
