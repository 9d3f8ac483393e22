"""Statistics of a dataset: pairs, captions, images, scores, verdicts, layers."""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.types as pt
from numpy.typing import NDArray

from clipmill.data.dataset import Dataset
from clipmill.data.layers import list_parent_indices, read_layer
from clipmill.data.shards.read import read_records
from clipmill.stage_records import ProgressCallback

REAL = "real"
"""Name of the captions in the shards themselves, beside those of layers."""

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

NUM_BINS = 24
"""Bins of a histogram as it is shown."""

# Quantiles are known to within this part of the range.
_FINE_BINS = NUM_BINS * 128


@dataclass(frozen=True, kw_only=True, slots=True)
class Distribution:
    """A summary of many numbers."""

    count: int
    """Numbers in all."""
    missing: int = 0
    """Values that weren't numbers: null or NaN."""
    mean: float = math.nan
    low: float = math.nan
    """The least."""
    high: float = math.nan
    """The greatest."""
    quantiles: tuple[float, ...] = ()
    """At QUANTILES."""
    bins: tuple[int, ...] = ()
    """Numbers in each of equal parts of low to high."""


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
class SelectionStats:
    """Verdicts of a ``select/`` layer."""

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
    images: dict[str, Distribution]
    """``width``, ``height``, ``shorter side`` in pixels; ``bytes`` of the file, to the hundred."""
    suffixes: dict[str, int]
    """Image files by suffix."""
    scores: dict[str, dict[str, Distribution]]
    """By score layer and column."""
    verdicts: dict[str, SelectionStats]
    """By select layer."""
    layers: dict[str, LayerStats]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; what isn't a number is null."""
        value: dict[str, Any] = _to_json_value(dataclasses.asdict(self))
        return value


def dataset_stats(
    dataset: Dataset,
    cache: Path,
    *,
    max_shards: int = 0,
    report: ProgressCallback | None = None,
) -> DatasetStats:
    """Look at the shards and layers of a dataset.

    ``max_shards`` bounds how many shards are read, evenly apart (0: all); counts of samples and
    bytes are always of the whole. Memory doesn't grow with the samples. Raises ArtifactError,
    StorageError where a shard or layer can't be read.
    """
    shards = sample_shards(dataset, max_shards)
    images: dict[str, Counter[int]] = {
        name: Counter() for name in ("width", "height", "shorter side", "bytes")
    }
    suffixes: Counter[str] = Counter()
    kinds = {REAL: _CaptionCounter()}
    verdicts: dict[str, SelectionStats] = {}
    for done, index in enumerate(shards):
        for record in read_records(dataset, index, cache):
            kinds[REAL].add([record.caption])
            images["width"][record.width] += 1
            images["height"][record.height] += 1
            images["shorter side"][min(record.width, record.height)] += 1
            images["bytes"][round(record.image_bytes, -2)] += 1
            suffixes[record.suffix] += 1
        for layer in dataset.layers:
            if layer.startswith("captions/"):
                table = read_layer(dataset, layer, index, cache)
                counter = kinds.setdefault(layer, _CaptionCounter())
                for captions in table["captions"].to_pylist():
                    counter.add(captions)
            elif layer.startswith("select/"):
                table = read_layer(dataset, layer, index, cache)
                verdicts[layer] = _selection_stats(table, verdicts.get(layer))
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
        images={name: distribution_from_counts(counts) for name, counts in images.items()},
        suffixes=dict(suffixes.most_common()),
        scores={
            layer: score_distributions(dataset, layer, shards, cache)
            for layer in sorted(dataset.layers)
            if layer.startswith("score/")
        },
        verdicts=verdicts,
        layers={name: _layer(dataset, name, shards, cache) for name in sorted(dataset.layers)},
    )


def sample_shards(dataset: Dataset, max_shards: int) -> list[int]:
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
    np.fmax.at(highest, list_parent_indices(lists), scores)
    return highest


def score_distributions(
    dataset: Dataset, layer: str, shards: list[int], cache: Path
) -> dict[str, Distribution]:
    """The distribution of each numeric column of a layer over these shards; it's read twice."""

    def pieces(name: str) -> Iterator[NDArray[np.float64]]:
        for index in shards:
            yield numbers(read_layer(dataset, layer, index, cache)[name])

    extents: dict[str, StreamingRange] = {}
    for index in shards:
        table = read_layer(dataset, layer, index, cache)
        for name in score_columns(table):
            extents.setdefault(name, StreamingRange()).add(numbers(table[name]))
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
            words=distribution_from_counts(self._words),
            characters=distribution_from_counts(self._characters),
        )


def _selection_stats(table: pa.Table, before: SelectionStats | None) -> SelectionStats:
    kept = table["keep"].to_pylist()
    reasons = Counter(before.reasons if before else {})
    if "refused_by" in table.column_names:
        refused_by = table["refused_by"].to_pylist()
        reasons.update(r or "unnamed" for r, k in zip(refused_by, kept, strict=True) if not k)
    return SelectionStats(
        kept=sum(map(bool, kept)) + (before.kept if before else 0),
        refused=sum(not k for k in kept) + (before.refused if before else 0),
        reasons=dict(reasons.most_common()),
    )


def _layer(dataset: Dataset, name: str, shards: list[int], cache: Path) -> LayerStats:
    info = dataset.layers[name]
    schema = read_layer(dataset, name, shards[0], cache).schema if shards else pa.schema([])
    columns = {field.name: str(field.type) for field in schema}
    return LayerStats(digest=info.digest, num_bytes=info.num_bytes, columns=columns)


def _to_json_value(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _to_json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json_value(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def distribution_from_counts(counts: Counter[int]) -> Distribution:
    """The distribution of whole numbers, exactly, from how often each occurs."""
    if not counts:
        return Distribution(count=0)
    values = np.array(sorted(counts))
    weights = np.array([counts[value] for value in values.tolist()])
    total = int(weights.sum())
    # Nearest rank: the least value that so many of the numbers don't exceed.
    ranks = np.searchsorted(np.cumsum(weights), [max(1, math.ceil(q * total)) for q in QUANTILES])
    span = (int(values[0]), int(values[-1]))
    return Distribution(
        count=total,
        mean=float((values * weights).sum() / total),
        low=float(span[0]),
        high=float(span[1]),
        quantiles=tuple(float(values[rank]) for rank in ranks),
        bins=tuple(np.histogram(values, NUM_BINS, span, weights=weights)[0].tolist()),
    )


class StreamingRange:
    """The first look at a stream of numbers: how many, and between which."""

    def __init__(self) -> None:
        self.count, self.missing, self.total = 0, 0, 0.0
        self.low, self.high = math.inf, -math.inf

    def add(self, values: NDArray[np.float64]) -> None:
        """Take a piece of the stream; NaN and infinities count as missing."""
        finite = values[np.isfinite(values)]
        self.missing += len(values) - len(finite)
        if len(finite):
            self.count += len(finite)
            self.total += float(finite.sum())
            self.low, self.high = min(self.low, finite.min()), max(self.high, finite.max())

    def distribution(self, pieces: Iterable[NDArray[np.float64]]) -> Distribution:
        """The second look, at the same stream: quantiles to a small part of the range."""
        if not self.count:
            return Distribution(count=0, missing=self.missing)
        low, high = float(self.low), float(self.high)
        fine = np.zeros(_FINE_BINS, np.int64)
        for values in pieces:
            fine += np.histogram(values[np.isfinite(values)], _FINE_BINS, (low, high))[0]
        # numpy widens the range of a single value; then each quantile is that value.
        edges = np.histogram_bin_edges([], _FINE_BINS, (low, high))
        ranks = [max(1, math.ceil(q * self.count)) for q in QUANTILES]
        bins = np.searchsorted(np.cumsum(fine), ranks)
        middles = ((edges[:-1] + edges[1:]) / 2).clip(low, high)
        return Distribution(
            count=self.count,
            missing=self.missing,
            mean=self.total / self.count,
            low=low,
            high=high,
            quantiles=tuple(float(middles[i]) for i in bins),
            bins=tuple(fine.reshape(NUM_BINS, -1).sum(axis=1).tolist()),
        )
