"""Image towers by address: clipmill's own, public weights, or random ones."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from clipmill.config import Config
from clipmill.errors import ArtifactError
from clipmill.models.addresses import parse_address
from clipmill.models.checkpoint import ModelCard, load_checkpoint, read_card
from clipmill.models.tensor_files import check_fit
from clipmill.models.towers import CLIP_MEAN, CLIP_STD, VisionConfig
from clipmill.storage import Parent

if TYPE_CHECKING:
    from torch import Tensor

    from clipmill.models.dense import Encoder


ENCODER_KINDS = ("clip", "mae", "supervised", "image")
"""Kinds of checkpoints that hold an image tower, under ``visual.``; ``image`` is an imported tower
alone."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EncoderConfig(Config):
    """An image tower to be used for dense features."""

    vision: VisionConfig = VisionConfig()
    """The tower as it was pretrained."""
    mean: tuple[float, float, float] = CLIP_MEAN
    """Mean of the images that it was pretrained on, by channel, in 0..1."""
    std: tuple[float, float, float] = CLIP_STD
    """Their standard deviation, by channel."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PretrainedEncoder:
    """An image tower to start from: an architecture, and its weights."""

    config: EncoderConfig
    """The tower and the images that it was trained on."""
    parent: Parent
    """The weights in a lineage."""
    read: "Callable[[], Mapping[str, Tensor]] | None"
    """Reads the tensors under CLIP's names; None for random weights."""
    facts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """What a lineage says of weights that lie in no store."""

    @property
    def notice(self) -> str:
        """A line for the log, of weights that need one."""
        return "" if self.read else f"starting from random weights, as {self.parent.uri} says"

    def load_into(self, encoder: "Encoder") -> None:
        """Copy the weights in; random ones stay as they are.

        Raises:
            ArtifactError: the weights don't fit the architecture.
        """
        if self.read is None:
            return
        needed = encoder_tensors(self.read(), self.config.vision, encoder)
        check_fit(self.parent.uri, needed, encoder.state_dict())
        encoder.load_state_dict(needed)


def open_encoder(address: str) -> PretrainedEncoder:
    """Open the image tower at an address (:mod:`clipmill.models.addresses`).

    Raises:
        ConfigError: no such form, model or weights.
        NotFoundError: nothing lies there, or it can't be downloaded.
        ArtifactError: an artifact without an image tower.
    """
    if parse_address(address).scheme != "clipmill":
        from clipmill.models.public_weights import find_weights

        weights = find_weights(address)
        vision = weights.vision
        return PretrainedEncoder(
            config=EncoderConfig(vision=vision, mean=vision.mean, std=vision.std),
            parent=weights.as_parent("encoder"),
            read=weights.tensors if weights.path else None,
            facts={f"encoder {name}": text for name, text in weights.summary.items()},
        )
    card = read_encoder_card(address)
    vision = VisionConfig.from_json(card.architecture["vision"])
    return PretrainedEncoder(
        config=EncoderConfig(vision=vision, mean=vision.mean, std=vision.std),
        parent=card.as_parent("encoder"),
        read=partial(_checkpoint_tensors, address),
    )


def check_address(address: str) -> None:
    """Find what is wrong with an encoder's address without downloading anything.

    Raises:
        ConfigError, NotFoundError, ArtifactError: as :func:`open_encoder`, of what can be told.
    """
    if parse_address(address).scheme == "clipmill":
        read_encoder_card(address)
        return
    from clipmill.models.public_weights import check_names

    check_names(address)


def read_encoder_card(uri: str, kinds: Sequence[str] = ENCODER_KINDS) -> ModelCard:
    """Read the card of an encoder of clipmill's.

    Raises:
        NotFoundError: nothing lies there.
        ArtifactError: something else lies there.
    """
    card = read_card(uri)
    if card.kind not in kinds:
        raise ArtifactError(
            f"{uri} is a checkpoint of kind {card.kind!r}",
            expected=f"an encoder: one of {', '.join(kinds)}",
            action="give the URI that `clipmill pretrain` or `clipmill import` printed",
        )
    return card


def _checkpoint_tensors(uri: str) -> "Mapping[str, Tensor]":
    return load_checkpoint(uri)[1]


def head_prefixes(vision: VisionConfig) -> tuple[str, ...]:
    """How names of tensors above an image tower's features begin: projections and classifiers."""
    if not vision.timm_model:
        return ("visual.proj",)
    import timm

    own = timm.models.get_pretrained_cfg_value(vision.timm_model, "classifier") or ()
    names = (own,) if isinstance(own, str) else tuple(own)
    return ("visual.head.", *(f"visual.trunk.{name}." for name in names))


def encoder_tensors(
    tensors: "Mapping[str, Tensor]", vision: VisionConfig, encoder: "Encoder"
) -> dict[str, "Tensor"]:
    """Return the image tower's tensors that an encoder uses, under its names."""
    kept = {
        "trunk." + key.removeprefix("visual.").removeprefix("trunk."): tensor
        for key, tensor in tensors.items()
        if key.startswith("visual.")
        and not key.startswith((*head_prefixes(vision), "visual.ln_post."))
    }
    if not vision.timm_model:
        norms = {f"norm.{part}": f"visual.ln_post.{part}" for part in ("weight", "bias")}
        kept |= {new: tensors[old] for new, old in norms.items() if old in tensors}
    return {name: tensor for name, tensor in kept.items() if name not in encoder.pruned}
