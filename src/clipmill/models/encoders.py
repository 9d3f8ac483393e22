"""Image towers to fine-tune, by name: ours from a store, timm's and open_clip's from scratch."""

import dataclasses
from typing import TYPE_CHECKING, Any

from clipmill.config import Config
from clipmill.errors import ArtifactError, ConfigError
from clipmill.models.addresses import parse_address
from clipmill.models.checkpoint import load_checkpoint, read_card
from clipmill.models.towers import CLIP_MEAN, CLIP_STD, VisionConfig
from clipmill.storage import Parent

if TYPE_CHECKING:
    from torch import Tensor

    from clipmill.models.dense import Encoder


ENCODER_KINDS = ("clip", "mae", "supervised")
"""Kinds of checkpoints that hold an image tower, under ``visual.``."""


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
    """Where fine-tuning starts: an architecture, and its weights if it has any."""

    config: EncoderConfig
    """What to build."""
    has_weights: bool
    """Whether weights lie at the parent's URI; without them training starts from scratch."""
    parent: Parent
    """What it is in a lineage."""

    def load_into(self, encoder: "Encoder") -> None:
        """Copy the weights in; what an encoder adds (its last norm) keeps its start values.

        Raises:
            ArtifactError: the weights don't fit the architecture.
        """
        if not self.has_weights:
            return
        _, tensors = load_checkpoint(self.parent.uri)
        kept = _dense_names(tensors, self.config.vision)
        needed = {k: v for k, v in kept.items() if k not in encoder.pruned}
        found = encoder.load_state_dict(needed, strict=False)
        strange = [*found.unexpected_keys, *(k for k in found.missing_keys if k[:5] != "norm.")]
        if strange:
            raise ArtifactError(
                f"{self.parent.uri} doesn't fit its architecture at {strange[:3]}",
                expected="one tensor for each parameter of the image tower",
                action="give another encoder",
            )


def open_encoder(name: str) -> PretrainedEncoder:
    """An encoder by the URI of a checkpoint, ``random:timm/NAME`` or ``random:open_clip/NAME``.

    ``timm:NAME`` and ``open_clip:NAME`` still mean random weights too.
    """
    scheme, _, model = name.partition(":")
    if scheme in {"timm", "open_clip", "random"}:
        if scheme == "random":
            address = parse_address(name)
            scheme, model = address.library, address.name
        vision = VisionConfig(timm_model=model) if scheme == "timm" else _open_clip_vision(model)
        config = EncoderConfig(vision=vision)
        parent = Parent(role="encoder", uri=name, digest=config.digest)
        return PretrainedEncoder(config=config, has_weights=False, parent=parent)
    card = read_card(name)
    if card.kind not in ENCODER_KINDS:
        raise ArtifactError(
            f"{name} is a checkpoint of kind {card.kind!r}",
            expected=f"one of {', '.join(ENCODER_KINDS)}, as the pretrain commands make",
            action="give the URI of an encoder",
        )
    vision = VisionConfig.from_json(card.architecture["vision"])
    config = EncoderConfig(vision=vision, mean=vision.mean, std=vision.std)
    return PretrainedEncoder(config=config, has_weights=True, parent=card.as_parent("encoder"))


def head_prefixes(vision: VisionConfig) -> tuple[str, ...]:
    """How names of tensors above an image tower's features begin: projections and classifiers."""
    if not vision.timm_model:
        return ("visual.proj",)
    import timm

    own = timm.models.get_pretrained_cfg_value(vision.timm_model, "classifier")
    return ("visual.head.", f"visual.trunk.{own}.")


def _dense_names(tensors: dict[str, "Tensor"], vision: VisionConfig) -> dict[str, "Tensor"]:
    """The image tower's tensors of a checkpoint under a DenseEncoder's names."""
    kept = {
        "trunk." + key.removeprefix("visual.").removeprefix("trunk."): tensor
        for key, tensor in tensors.items()
        if key.startswith("visual.")
        and not key.startswith((*head_prefixes(vision), "visual.ln_post."))
    }
    if vision.timm_model:
        return kept
    return kept | {f"norm.{part}": tensors[f"visual.ln_post.{part}"] for part in ("weight", "bias")}


def _open_clip_vision(model: str) -> VisionConfig:
    import open_clip

    config: dict[str, Any] | None = open_clip.get_model_config(model)
    if config is None:
        raise ConfigError(
            f"open_clip has no model named {model!r}",
            expected="a name that open_clip.list_models() gives",
            action="correct the name",
        )
    vision = config["vision_cfg"]
    if "timm_model_name" in vision:
        return VisionConfig(
            image_size=vision["image_size"],
            timm_model=vision["timm_model_name"],
            head="projection" if vision.get("timm_proj", "linear") else "classifier",
        )
    names = ("image_size", "patch_size", "width", "layers", "head_width")
    return VisionConfig(**{name: vision[name] for name in names if name in vision})
