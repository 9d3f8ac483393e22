"""List and describe the artifacts of a store: kind, date, parents, metrics and size of each."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from clipmill.config import flatten
from clipmill.errors import ArtifactError, NotFoundError, StorageError
from clipmill.lineage import ARTIFACT_FILES, Parent, parse_artifact, read_artifact
from clipmill.storage import join, open_store

_CONFIG_KEYS = ("recipe", "config")
_COUNTS = ("num_samples", "num_rows")


@dataclass(frozen=True, kw_only=True, slots=True)
class Artifact:
    """An artifact as its JSON file describes it."""

    name: str
    """Path in the store that was listed; its URI where one artifact was read."""
    uri: str
    """Address."""
    kind: str
    """Kind: ``dataset``, ``clip``, ``evaluation`` ..."""
    digest: str
    """Digest of its content and inputs."""
    date: datetime
    """Time at which its JSON file was written to this store, in UTC."""
    config: Mapping[str, Any]
    """Config that it was made with, as JSON; empty where it records none."""
    summary: Mapping[str, str]
    """Its main values as text, by name."""
    metrics: Mapping[str, float]
    """Metric values by dotted name."""
    parents: tuple[Parent, ...]
    """Its inputs."""

    @property
    def main_metric(self) -> str:
        """The most important value with its name, such as ``mIoU 31.205 %``; empty for none."""
        for name in _COUNTS:
            if name in self.summary:
                return f"{int(self.summary[name]):,} {name.removeprefix('num_')}"
        if "loss" in self.metrics:
            return f"loss {self.metrics['loss']:.3f}"
        return next((f"{name} {value}" for name, value in self.summary.items()), "")

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "name": self.name,
            "uri": self.uri,
            "kind": self.kind,
            "digest": self.digest,
            "date": self.date.isoformat(timespec="seconds"),
            "summary": dict(self.summary),
            "metrics": dict(self.metrics),
            "parents": [parent.to_json() for parent in self.parents],
        }


def list_artifacts(store: str) -> list[Artifact]:
    """Return the artifacts under a store, by name, without unreadable ones.

    Raises:
        NotFoundError: the store is empty.
    """
    artifacts = []
    is_empty = True
    opened = open_store(store)
    for entry in opened.entries():
        is_empty = False
        name, _, file = entry.key.rpartition("/")
        if file not in ARTIFACT_FILES:
            continue
        try:
            value = parse_artifact(opened.get(entry.key), join(store, entry.key))
            uri = join(store, name) if name else store
            artifacts.append(_artifact(value, uri, name or ".", entry.modified))
        except (ArtifactError, StorageError):
            # A stage's record that has such a name, or an artifact that is being written.
            continue
    if is_empty:
        raise NotFoundError(
            f"there is nothing under {store}",
            expected="the directory or s3:// URI of --store in the commands before",
            action="check the path",
        )
    return artifacts


def describe_artifact(uri: str) -> tuple[Artifact, int, int]:
    """Return the artifact at ``uri``, its number of files, and their bytes.

    Raises:
        NotFoundError: there is none.
        ArtifactError: its JSON file is damaged.
    """
    num_files, num_bytes, modified = 0, 0, 0.0
    for entry in open_store(uri).entries():
        num_files += 1
        num_bytes += entry.size
        if entry.key in ARTIFACT_FILES:
            modified = entry.modified
    return _artifact(read_artifact(uri), uri, uri, modified), num_files, num_bytes


def _artifact(value: Mapping[str, Any], uri: str, name: str, modified: float) -> Artifact:
    configs = (value[key] for key in _CONFIG_KEYS if isinstance(value.get(key), dict))
    metrics = value.get("metrics")
    numbers = flatten(metrics) if isinstance(metrics, dict) else {}
    return Artifact(
        name=name,
        uri=uri,
        kind=value["kind"],
        digest=value["digest"],
        date=datetime.fromtimestamp(modified, UTC),
        config=next(configs, {}),
        summary={str(key): str(text) for key, text in value.get("summary", {}).items()},
        metrics={key: float(v) for key, v in numbers.items() if isinstance(v, int | float)},
        parents=tuple(Parent.from_json(parent) for parent in value["parents"]),
    )
