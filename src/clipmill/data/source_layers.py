"""Layers that a source brings along: what its samples hold besides image and caption."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

_TYPES = {
    "captions": {"captions": pa.list_(pa.string()), "fallback": pa.bool_()},
    "augmentation": {"parameters": pa.string()},
    "teacher": {
        "image_embeddings": pa.list_(pa.list_(pa.float16())),
        "text_embeddings": pa.list_(pa.list_(pa.float16())),
        "num_real_captions": pa.int32(),
    },
}


def layer_table(
    layer: str,
    uids: Sequence[str],
    captions: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
) -> pa.Table:
    """The rows of one of a source's layers for the samples of a shard.

    Where a sample has no synthetic caption, its real one (``captions``) stands in, and the column
    ``fallback`` says so.
    """
    kind = layer.partition("/")[0]
    columns: dict[str, pa.Array] = {"uid": pa.array(uids, pa.string())}
    for name, column_type in _TYPES[kind].items():
        values = [row.get(name) for row in rows]
        if name == "captions":
            values = [v or [real] for v, real in zip(values, captions, strict=True)]
        is_vectors = column_type == pa.list_(pa.list_(pa.float16()))
        columns[name] = _vectors(values) if is_vectors else pa.array(values, column_type)
    return pa.table(columns)


def _vectors(values: Sequence[list[Any] | None]) -> pa.Array:
    """Lists of float16 vectors, built from whole arrays: a Python object a number takes minutes."""
    vectors = [vector for row in values for vector in row or []]
    flat = np.concatenate(vectors) if vectors else np.empty(0, np.float16)
    inner = np.cumsum([0, *(len(vector) for vector in vectors)], dtype=np.int32)
    outer = np.cumsum([0, *(len(row or []) for row in values)], dtype=np.int32)
    lists = pa.ListArray.from_arrays(pa.array(inner), pa.array(flat, pa.float16()))
    absent = pa.array([row is None for row in values], pa.bool_())
    return pa.ListArray.from_arrays(pa.array(outer), lists, mask=absent)
