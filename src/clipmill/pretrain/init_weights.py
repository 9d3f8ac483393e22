"""Where a CLIP run's weights come from, by address; nothing is read here but what describes them.

An address is that of :mod:`clipmill.models.weights.addresses`, empty for random weights. Weights with both
towers start both, others the image tower.
"""

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from torch import nn

from clipmill.config import Config
from clipmill.errors import ConfigError
from clipmill.lineage import Parent
from clipmill.models.checkpoint import load_checkpoint
from clipmill.models.config import ClipConfig, VisionConfig
from clipmill.models.pretrained import head_prefixes, read_encoder_metadata
from clipmill.models.weights.addresses import parse_address
from clipmill.models.weights.files import check_fit

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """Weights to begin with."""

    parent: Parent
    """What they are in a lineage."""
    vision: VisionConfig
    """The image tower that they were trained as."""
    clip: ClipConfig | None
    """Both towers; None for an image tower alone."""
    read: "Callable[[], Mapping[str, Tensor]]"
    """Reads the tensors under CLIP's names."""


def find_start(address: str, role: str = "start") -> Start | None:
    """Find the weights at an address; None for an empty one.

    Raises:
        ConfigError: no such form, model or weights.
        NotFoundError: nothing lies there, or it can't be downloaded.
        ArtifactError: a checkpoint of a kind that CLIP can't start from.
    """
    if not address:
        return None
    scheme = parse_address(address).scheme
    if scheme == "random":
        raise ConfigError(
            f"the weights to start from were {address}",
            expected="weights; without any, training starts from random ones",
            action="leave the address empty",
        )
    if scheme != "clipmill":
        from clipmill.models.weights.public import find_weights

        weights = find_weights(address)
        return Start(
            parent=weights.as_parent(role),
            vision=weights.vision,
            clip=weights.clip,
            read=weights.tensors,
        )
    metadata = read_encoder_metadata(address)
    clip = ClipConfig.from_json(metadata.architecture) if metadata.kind == "clip" else None
    return Start(
        parent=metadata.as_parent(role),
        vision=VisionConfig.from_json(metadata.architecture["vision"]),
        clip=clip,
        read=partial(_tensors, address),
    )


def _tensors(uri: str) -> "Mapping[str, Tensor]":
    return load_checkpoint(uri)[1]


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
