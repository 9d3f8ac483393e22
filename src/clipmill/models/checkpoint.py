"""Checkpoints: a folder with ``model.safetensors`` and, written last, ``model.json``.

The JSON has the format, the architecture, the recipe and the parents; nothing is ever unpickled. A
folder without its JSON is no checkpoint. An optional ``embedding.json`` has statistics of the
model's embeddings of its training images.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from clipmill.config import digest_json, sha256_bytes
from clipmill.errors import ArtifactError
from clipmill.lineage import Parent, read_artifact, read_artifact_file
from clipmill.models.embedding_stats import EmbeddingStatistics
from clipmill.storage import exists, join, read_bytes, read_json, write_bytes, write_json

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
_TENSORS = "model.safetensors"
_METADATA = "model.json"
_PROMOTION = "promotion.json"
_EMBEDDING = "embedding.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointMetadata:
    """Metadata of a checkpoint: the content of its JSON."""

    kind: str
    """``clip``, ``mae``, ``supervised`` or ``image`` (encoders), ``coca`` or ``task``."""
    architecture: dict[str, Any]
    """All that is needed to build the model without its weights."""
    recipe: dict[str, Any]
    """The config that trained it."""
    parents: tuple[Parent, ...] = ()
    """Artifacts that it was computed from."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Last values of training, by name."""
    summary: dict[str, str] = field(default_factory=dict)
    """Short facts for people, shown in the lineage."""
    tensors_sha256: str = ""
    """SHA-256 of the tensor file; set when the checkpoint is saved."""
    tensors_bytes: int = 0
    """Size of the tensor file; set when the checkpoint is saved."""
    uri: str = ""
    """URI that it was read from or saved to."""

    @property
    def digest(self) -> str:
        """SHA-256 over weights, architecture, recipe, parents' digests; not places or metrics."""
        return digest_json(
            {
                "format": FORMAT,
                "kind": self.kind,
                "architecture": self.architecture,
                "recipe": self.recipe,
                "parents": sorted([p.role, p.digest] for p in self.parents),
                "tensors": self.tensors_sha256,
            }
        )

    def as_parent(self, role: str) -> Parent:
        """This model as another artifact's parent."""
        return Parent(role=role, uri=self.uri, digest=self.digest)


def save_checkpoint(
    uri: str,
    metadata: CheckpointMetadata,
    tensors: Mapping[str, "Tensor"],
    embedding: EmbeddingStatistics | None = None,
) -> CheckpointMetadata:
    """Write the files, the JSON last; return the metadata with the tensors' digest and size."""
    from safetensors.torch import save

    data = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    metadata = replace(
        metadata, tensors_sha256=sha256_bytes(data), tensors_bytes=len(data), uri=uri
    )
    write_bytes(join(uri, _TENSORS), data)
    if embedding is not None:
        save_embedding(uri, metadata, embedding)
    write_json(join(uri, _METADATA), _to_json(metadata))
    return metadata


def save_embedding(uri: str, metadata: CheckpointMetadata, embedding: EmbeddingStatistics) -> None:
    """Write the statistics of a checkpoint's embeddings into its folder."""
    of_model = {"tensors_sha256": metadata.tensors_sha256}
    write_json(join(uri, _EMBEDDING), of_model | asdict(embedding))


def has_checkpoint(uri: str) -> bool:
    """Return whether a complete checkpoint exists at ``uri``."""
    return exists(join(uri, _METADATA))


def read_metadata(uri: str) -> CheckpointMetadata:
    """Read the metadata only; at a promotion's URI that of the promoted model.

    Raises:
        NotFoundError: nothing lies there.
        ArtifactError: another artifact does, or the JSON is foreign, or of another format.
    """
    try:
        value = read_artifact_file(
            uri, _METADATA, "clipmill pretrain, finetune or data train-captioner"
        )
    except ArtifactError:
        if not exists(join(uri, _PROMOTION)):
            raise
        parents = [Parent.from_json(parent) for parent in read_artifact(uri)["parents"]]
        return read_metadata(next(parent.uri for parent in parents if parent.role == "model"))
    try:
        if value["format"] != FORMAT:
            raise ArtifactError(
                f"{uri} is a checkpoint of format {value['format']}",
                expected=f"format {FORMAT}",
                action="make it again with this version of clipmill",
            )
        metadata = CheckpointMetadata(
            kind=value["kind"],
            architecture=value["architecture"],
            recipe=value["recipe"],
            parents=tuple(Parent.from_json(p) for p in value["parents"]),
            metrics=value["metrics"],
            summary=value["summary"],
            tensors_sha256=value["tensors"]["sha256"],
            tensors_bytes=value["tensors"]["bytes"],
            uri=uri,
        )
        stated = str(value["digest"])
    except (KeyError, TypeError) as error:
        raise ArtifactError(
            f"{uri}/{_METADATA} isn't a checkpoint's JSON: {error!r}",
            expected="a file written by clipmill",
            action="give the URI of a checkpoint",
        ) from error
    if metadata.digest != stated:
        raise ArtifactError(
            f"{uri}/{_METADATA} doesn't match its digest {stated[:12]}",
            expected=f"an unchanged file; its content gives {metadata.digest[:12]}",
            action="restore the checkpoint or make it again",
        )
    return metadata


def load_checkpoint(uri: str) -> tuple[CheckpointMetadata, dict[str, "Tensor"]]:
    """Read metadata and tensors, verified against the SHA-256 in the metadata.

    Raises:
        NotFoundError: nothing lies there.
        ArtifactError: either file is foreign, cut or changed.
    """
    from safetensors.torch import load

    metadata = read_metadata(uri)
    return metadata, load(_read_tensors(metadata))


def read_files(metadata: CheckpointMetadata) -> dict[str, bytes]:
    """Return the content of all of a checkpoint's files by name, verified as the model's.

    Raises:
        ArtifactError: a file is foreign, cut or changed.
    """
    files = {
        _TENSORS: _read_tensors(metadata),
        _METADATA: read_bytes(join(metadata.uri, _METADATA)),
    }
    if read_embedding(metadata) is not None:
        files[_EMBEDDING] = read_bytes(join(metadata.uri, _EMBEDDING))
    return files


def _read_tensors(metadata: CheckpointMetadata) -> bytes:
    data = read_bytes(join(metadata.uri, _TENSORS))
    digest = sha256_bytes(data)
    if digest != metadata.tensors_sha256:
        raise ArtifactError(
            f"{metadata.uri}/{_TENSORS} has SHA-256 {digest[:12]}",
            expected=f"{metadata.tensors_sha256[:12]}, as {_METADATA} says",
            action="restore the checkpoint or make it again",
        )
    return data


def read_embedding(metadata: CheckpointMetadata) -> EmbeddingStatistics | None:
    """Read the statistics of the model's embeddings of its training images, if it has any.

    Raises:
        ArtifactError: the file is foreign, or another model's.
    """
    uri = join(metadata.uri, _EMBEDDING)
    if not exists(uri):
        return None
    value = read_json(uri)
    try:
        is_its_own = value.pop("tensors_sha256") == metadata.tensors_sha256
        statistics = EmbeddingStatistics(**value | {"mean": tuple(map(float, value["mean"]))})
    except (AttributeError, KeyError, TypeError, ValueError):
        is_its_own = False
    if not is_its_own:
        raise ArtifactError(
            f"{uri} isn't about the model next to it",
            expected="the file that was written with the checkpoint",
            action="restore it, or remove it and do without its metric",
        )
    return statistics


def _to_json(metadata: CheckpointMetadata) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "kind": metadata.kind,
        "digest": metadata.digest,
        "architecture": metadata.architecture,
        "recipe": metadata.recipe,
        "parents": [p.to_json() for p in metadata.parents],
        "metrics": metadata.metrics,
        "summary": metadata.summary,
        "tensors": {
            "file": _TENSORS,
            "sha256": metadata.tensors_sha256,
            "bytes": metadata.tensors_bytes,
        },
    }
