"""Initial weights of a CLIP run, by address.

An address is that of :mod:`clipmill.models.weights.addresses`, empty for random weights. Weights
with both towers initialize both, others the image tower.
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

# Fields of the new model's own choice: a timm model's head, and the resizing of images.
_FREE_FIELDS = {"pool", "head", "interpolation", "resize"}
_VIT_FIELDS = {
    "patch_size", "width", "layers", "head_width", "has_input_norm", "mlp_ratio", "activation",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class InitWeights:
    """Initial weights."""

    parent: Parent
    """The weights in a lineage."""
    vision: VisionConfig
    """The image tower that they were trained as."""
    clip: ClipConfig | None
    """Both towers; None for an image tower alone."""
    read: "Callable[[], Mapping[str, Tensor]]"
    """Reads the tensors under CLIP's names."""


def resolve_init(address: str, role: str = "start") -> InitWeights | None:
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
            f"the initial weights were {address}",
            expected="weights; an empty address initializes randomly",
            action="leave the address empty",
        )
    if scheme != "clipmill":
        from clipmill.models.weights.public import find_weights

        weights = find_weights(address)
        return InitWeights(
            parent=weights.as_parent(role),
            vision=weights.vision,
            clip=weights.clip,
            read=weights.tensors,
        )
    metadata = read_encoder_metadata(address)
    clip = ClipConfig.from_json(metadata.architecture) if metadata.kind == "clip" else None
    return InitWeights(
        parent=metadata.as_parent(role),
        vision=VisionConfig.from_json(metadata.architecture["vision"]),
        clip=clip,
        read=partial(_tensors, address),
    )


def _tensors(uri: str) -> "Mapping[str, Tensor]":
    return load_checkpoint(uri)[1]


def load_init_weights(init: InitWeights, clip: nn.Module, config: ClipConfig) -> None:
    """Copy the weights into a new CLIP; tensors that an image tower lacks keep their random values.

    Raises:
        ConfigError: ``config`` isn't that of the model that the weights were trained as.
        ArtifactError: the weights can't be read, or aren't what their config says.
    """
    _check_config(init, config)
    own = clip.state_dict()
    tensors = dict(init.read())
    optional: tuple[str, ...] = ("logit_bias",)
    if init.clip is None:
        heads = head_prefixes(config.vision)
        tensors = {
            k: v for k, v in tensors.items() if k.startswith("visual.") and not k.startswith(heads)
        }
        optional = (*heads, *(k for k in own if not k.startswith("visual.")))
    elif "logit_bias" not in own:
        tensors.pop("logit_bias", None)
    check_fit(init.parent.uri, tensors, own, optional=optional)
    clip.load_state_dict(tensors, strict=False)


def _check_config(init: InitWeights, config: ClipConfig) -> None:
    """Refuse a model of another shape, activation or preprocessing than the weights' (ConfigError).

    Weights would load into some of these without an error, and compute something else.
    """
    sets = _differences("model.vision", init.vision, config.vision)
    if init.clip is not None:
        sets += _differences("model.text", init.clip.text, config.text)
        if init.clip.embed_dim != config.embed_dim:
            sets.append(f"model.embed_dim={init.clip.embed_dim}")
    if sets:
        raise ConfigError(
            f"{init.parent.uri} was trained as another model than the recipe's",
            expected=", ".join(sets),
            action=f"add {' '.join(f'--set {shlex.quote(one)}' for one in sets)}",
        )


def _differences(path: str, theirs: Config, ours: Config) -> list[str]:
    """Return the overrides that make the recipe's tower that of the weights."""
    old, new = theirs.to_json(), ours.to_json()
    left_out = _FREE_FIELDS | (_VIT_FIELDS if old.get("timm_model") else {"timm_args"})
    if old.get("timm_model"):
        left_out |= {"image_size"}  # any size fits, or the tensors' shapes say so
    return [
        f"{path}.{name}={value if isinstance(value, str) else json.dumps(value)}"
        for name, value in old.items()
        if name not in left_out and value != new[name]
    ]
