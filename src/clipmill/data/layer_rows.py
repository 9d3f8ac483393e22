"""What the rows of a layer must hold, by the layer's kind.

========== ==========================================================================
captions   ``captions``: a list of strings a row, at least one, none blank
score      any columns; those by caption kind are named as ``caption_columns`` says
select     ``keep`` (bool), ``refused_by``, ``caption`` (strings), ``caption_index`` (int32)
teacher    ``image`` and ``text``: embeddings of one width, fp16, one or a list a row
========== ==========================================================================
"""

from collections.abc import Callable, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipmill.errors import ArtifactError

REAL = "real"
"""The caption kind of the text that came with the picture; any other is a captions layer's name."""

SELECT_COLUMNS = {
    "keep": pa.bool_(),
    "refused_by": pa.string(),
    "caption": pa.string(),
    "caption_index": pa.int32(),
}
"""Columns of a select layer: kept or not, the first filter that refused the sample (null where
kept), the chosen caption's kind, and its place in that kind's list."""


def check_rows(layer: str, shard_index: int, table: pa.Table) -> None:
    """Raise ArtifactError unless ``table`` holds what layers of this kind must hold."""
    check = _CHECKS.get(layer.partition("/")[0])
    if check is not None:
        check(layer, shard_index, table)


def list_rows(column: pa.Array, *, counts: pa.Array | None = None) -> pa.Array:
    """The row of each value in a flattened list column, for columns of lists."""
    lengths = counts if counts is not None else pc.list_value_length(column).fill_null(0)
    return np.repeat(np.arange(len(column)), lengths.to_numpy(zero_copy_only=False))


def _check_captions(layer: str, shard_index: int, table: pa.Table) -> None:
    column = _column(layer, table, "captions", "a list of strings in each row")
    if not (pa.types.is_list(column.type) and pa.types.is_string(column.type.value_type)):
        raise _wrong_column(layer, "captions", str(column.type), "a list of strings in each row")
    texts = column.flatten()
    is_blank = pc.or_kleene(pc.is_null(texts), pc.equal(pc.utf8_trim_whitespace(texts), ""))
    is_blank = is_blank.fill_null(True).to_numpy(zero_copy_only=False)
    lacks = pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False) == 0
    lacks[list_rows(column)[is_blank]] = True
    if lacks.any():
        raise ArtifactError(
            f"row {np.flatnonzero(lacks)[0]} of shard {shard_index} of layer {layer} "
            "lacks a caption",
            expected="a column captions: in each row a list of at least one, none blank",
            action="give such a sample a caption, for instance its real one",
        )


def _check_select(layer: str, shard_index: int, table: pa.Table) -> None:
    for name, kind in SELECT_COLUMNS.items():
        column = _column(layer, table, name, str(kind))
        if column.type != kind:
            raise _wrong_column(layer, name, str(column.type), str(kind))
        if column.null_count and name != "refused_by":
            raise _wrong_column(layer, name, f"null in shard {shard_index}", "a value in each row")


def _check_teacher(layer: str, shard_index: int, table: pa.Table) -> None:
    # A row without an embedding is null: teachers can't embed everything that others let in.
    expected = "fixed-size lists of halffloat, or lists of these: one, or several, a row"
    widths = {}
    for name in ("image", "text"):
        column = _column(layer, table, name, expected)
        column = column.flatten() if pa.types.is_list(column.type) else column.drop_null()
        kind = column.type
        if not (pa.types.is_fixed_size_list(kind) and pa.types.is_float16(kind.value_type)):
            raise _wrong_column(layer, name, str(table[name].type), expected)
        values = column.flatten()
        if column.null_count or values.null_count or not _are_finite(values):
            what = f"null, NaN or infinite in shard {shard_index}"
            raise _wrong_column(layer, name, what, "finite numbers")
        widths[name] = kind.list_size
    if widths["image"] != widths["text"]:
        raise _wrong_column(
            layer, "text", f"{widths['text']} wide", f"width {widths['image']}, as of image"
        )


_CHECKS: Mapping[str, Callable[[str, int, pa.Table], None]] = {
    "captions": _check_captions,
    "select": _check_select,
    "teacher": _check_teacher,
}


def _are_finite(values: pa.Array) -> bool:
    return bool(np.isfinite(values.to_numpy(zero_copy_only=False)).all())


def _column(layer: str, table: pa.Table, name: str, expected: str) -> pa.Array:
    if name not in table.column_names:
        raise _wrong_column(layer, name, "missing", expected)
    return table[name].combine_chunks()


def _wrong_column(layer: str, name: str, found: str, expected: str) -> ArtifactError:
    return ArtifactError(
        f"column {name} of layer {layer} was {found}",
        expected=f"a column {name} of {expected}",
        action="write the layer with such a column",
    )
