"""Layers whose rows may fail, such as those of an endpoint: failures, retries, unfinished shards.

Such a layer has a column ``reason`` for each sample, empty where it didn't fail. What a run has got
of a shard that it didn't complete is stored next to the layer's shards, for the next run.
"""

import io
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from clipmill.data.dataset import Dataset
from clipmill.errors import BadSampleReason, NotFoundError
from clipmill.storage import join, open_store, read_json, write_json

REASON_COLUMN: Final = "reason"

RETRIED: Final = frozenset(
    {
        BadSampleReason.UNAVAILABLE,
        BadSampleReason.MALFORMED,
        BadSampleReason.FAILED,
        BadSampleReason.NO_SCORE,
    }
)
"""Reasons that may pass: those of the endpoint or the machine rather than of the sample."""

# Files are small and may be far away, so waiting for several at once is what counts.
_NUM_READERS: Final = 16


def retry_layer(dataset: Dataset, layer: str) -> tuple[str, str]:
    """Return the layer that a retry writes, and the committed one whose rows it keeps, if any."""
    last, number = "", 0
    name = layer
    while name in dataset.layers:
        last, number = name, number + 1
        name = f"{layer}-retry{number}"
    if last and not any(num_failed(dataset, last, index) for index in range(len(dataset.shards))):
        return last, ""
    return name, last


def num_failed(dataset: Dataset, layer: str, index: int) -> int:
    """Return the number of a complete shard's rows that a retry replaces."""
    return sum(reason in RETRIED for reason in _reasons(dataset, layer, index))


def describe_failures(dataset: Dataset, layer: str) -> str:
    """Describe how many samples of a layer failed, by reason."""
    counts: Counter[str] = Counter()
    with ThreadPoolExecutor(_NUM_READERS) as readers:
        shards = range(len(dataset.shards))
        for reasons in readers.map(lambda index: _reasons(dataset, layer, index), shards):
            counts.update(map(BadSampleReason.parse, reasons))
    del counts[""]
    return ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items())) or "none"


def _reasons(dataset: Dataset, layer: str, index: int) -> list[str]:
    column = read_rows(dataset, layer, index, [REASON_COLUMN])[REASON_COLUMN]
    reasons: list[str] = column.to_pylist()
    return reasons


def read_rows(
    dataset: Dataset, layer: str, index: int, columns: list[str] | None = None
) -> pa.Table:
    """Read a complete shard of a layer, which needn't be committed."""
    data = open_store(dataset.layer_uri(layer)).get(f"{index:05d}.parquet")
    return pq.read_table(io.BytesIO(data), columns=columns, use_threads=False)


def save_partial(dataset: Dataset, layer: str, index: int, rows: Mapping[str, Any]) -> None:
    """Save rows of a shard that isn't complete, as JSON by uid."""
    write_json(join(dataset.layer_uri(layer), _partial_name(index)), dict(rows))


def read_partial(dataset: Dataset, layer: str, index: int) -> dict[str, Any]:
    """Return the rows that an earlier run saved, by uid."""
    try:
        rows: dict[str, Any] = read_json(join(dataset.layer_uri(layer), _partial_name(index)))
    except NotFoundError:
        return {}
    return rows


def delete_partial(dataset: Dataset, layer: str, index: int) -> None:
    """Delete the saved rows of a shard that is complete."""
    open_store(dataset.layer_uri(layer)).delete(_partial_name(index))


def _partial_name(index: int) -> str:
    return f"{index:05d}.part.json"
