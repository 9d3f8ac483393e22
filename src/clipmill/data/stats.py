"""What a dataset holds, in numbers: pairs, captions, pictures, scores, verdicts, layers."""

import dataclasses
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.types as pt
from numpy.typing import NDArray

from clipmill.data.dataset import Dataset
from clipmill.data.distribution import Distribution, Extent, of_counts
from clipmill.data.layer_rows import list_rows
from clipmill.data.layers import read_layer
from clipmill.data.shard_records import read_records
from clipmill.stage_records import Report

REAL = "real"
"""What the captions in the shards themselves are called, beside those of layers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionStats:
    """The captions of one kind."""

    per_sample: float
    """Captions a sample, on average."""
    words: Distribution
    """Words a caption, divided by white space."""
    characters: Distribution
    """Unicode code points a caption."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VerdictStats:
    """What a ``select/`` layer decided."""

    kept: int
    """Samples that passed."""
    refused: int
    """Samples that didn't."""
    reasons: dict[str, int]
    """Refused samples by what refused them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerStats:
    """A layer as a file set."""

    digest: str
    num_bytes: int
    columns: dict[str, str]
    """Column names with their Arrow types."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetStats:
    """All of it; distributions are over the shards that were looked at."""

    uri: str
    digest: str
    num_samples: int
    num_shards: int
    num_bytes: int
    """Bytes of all shards."""
    quarantine: dict[str, int]
    """Items that were left out, by reason."""
    shards_read: int
    """Shards that the distributions are over."""
    captions: dict[str, CaptionStats]
    """By kind: ``real``, or the name of a captions layer."""
    pictures: dict[str, Distribution]
    """``width``, ``height``, ``shorter side`` in pixels; ``bytes`` of the file, to the hundred."""
    suffixes: dict[str, int]
    """Image files by suffix."""
    scores: dict[str, dict[str, Distribution]]
    """By score layer and column."""
    verdicts: dict[str, VerdictStats]
    """By select layer."""
    layers: dict[str, LayerStats]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; what isn't a number is null."""
        value: dict[str, Any] = _plain(dataclasses.asdict(self))
        return value


def dataset_stats(
    dataset: Dataset,
    cache: Path,
    *,
    max_shards: int = 0,
    report: Report | None = None,
) -> DatasetStats:
    """Look at the shards and layers of a dataset.

    ``max_shards`` bounds how many shards are read, evenly apart (0: all); counts of samples and
    bytes are always of the whole. Memory doesn't grow with the samples. Raises ArtifactError,
    StorageError where a shard or layer can't be read.
    """
    shards = chosen_shards(dataset, max_shards)
    pictures: dict[str, Counter[int]] = {
        name: Counter() for name in ("width", "height", "shorter side", "bytes")
    }
    suffixes: Counter[str] = Counter()
    kinds = {REAL: _CaptionCounter()}
    verdicts: dict[str, VerdictStats] = {}
    for done, index in enumerate(shards):
        for record in read_records(dataset, index, cache):
            kinds[REAL].add([record.caption])
            pictures["width"][record.width] += 1
            pictures["height"][record.height] += 1
            pictures["shorter side"][min(record.width, record.height)] += 1
            pictures["bytes"][round(record.image_bytes, -2)] += 1
            suffixes[record.suffix] += 1
        for layer in dataset.layers:
            if layer.startswith("captions/"):
                table = read_layer(dataset, layer, index, cache)
                counter = kinds.setdefault(layer, _CaptionCounter())
                for captions in table["captions"].to_pylist():
                    counter.add(captions)
            elif layer.startswith("select/"):
                table = read_layer(dataset, layer, index, cache)
                verdicts[layer] = _verdict(table, verdicts.get(layer))
        if report:
            report(done + 1, len(shards), "shards read")
    return DatasetStats(
        uri=dataset.uri,
        digest=dataset.digest,
        num_samples=dataset.num_samples,
        num_shards=len(dataset.shards),
        num_bytes=sum(shard.num_bytes for shard in dataset.shards),
        quarantine=dict(dataset.quarantine),
        shards_read=len(shards),
        captions={name: counter.stats() for name, counter in kinds.items()},
        pictures={name: of_counts(counts) for name, counts in pictures.items()},
        suffixes=dict(suffixes.most_common()),
        scores={
            layer: score_distributions(dataset, layer, shards, cache)
            for layer in sorted(dataset.layers)
            if layer.startswith("score/")
        },
        verdicts=verdicts,
        layers={name: _layer(dataset, name, shards, cache) for name in sorted(dataset.layers)},
    )


def chosen_shards(dataset: Dataset, max_shards: int) -> list[int]:
    """The shards with samples, or so many of them evenly apart, ascending."""
    filled = [index for index, shard in enumerate(dataset.shards) if shard.num_samples]
    if not 0 < max_shards < len(filled):
        return filled
    return [filled[i] for i in np.linspace(0, len(filled) - 1, max_shards).round().astype(int)]


def score_columns(table: pa.Table) -> list[str]:
    """The columns of a layer's table that hold a number a sample, or one a caption of it."""

    def is_number(kind: pa.DataType) -> bool:
        # A hash fills 64 bits, and is more or less than nothing.
        return bool(pt.is_floating(kind) or (pt.is_integer(kind) and not pt.is_uint64(kind)))

    return [
        field.name
        for field in table.schema
        if is_number(field.type) or (pt.is_list(field.type) and is_number(field.type.value_type))
    ]


def numbers(column: pa.ChunkedArray) -> NDArray[np.float64]:
    """A score column as floats, null as NaN; of several captions' values the highest."""
    if not pt.is_list(column.type):
        values: NDArray[np.float64] = column.cast(pa.float64()).to_numpy()
        return values
    lists = column.combine_chunks()
    highest = np.full(len(lists), np.nan)
    scores = lists.flatten().cast(pa.float64()).to_numpy(zero_copy_only=False)
    np.fmax.at(highest, list_rows(lists), scores)
    return highest


def score_distributions(
    dataset: Dataset, layer: str, shards: list[int], cache: Path
) -> dict[str, Distribution]:
    """The distribution of each numeric column of a layer over these shards; it's read twice."""

    def pieces(name: str) -> Iterator[NDArray[np.float64]]:
        for index in shards:
            yield numbers(read_layer(dataset, layer, index, cache)[name])

    extents: dict[str, Extent] = {}
    for index in shards:
        table = read_layer(dataset, layer, index, cache)
        for name in score_columns(table):
            extents.setdefault(name, Extent()).add(numbers(table[name]))
    return {name: extent.distribution(pieces(name)) for name, extent in extents.items()}


class _CaptionCounter:
    def __init__(self) -> None:
        self._samples = 0
        self._words: Counter[int] = Counter()
        self._characters: Counter[int] = Counter()

    def add(self, captions: list[str]) -> None:
        self._samples += 1
        for caption in captions:
            self._words[len(caption.split())] += 1
            self._characters[len(caption)] += 1

    def stats(self) -> CaptionStats:
        return CaptionStats(
            per_sample=self._words.total() / self._samples if self._samples else 0.0,
            words=of_counts(self._words),
            characters=of_counts(self._characters),
        )


def _verdict(table: pa.Table, before: VerdictStats | None) -> VerdictStats:
    kept = table["keep"].to_pylist()
    reasons = Counter(before.reasons if before else {})
    if "refused_by" in table.column_names:
        refused_by = table["refused_by"].to_pylist()
        reasons.update(r or "unnamed" for r, k in zip(refused_by, kept, strict=True) if not k)
    return VerdictStats(
        kept=sum(map(bool, kept)) + (before.kept if before else 0),
        refused=sum(not k for k in kept) + (before.refused if before else 0),
        reasons=dict(reasons.most_common()),
    )


def _layer(dataset: Dataset, name: str, shards: list[int], cache: Path) -> LayerStats:
    info = dataset.layers[name]
    schema = read_layer(dataset, name, shards[0], cache).schema if shards else pa.schema([])
    columns = {field.name: str(field.type) for field in schema}
    return LayerStats(digest=info.digest, num_bytes=info.num_bytes, columns=columns)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
