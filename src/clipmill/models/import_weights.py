"""Public weights as an encoder artifact, with their source and preprocessing in its lineage."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from clipmill import __version__
from clipmill.digest import digest_json
from clipmill.errors import ConfigError
from clipmill.models.addresses import parse_address
from clipmill.models.checkpoint import ModelCard, has_checkpoint, save_checkpoint
from clipmill.models.encoders import EncoderConfig, encoder_tensors
from clipmill.models.public_weights import PublicWeights, find_weights
from clipmill.models.tensor_files import check_fit
from clipmill.models.towers import build_clip
from clipmill.stage_records import Report
from clipmill.storage import Parent, join

if TYPE_CHECKING:
    from torch import Tensor


def import_weights(address: str, store: str, *, report: Report) -> str:
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
    uri = join(store, "encoders", f"{name}-{digest_json([address, weights.digest])[:12]}")
    if has_checkpoint(uri):
        return uri
    report(0, 1, f"reading {weights.path}")
    tensors = weights.tensors()
    _check_fit(weights, tensors)
    config = weights.clip or weights.vision
    card = ModelCard(
        kind="clip" if weights.clip else "image",
        architecture=config.to_json() if weights.clip else {"vision": config.to_json()},
        recipe={"import": address, "clipmill": __version__},
        parents=(Parent(role="weights", uri=address, digest=weights.sha256),),
        summary=weights.summary,
    )
    save_checkpoint(uri, card, tensors)
    report(1, 1, "imported")
    return uri


def _check_fit(weights: PublicWeights, tensors: "Mapping[str, Tensor]") -> None:
    """Compare the tensors with the towers, built without memory (ArtifactError)."""
    import torch

    from clipmill.models.dense import build_dense

    with torch.device("meta"):
        if weights.clip is not None:
            check_fit(weights.address, tensors, build_clip(weights.clip).state_dict())
            return
        encoder = build_dense(EncoderConfig(vision=weights.vision))
    own = encoder_tensors(tensors, weights.vision, encoder)
    check_fit(weights.address, own, encoder.state_dict())
