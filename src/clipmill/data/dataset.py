"""A dataset: immutable WebDataset shards, and the layers computed over them since.

``dataset.json`` lists both. The digest is that of the shard list: it names the pairs, and stays
what it is when a layer is added, so that what was made from the dataset before can still be
traced to it. Each layer has a digest of its own.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from clipmill.config import digest_json
from clipmill.errors import ArtifactError, BadSampleReason, ConfigError, NotFoundError
from clipmill.lineage import Parent, artifact_at
from clipmill.storage import join, open_store, read_json

FORMAT = 1
MANIFEST = "dataset.json"
DEDUP = "-dedup"
"""In the names of shards from which duplicates of earlier samples were dropped. They have a name of
their own so that a late worker, which writes the original shard, changes nothing. Datasets of
clipmill 0.1 have ``-unique`` instead."""
RETRY_LIST = "retry.jsonl"
"""Rows of a table of URLs whose images couldn't be fetched, as a table of the same columns."""
RETRY_ROW = "row"
"""Key of such a row in a shard's list of rejected items."""


@dataclass(frozen=True, slots=True)
class ShardInfo:
    """One shard, as the dataset's list names it."""

    name: str
    """File name below ``shards/``: ``00000.tar``, or ``00000-dedup.tar`` (see DEDUP)."""
    num_samples: int
    num_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class LayerInfo:
    """One committed layer, as the dataset's list names it."""

    name: str
    """Kind and maker, such as ``captions/coca-1a2b3c4d``."""
    digest: str
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Dataset:
    """Content of ``dataset.json``: shards of image-caption pairs, and layers computed over them.

    Example:
        >>> uri = clipmill.write_dataset(clipmill.ShardConfig(), "photos", "out")
        >>> dataset = clipmill.Dataset.open(uri)
        >>> dataset.num_samples, len(dataset.shards), list(dataset.layers)
        (24, 1, [])
    """

    uri: str
    """Absolute, so that what is made from the dataset can name it."""
    shards: tuple[ShardInfo, ...]
    layers: Mapping[str, LayerInfo]
    quarantine: Mapping[str, int]
    """Number of items left out, by reason (see ``sources.REASONS``)."""
    parents: tuple[Parent, ...]

    @classmethod
    def open(cls, uri: str) -> Self:
        """Read the dataset at ``uri``.

        Raises ArtifactError if there is none, or its list is foreign, cut or inconsistent.
        """
        uri = open_store(uri).uri
        try:
            value = read_json(join(uri, MANIFEST))
        except NotFoundError as error:
            other = artifact_at(uri)
            raise ArtifactError(
                f"{uri} is {other}, not a dataset" if other else f"there is no dataset at {uri}",
                expected=f"a folder with {MANIFEST}, which is written when all shards are",
                action="correct the URI, or run (or rerun) `clipmill data shard`",
            ) from error
        check_kind(value, "dataset", uri)
        try:
            dataset = cls(
                uri=uri,
                shards=tuple(ShardInfo(**shard) for shard in value["shards"]),
                layers={n: LayerInfo(name=n, **v) for n, v in value["layers"].items()},
                quarantine={BadSampleReason.parse(r): n for r, n in value["quarantine"].items()},
                parents=tuple(Parent.from_json(parent) for parent in value["parents"]),
            )
            consistent = value["digest"] == dataset.digest
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise inconsistent_artifact_error(
                join(uri, MANIFEST), f"lacks a part: {error!r}"
            ) from error
        if not consistent:
            raise inconsistent_artifact_error(join(uri, MANIFEST), "doesn't match its own digest")
        return dataset

    @property
    def num_samples(self) -> int:
        """Samples in all shards."""
        return sum(shard.num_samples for shard in self.shards)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the shard list: equal for equal samples, whatever the layers."""
        return digest_json([asdict(shard) for shard in self.shards])

    def uids(self, index: int) -> list[str]:
        """The uids of the samples in shard ``index``, in order, without reading the shard.

        Raises ArtifactError if the shard's sidecar isn't of the shard that is listed.
        """
        sidecar = read_sidecar(self.uri, index, self._dedup_suffix(index))
        if sidecar["sha256"] != self.shards[index].sha256:
            raise inconsistent_artifact_error(
                self.sidecar_uri(index), "describes a different shard (digest mismatch)"
            )
        uids: list[str] = sidecar["uids"]
        return uids

    def shard_range(self, start: int, stop: int | None) -> range:
        """Shards ``start`` to ``stop`` (exclusive; None: to the end).

        Raises ConfigError where that isn't a range of them.
        """
        count = len(self.shards)
        last = count if stop is None else stop
        if not 0 <= start < last <= count:
            raise ConfigError(
                f"the range of shards was {start} to {last}",
                expected=f"a start from 0 to {count - 1}, and a stop above it, at most {count}",
                action="correct --start or --stop",
            )
        return range(start, last)

    def sidecar_uri(self, index: int) -> str:
        """Return the key of the sidecar of shard ``index``."""
        return sidecar_uri(self.uri, index, self._dedup_suffix(index))

    def shard_uri(self, index: int) -> str:
        """The URI of shard ``index``."""
        return join(self.uri, "shards", self.shards[index].name)

    def _dedup_suffix(self, index: int) -> str:
        return dedup_suffix(self.shards[index].name)

    def layer_uri(self, layer: str) -> str:
        """The URI of a layer's folder, whether or not it exists."""
        return join(self.uri, "layers", layer)


def dedup_suffix(name: str) -> str:
    """Return the part of a shard's name that says that duplicates were dropped, or ``""``."""
    return name.removesuffix(".tar").lstrip("0123456789")


def sidecar_uri(uri: str, index: int, suffix: str = "") -> str:
    """Return the URI of the record beside shard ``index`` of the dataset at ``uri``.

    ``suffix``: DEDUP for the shard's version without duplicates of earlier samples.
    """
    return join(uri, "shards", f"{index:05d}{suffix}.json")


def read_sidecar(uri: str, index: int, suffix: str = "") -> dict[str, Any]:
    """Read the record of shard ``index``: uids in order, counts, digest, quarantined items."""
    path = sidecar_uri(uri, index, suffix)
    sidecar: dict[str, Any] = read_json(path)
    check_kind(sidecar, "shard", path)
    return {**sidecar, "quarantined": parse_quarantined(sidecar.get("quarantined", ()))}


def parse_quarantined(items: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return rejected items with reasons as they are written now."""
    return [{**item, "reason": BadSampleReason.parse(item["reason"])} for item in items]


def listed_quarantined(items: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return rejected items of sidecars as ``dataset.json`` lists them: without a retry's rows."""
    return [{name: item[name] for name in item if name != RETRY_ROW} for item in items]


def layer_list(layers: Iterable[LayerInfo]) -> dict[str, Any]:
    """The ``layers`` entry of ``dataset.json``."""
    return {v.name: {"digest": v.digest, "num_bytes": v.num_bytes} for v in layers}


def check_kind(value: object, kind: str, uri: str) -> None:
    """Raise ArtifactError unless ``value`` is a record of this kind and format."""
    actual = (value.get("kind"), value.get("format")) if isinstance(value, dict) else (None, None)
    if actual != (kind, FORMAT):
        raise ArtifactError(
            f"{uri} holds kind {actual[0]!r} in format {actual[1]!r}",
            expected=f"kind {kind!r} in format {FORMAT}",
            action="point at an artifact that this version of clipmill wrote",
        )


def inconsistent_artifact_error(uri: str, reason: str) -> ArtifactError:
    """Return the error for an artifact that was damaged or edited."""
    return ArtifactError(
        f"{uri} {reason}",
        expected="the file as clipmill wrote it",
        action="delete it and run the step that writes it again",
    )


def cache_folder() -> Path:
    """Return the default folder of local copies: ``CLIPMILL_CACHE``, or ~/.cache/clipmill."""
    default = Path.home() / ".cache" / "clipmill"
    return Path(os.environ.get("CLIPMILL_CACHE") or default)
