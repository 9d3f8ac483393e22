"""Lineage of an artifact: its parents, theirs, and so on down to the sources.

An artifact is a folder that holds exactly one of ``ARTIFACT_FILES``, a JSON object with
``kind``, ``digest``, ``parents`` (a list of ``{role, uri, digest}``) and, if it likes,
``summary`` (names and values to show). Any other file or folder is a leaf.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Self

from clipmill.errors import ArtifactError, NotFoundError, StorageError
from clipmill.storage import absolute_uri, exists, join, open_store, read_bytes, read_json

_ARTICLES: Final = {
    "dataset.json": "a dataset",
    "model.json": "a checkpoint",
    "report.json": "a report",
    "source.json": "a folder of sources",
    "layer.json": "a layer",
    "export.json": "an export",
    "evaluation.json": "an evaluation",
    "comparison.json": "a comparison",
    "sweep.json": "a sweep",
    "trial.json": "a trial",
    "promotion.json": "a promotion",
    "smoke_test.json": "a smoke test",
    "probe.json": "a smoke test",
    "study.json": "a study",
    "prediction.json": "a prediction",
}
ARTIFACT_FILES: Final = tuple(_ARTICLES)

LOG_FILE: Final = "log.jsonl"
"""A training's records, next to the artifact that it wrote; of an unfinished one, in its folder
``state``."""

_FILES_0_1: Final = {"smoke_test.json": "probe.json"}
"""Names of artifact files in stores of clipmill 0.1."""

PUBLIC_SCHEMES: Final = {
    "open_clip": "public weights",
    "timm": "public weights",
    "hf": "public weights",
    "random": "random weights",
}
"""Kind of a parent in no store, by the scheme before its URI's colon."""

_SPEC = re.compile(r"\w+:(/(?!/).*)")
_PACKED = re.compile(r"(?:\w+:(?!//))?(.+?\.tar)(?:[/?].*)?")


@dataclass(frozen=True, kw_only=True, slots=True)
class Parent:
    """Input of an artifact, as the artifact's JSON names it."""

    role: str
    """Its role: ``dataset``, ``encoder``, ``layer`` ..."""
    uri: str
    """Its URI at that time; a local path is absolute."""
    digest: str
    """Its digest at that time."""

    def __post_init__(self) -> None:
        """Make a relative path absolute: lineage is read from other folders."""
        object.__setattr__(self, "uri", absolute_uri(self.uri))

    def to_json(self) -> dict[str, str]:
        """Return the object that goes into an artifact's ``parents``."""
        return {"role": self.role, "uri": self.uri, "digest": self.digest}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Return the parent that ``to_json`` wrote; raises ArtifactError for anything else."""
        try:
            fields = {name: value[name] for name in ("role", "uri", "digest")}
        except (KeyError, TypeError) as error:
            raise _malformed_error(f"{value!r} isn't a parent") from error
        if not all(isinstance(text, str) for text in fields.values()):
            raise _malformed_error(f"{value!r} isn't a parent")
        return cls(**fields)


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """An artifact or leaf in a lineage, with its parents."""

    role: str
    """Its role for its child; empty for the root."""
    uri: str
    """Its URI."""
    digest: str
    """The digest that its child recorded; its own for the root."""
    kind: str
    """Its JSON's ``kind``, or ``file``, ``folder``, ``unknown`` for a leaf."""
    detail: dict[str, str] = field(default_factory=dict)
    """Its JSON's ``summary``; ``problem`` says what's wrong, if anything."""
    parents: tuple["Node", ...] = ()
    """Its parents, in the order of its JSON."""


def lineage(uri: str) -> Node:
    """Return the artifact at ``uri`` with all its ancestors.

    An ancestor that is gone, changed, unreadable or its own ancestor is a node whose
    ``detail["problem"]`` says so. Raises NotFoundError or ArtifactError only for ``uri`` itself.
    """
    value = read_artifact(uri)
    return _artifact_node("", uri, value["digest"], value, (uri,))


def read_artifact(uri: str) -> dict[str, Any]:
    """Return the JSON of the artifact at ``uri``; raises NotFoundError or ArtifactError."""
    value = _read_artifact(uri)
    if value is None:
        raise NotFoundError(
            f"there is no artifact at {uri}",
            expected=f"a folder with one of {', '.join(ARTIFACT_FILES)}",
            action="check the URI, and that the step which writes it has run",
        )
    return value


def artifact_at(uri: str) -> str:
    """Return what kind of artifact lies at ``uri``, such as ``a dataset``; empty for none."""
    return next((_ARTICLES[name] for name in _ARTICLES if exists(join(uri, name))), "")


def read_artifact_file(uri: str, name: str, made_by: str) -> Any:
    """Return the JSON value of the artifact file ``name``, such as ``model.json``, under ``uri``.

    ``made_by`` is the command that prints such a URI. Raises ArtifactError where another artifact
    lies, NotFoundError where none does.
    """
    old = _FILES_0_1.get(name)
    if old and exists(join(uri, old)):
        name = old
    try:
        return read_json(join(uri, name))
    except NotFoundError:
        noun = _ARTICLES[name]
        if other := artifact_at(uri):
            raise ArtifactError(
                f"{uri} is {other}, not {noun}",
                expected=f"the URI of {noun}: a folder with {name}",
                action=f"give what `{made_by}` printed",
            ) from None
        raise NotFoundError(
            f"there is no {noun.partition(' ')[2]} at {uri}",
            expected=f"a folder with {name}",
            action=f"check the URI, which `{made_by}` printed",
        ) from None


def render(node: Node) -> str:
    """Return the tree below ``node`` as text: a line each, and one for each detail."""
    return "\n".join(_lines(node, "", ""))


def _lines(node: Node, first: str, rest: str) -> list[str]:
    role = f"{node.role}: " if node.role else ""
    lines = [f"{first}{role}{node.kind} {node.uri} ({node.digest[:12]})"]
    bar = "│ " if node.parents else "  "
    lines += [f"{rest}{bar}{name}: {value}" for name, value in node.detail.items()]
    for parent in node.parents:
        last = parent is node.parents[-1]
        lines += _lines(
            parent, rest + ("└─ " if last else "├─ "), rest + ("   " if last else "│  ")
        )
    return lines


def _node(parent: Parent, path: tuple[str, ...]) -> Node:
    """Return a parent's node; ``path`` holds the URIs from the root to its child."""
    leaf = Node(role=parent.role, uri=parent.uri, digest=parent.digest, kind="unknown")
    scheme, _, rest = parent.uri.partition(":")
    if scheme in PUBLIC_SCHEMES and not rest.startswith("//"):
        return replace(leaf, kind=PUBLIC_SCHEMES[scheme])
    if parent.uri in path:
        return replace(leaf, detail={"problem": "it is among its own ancestors"})
    try:
        location = _location(parent.uri)
        value = _read_artifact(location)
        if value is None:
            return replace(leaf, kind=_leaf_kind(location))
        return _artifact_node(parent.role, parent.uri, parent.digest, value, (*path, parent.uri))
    except (StorageError, ArtifactError) as error:
        return replace(leaf, detail={"problem": error.what})


def _artifact_node(
    role: str, uri: str, digest: str, value: dict[str, Any], path: tuple[str, ...]
) -> Node:
    detail = {str(name): str(text) for name, text in value.get("summary", {}).items()}
    if value["digest"] != digest:
        detail["problem"] = f"it has changed since: its digest is {value['digest']}"
    parents = tuple(_node(Parent.from_json(parent), path) for parent in value["parents"])
    return Node(
        role=role, uri=uri, digest=digest, kind=value["kind"], detail=detail, parents=parents
    )


def _read_artifact(uri: str) -> dict[str, Any] | None:
    """Return an artifact's JSON, None where there is none; raises ArtifactError."""
    store = open_store(uri)
    names = [name for name in ARTIFACT_FILES if store.exists(name)]
    if not names:
        return None
    if len(names) > 1:
        raise _malformed_error(f"{uri} holds {' and '.join(names)}")
    return parse_artifact(store.get(names[0]), join(uri, names[0]))


def parse_artifact(data: bytes, uri: str) -> dict[str, Any]:
    """Return the JSON in the artifact file at ``uri``.

    Raises:
        ArtifactError: it isn't JSON, or not an artifact's.
    """
    try:
        value = json.loads(data)
    except ValueError as error:
        raise _malformed_error(f"{uri} isn't JSON: {error}") from error
    if not (
        isinstance(value, dict)
        and isinstance(value.get("kind"), str)
        and isinstance(value.get("digest"), str)
        and isinstance(value.get("parents"), list)
        and isinstance(value.get("summary", {}), dict)
    ):
        raise _malformed_error(f"{uri} isn't an artifact's description")
    return value


def _location(uri: str) -> str:
    """Return the location in a URI, without its kind and options.

    A source of pairs has its kind and options, ``csv:/a.csv?image=x``, perhaps in a packed folder,
    ``csv:s3://b/a.tar/a.csv``, and a file of weights its architecture,
    ``file:/a.pt#open_clip/ViT-B-16``.
    """
    if packed := _PACKED.fullmatch(uri):
        return packed[1]
    if uri.startswith("file:") and not uri.startswith("file://"):
        return uri.removeprefix("file:").partition("#")[0]
    spec = _SPEC.fullmatch(uri)
    if spec is None:
        return uri
    return spec[1] if exists(spec[1]) else spec[1].partition("?")[0]


def _leaf_kind(uri: str) -> str:
    if exists(uri):
        return "file"
    if next(open_store(uri).list(), None) is not None:
        return "folder"
    raise NotFoundError(
        f"nothing lies at {uri} any more",
        expected="what the artifact was made from",
        action="restore it, if the artifact is to be made again",
    )


def _malformed_error(what: str) -> ArtifactError:
    return ArtifactError(
        what,
        expected="one JSON object with kind, digest, parents [{role, uri, digest}] and, "
        "optionally, summary",
        action="write the artifact again with the step that made it",
    )


def log_artifact(uri: str, artifact: Any, metrics: Any = None) -> str:
    """Write kind, digest and summary of the artifact at ``uri`` to kfp's ``artifact``.

    The last record of a training's log goes to kfp's ``metrics``. Returns ``uri``.

    kfp's artifact is for lineage and the UI: metadata, and a JSON file at a URI of its own. The
    next task gets the URI instead: Kubeflow downloads an input before a task starts, and fails a
    task whose output lies in another bucket than the pipelines' own.
    """
    content = read_artifact(uri)
    summary = {str(name): str(value) for name, value in content.get("summary", {}).items()}
    record = {"store_uri": uri, "kind": content["kind"], "digest": content["digest"], **summary}
    artifact.metadata.update(record)
    Path(artifact.path).write_text(json.dumps(record, indent=1), encoding="utf-8")
    if metrics is not None and exists(join(uri, LOG_FILE)):
        for name, value in json.loads(read_bytes(join(uri, LOG_FILE)).splitlines()[-1]).items():
            metrics.log_metric(name, value)
    return uri
