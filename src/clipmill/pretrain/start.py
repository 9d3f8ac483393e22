"""Where a CLIP run's weights come from, by address; nothing is read here but what describes them.

An address is that of :mod:`clipmill.models.addresses`, empty for random weights. Weights with both
towers start both, others the image tower.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from clipmill.errors import ConfigError
from clipmill.models.addresses import parse_address
from clipmill.models.checkpoint import load_checkpoint
from clipmill.models.encoders import read_encoder_card
from clipmill.models.towers import ClipConfig, VisionConfig
from clipmill.storage import Parent

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
        from clipmill.models.public_weights import find_weights

        weights = find_weights(address)
        return Start(
            parent=weights.as_parent(role),
            vision=weights.vision,
            clip=weights.clip,
            read=weights.tensors,
        )
    card = read_encoder_card(address)
    clip = ClipConfig.from_json(card.architecture) if card.kind == "clip" else None
    return Start(
        parent=card.as_parent(role),
        vision=VisionConfig.from_json(card.architecture["vision"]),
        clip=clip,
        read=partial(_tensors, address),
    )


def _tensors(uri: str) -> "Mapping[str, Tensor]":
    return load_checkpoint(uri)[1]
