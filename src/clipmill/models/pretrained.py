"""Pretrained image towers by address: clipmill's own, public, or random weights; and imports."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from clipmill.config import digest_json
from clipmill.errors import ArtifactError, ConfigError, NotFoundError
from clipmill.lineage import Parent
from clipmill.models.checkpoint import (
    CheckpointMetadata,
    has_checkpoint,
    load_checkpoint,
    read_metadata,
    save_checkpoint,
)
from clipmill.models.config import EncoderConfig, VisionConfig
from clipmill.models.towers import build_clip
from clipmill.models.weights.addresses import parse_address
from clipmill.models.weights.files import check_fit
from clipmill.models.weights.public import PublicWeights, find_weights
from clipmill.stage_records import ProgressCallback
from clipmill.storage import artifact_uri, exists, join
from clipmill.version import clipmill_version

if TYPE_CHECKING:
    from torch import Tensor

    from clipmill.models.encoders import Encoder

ENCODER_KINDS = ("clip", "mae", "supervised", "image")
"""Kinds of checkpoints that hold an image tower, under ``visual.``; ``image`` is an imported tower
alone."""
_LIBRARY_FILES = ("config.json", "open_clip_config.json")


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainedEncoder:
    """An image tower to start from: an architecture, and its weights."""

    config: EncoderConfig
    """The tower and the images that it was trained on."""
    parent: Parent
    """The weights in a lineage."""
    read: "Callable[[], Mapping[str, Tensor]] | None"
    """Reads the tensors under CLIP's names; None for random weights."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """Provenance of weights that lie in no store, for the lineage."""

    @property
    def notice(self) -> str:
        """Log line about random weights; empty for others."""
        return "" if self.read else f"starting from random weights, as {self.parent.uri} says"

    def load_weights(self, encoder: "Encoder") -> None:
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
    """Open the image tower at an address (:mod:`clipmill.models.weights.addresses`).

    Raises:
        ConfigError: no such form, model or weights.
        NotFoundError: nothing lies there, or it can't be downloaded.
        ArtifactError: an artifact without an image tower.
    """
    if parse_address(address).scheme != "clipmill":
        from clipmill.models.weights.public import find_weights

        weights = find_weights(address)
        vision = weights.vision
        return PretrainedEncoder(
            config=EncoderConfig(vision=vision, mean=vision.mean, std=vision.std),
            parent=weights.as_parent("encoder"),
            read=weights.tensors if weights.path else None,
            facts={f"encoder {name}": text for name, text in weights.summary.items()},
        )
    metadata = read_encoder_metadata(address)
    vision = VisionConfig.from_stored(metadata.architecture["vision"], address)
    return PretrainedEncoder(
        config=EncoderConfig(vision=vision, mean=vision.mean, std=vision.std),
        parent=metadata.as_parent("encoder"),
        read=partial(_checkpoint_tensors, address),
    )


def check_address(address: str) -> None:
    """Check an encoder's address without downloading anything.

    Raises:
        ConfigError, NotFoundError, ArtifactError: as :func:`open_encoder`, of what can be told.
    """
    if parse_address(address).scheme == "clipmill":
        read_encoder_metadata(address)
        return
    from clipmill.models.weights.public import check_names

    check_names(address)


def read_encoder_metadata(uri: str, kinds: Sequence[str] = ENCODER_KINDS) -> CheckpointMetadata:
    """Read the metadata of a clipmill encoder.

    Raises:
        NotFoundError: nothing lies there.
        ArtifactError: something else lies there.
    """
    try:
        metadata = read_metadata(uri)
    except NotFoundError as error:
        if any(exists(join(uri, name)) for name in _LIBRARY_FILES):
            raise ArtifactError(
                f"{uri} is a model of another library, without a scheme",
                expected=f"file:{uri}",
                action="put file: before the path",
            ) from error
        raise
    if metadata.kind not in kinds:
        raise ArtifactError(
            f"{uri} is a checkpoint of kind {metadata.kind!r}",
            expected=f"an encoder: one of {', '.join(kinds)}",
            action="give the URI that `clipmill pretrain` or `clipmill import` printed",
        )
    return metadata


def _checkpoint_tensors(uri: str) -> "Mapping[str, Tensor]":
    return load_checkpoint(uri)[1]


def head_prefixes(vision: VisionConfig) -> tuple[str, ...]:
    """Return the name prefixes of an image tower's projection and classifier."""
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


def import_weights(address: str, store: str, *, report: ProgressCallback) -> str:
    """Copy the weights at an address into an encoder's checkpoint; its URI, under ``store``.

    It is a CLIP where clipmill has both towers, and an image tower alone elsewhere. A checkpoint
    that is there already is returned at once.

    Raises:
        ConfigError: the address is no public weights', or of an architecture that clipmill lacks.
        NotFoundError: the weights aren't there, or can't be downloaded.
        ArtifactError: they can't be read, or aren't what their config says.
    """
    if parse_address(address).scheme in {"clipmill", "random"}:
        raise ConfigError(
            f"{address} isn't public weights",
            expected="open_clip:NAME/TAG, timm:NAME[.TAG], hf:ORG/NAME or file:PATH",
            action="use an encoder of clipmill's, or random weights, by their address as they are",
        )
    weights = find_weights(address)
    name = address.partition("#")[0].rstrip("/").replace(":", "/").rpartition("/")[2]
    uri = artifact_uri(store, "encoders", f"{name}-{digest_json([address, weights.digest])[:12]}")
    if has_checkpoint(uri):
        return uri
    report(0, 1, f"reading {weights.path}")
    tensors = weights.tensors()
    _check_weights(weights, tensors)
    config = weights.clip or weights.vision
    metadata = CheckpointMetadata(
        kind="clip" if weights.clip else "image",
        architecture=config.to_json() if weights.clip else {"vision": config.to_json()},
        recipe={"import": address, "clipmill": clipmill_version()},
        parents=(Parent(role="weights", uri=address, digest=weights.sha256),),
        summary=weights.summary,
    )
    save_checkpoint(uri, metadata, tensors)
    report(1, 1, "imported")
    return uri


def _check_weights(weights: PublicWeights, tensors: "Mapping[str, Tensor]") -> None:
    """Compare the tensors with the towers, built without memory (ArtifactError)."""
    import torch

    from clipmill.models.encoders import build_dense

    with torch.device("meta"):
        if weights.clip is not None:
            check_fit(weights.address, tensors, build_clip(weights.clip).state_dict())
            return
        encoder = build_dense(EncoderConfig(vision=weights.vision))
    own = encoder_tensors(tensors, weights.vision, encoder)
    check_fit(weights.address, own, encoder.state_dict())
