"""Captions by template from known labels and boxes, such as those of procedural scenes."""

import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clipmill.config import canonical_json, digest_json, sha256_bytes
from clipmill.data.captioners.base import CaptionInput, CaptionOutput
from clipmill.data.captioners.config import TemplateConfig
from clipmill.errors import ArtifactError, BadSampleReason
from clipmill.lineage import Parent
from clipmill.storage import open_store, read_bytes

_NUMBERS = ("no", "a", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_VOWELS = "aeiou"


@dataclass(frozen=True, slots=True)
class _Labels:
    names: Sequence[str]
    boxes: Sequence[Sequence[float]] | None
    """Left, top, width, height of each, as fractions of the image."""


class TemplateCaptioner:
    """Captions from the labels at ``uri``.

    That is a Parquet file, a file of JSON lines (``.jsonl``), or a folder of Parquet files such as
    a layer. Each row has ``uid``, ``labels`` (a list of names) and, if it likes, ``boxes`` (for
    each label left, top, width and height as fractions of the image). Raises NotFoundError,
    ArtifactError.
    """

    needs_images = False
    checkpoint_outputs = False

    def __init__(self, uri: str, config: TemplateConfig) -> None:
        self._config = config
        digest, rows = _read(uri)
        self._labels = _parse(uri, rows)
        self.parents: tuple[Parent, ...] = (
            Parent(role="labels", uri=open_store(uri).uri, digest=digest),
        )
        self.identity = digest_json([digest, config.digest])
        self.detail: Mapping[str, str] = {
            "model": "template",
            "prompt": " | ".join(config.templates),
            "sampling": canonical_json(config.to_json()),
            "seed": "",
        }

    def caption(self, inputs: Sequence[CaptionInput]) -> Iterator[tuple[int, CaptionOutput]]:
        """Fill each template with the sample's objects."""
        for index, sample in enumerate(inputs):
            labels = self._labels.get(sample.uid)
            if labels is None or not labels.names:
                yield index, CaptionOutput(reason=BadSampleReason.MISSING_LABEL)
                continue
            objects = describe(
                labels.names,
                labels.boxes if self._config.include_positions else None,
                max_objects=self._config.max_objects,
            )
            texts = dict.fromkeys(t.replace("{objects}", objects) for t in self._config.templates)
            yield index, CaptionOutput(texts=tuple(texts), scores=(None,) * len(texts))

    def close(self) -> None:
        """Nothing is held open."""


def describe(
    names: Sequence[str], boxes: Sequence[Sequence[float]] | None = None, *, max_objects: int = 5
) -> str:
    """Describe objects: ``two cones and a ball``, or with boxes ``a ball on the left and ...``.

    Boxes are (left, top, width, height) as fractions of the image; larger objects come first.
    """
    if boxes is None:
        counts = Counter(names).most_common(max_objects)
        return _listed([_counted(name, count) for name, count in counts])
    largest = sorted(zip(names, boxes, strict=True), key=lambda pair: -pair[1][2] * pair[1][3])
    positioned = Counter((name, _position(box[0] + box[2] / 2)) for name, box in largest)
    kept = list(positioned.items())[:max_objects]
    return _listed([f"{_counted(name, count)} {position}" for (name, position), count in kept])


def _position(middle: float) -> str:
    if middle < 1 / 3:
        return "on the left"
    return "on the right" if middle > 2 / 3 else "in the middle"


def _counted(name: str, count: int) -> str:
    if count == 1:
        return f"{'an' if name[:1].lower() in _VOWELS else 'a'} {name}"
    plural = f"{name}es" if name.endswith(("s", "x", "ch", "sh")) else f"{name}s"
    return f"{_NUMBERS[count] if count < len(_NUMBERS) else count} {plural}"


def _listed(parts: Sequence[str]) -> str:
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last


def _read(uri: str) -> tuple[str, list[Mapping[str, Any]]]:
    """Return the digest of the files, and all their rows."""
    if uri.endswith((".parquet", ".jsonl")):
        files = {uri: read_bytes(uri)}
    else:
        store = open_store(uri)
        files = {key: store.get(key) for key in store.list() if key.endswith(".parquet")}
    rows: list[Mapping[str, Any]] = []
    try:
        for name, data in files.items():
            rows += _parquet(data) if name.endswith(".parquet") else _json_lines(data)
    except ValueError as error:
        raise _bad_labels_error(uri, str(error)) from error
    if not rows:
        raise _bad_labels_error(uri, "there is no row")
    return digest_json([sha256_bytes(data) for data in files.values()]), rows


def _parquet(data: bytes) -> list[Mapping[str, Any]]:
    import pyarrow.parquet as pq

    rows: list[Mapping[str, Any]] = pq.read_table(io.BytesIO(data)).to_pylist()
    return rows


def _json_lines(data: bytes) -> list[Mapping[str, Any]]:
    return [json.loads(line) for line in data.decode().splitlines() if line.strip()]


def _parse(uri: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, _Labels]:
    labels = {}
    for row in rows:
        try:
            names, boxes = [str(name) for name in row["labels"]], row.get("boxes")
            fits = boxes is None or (
                len(boxes) == len(names) and all(len(box) == 4 for box in boxes)
            )
            uid = row["uid"]
        except (AttributeError, KeyError, TypeError) as error:
            raise _bad_labels_error(uri, f"a row lacks {error}") from error
        if not fits:
            raise _bad_labels_error(
                uri, f"the boxes of {uid} don't go with its {len(names)} labels"
            )
        labels[uid] = _Labels(names, boxes)
    return labels


def _bad_labels_error(uri: str, trouble: str) -> ArtifactError:
    return ArtifactError(
        f"{uri} holds no labels: {trouble}",
        expected="rows with uid, labels (names) and perhaps boxes (four shares for each label)",
        action="pass a .parquet or .jsonl file, or a folder of .parquet files, with such rows",
    )
