"""Layers that a source brings along: what its samples hold besides image and caption."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

_NUMBERS = pa.list_(pa.list_(pa.float32()))


def layer_table(
    layer: str,
    uids: Sequence[str],
    captions: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
) -> pa.Table:
    """The rows of one of a source's layers for the samples of a shard.

    Where a sample has no synthetic caption, its real one (``captions``) stands in, and the column
    ``fallback`` says so. Embeddings are lists of fixed-size lists of halffloat.
    """
    columns: dict[str, pa.Array] = {"uid": pa.array(uids, pa.string())}
    if layer.startswith("captions/"):
        texts = [row["captions"] or [real] for row, real in zip(rows, captions, strict=True)]
        columns["captions"] = pa.array(texts, pa.list_(pa.string()))
        columns["fallback"] = pa.array([row["fallback"] for row in rows], pa.bool_())
    else:
        assert layer.startswith("teacher/"), layer
        for name in ("image", "text"):
            columns[name] = _embeddings([row[name] for row in rows])
        columns["augmentation"] = pa.array([row["augmentation"] for row in rows], _NUMBERS)
    return pa.table(columns)


def _embeddings(values: Sequence[NDArray[np.float16] | None]) -> pa.Array:
    """Each value's rows as a list, built from whole arrays: number by number takes minutes."""
    given = [value for value in values if value is not None]
    flat = np.concatenate(given) if given else np.empty((0, 1), np.float16)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), flat.shape[1])
    lengths = [0 if value is None else len(value) for value in values]
    offsets = np.cumsum([0, *lengths], dtype=np.int32)
    absent = pa.array([value is None for value in values], pa.bool_())
    return pa.ListArray.from_arrays(pa.array(offsets), vectors, mask=absent)
