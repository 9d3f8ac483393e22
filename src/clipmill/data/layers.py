"""Layers: columns computed for a dataset's samples, one Parquet file per shard.

Row ``i`` of a file describes sample ``i`` of its shard, and has its uid. A layer is written shard
by shard, by any number of processes, and then committed, which makes it an immutable part of the
dataset. Columns by kind of layer:

========== ==========================================================================
captions   ``captions``: a list of strings per row, at least one, none blank
score      any columns; those per caption kind are ``real`` and the captions layers' names
select     SELECT_COLUMNS
teacher    ``image``, ``text``: fixed-size lists of halffloat, one or several per row
========== ==========================================================================
"""

import io
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clipmill.config import digest_json, sha256_bytes
from clipmill.data.cache import open_copy, pin_entry
from clipmill.data.dataset import (
    FORMAT,
    MANIFEST,
    Dataset,
    LayerInfo,
    check_kind,
    inconsistent_artifact_error,
    layer_list,
)
from clipmill.data.transforms.torchvision_replay import TORCHVISION_AUGMENTATION
from clipmill.errors import ArtifactError, ConfigError
from clipmill.lineage import Parent
from clipmill.storage import atomic_write, exists, join, open_store, read_json, write_json

LAYER_MANIFEST = "layer.json"

REAL = "real"
"""The caption kind of the text that came with the image; any other is a captions layer's name."""

SELECT_COLUMNS = {
    "keep": pa.bool_(),
    "refused_by": pa.string(),
    "caption": pa.string(),
    "caption_index": pa.int32(),
}
"""Columns of a select layer: kept or not, the first filter that refused the sample (null where
kept), the chosen caption's kind, and its place in that kind's list."""

_NAME = re.compile(r"[a-z]+(/[A-Za-z0-9][A-Za-z0-9._-]*)+")

# Records are small and remote, so reading is bound by latency.
_NUM_READERS = 16


def write_layer_shard(dataset: Dataset, layer: str, shard_index: int, table: pa.Table) -> None:
    """Write the rows of ``layer`` for one shard; equal tables give equal bytes.

    ``table`` needs a string column ``uid`` with the shard's uids in their order, and the columns
    of its kind. Raises ArtifactError otherwise, or if the layer is committed
    with another file.
    """
    _check_name(layer)
    uids = dataset.uids(shard_index)
    if "uid" not in table.column_names or table["uid"].to_pylist() != uids:
        raise ArtifactError(
            f"the table for shard {shard_index} of layer {layer} doesn't have the shard's uids",
            expected=f"a column uid with the shard's {len(uids)} uids, in the shard's order",
            action="compute the table from read_shard(dataset, index, cache), row by row",
        )
    validate_layer_table(layer, shard_index, table)
    data = _to_parquet(layer, table)
    record = {
        "num_rows": len(table),
        "num_bytes": len(data),
        "sha256": sha256_bytes(data),
        "shard": dataset.shards[shard_index].sha256,
    }
    if layer.startswith("select/"):
        # So that a view knows its size without reading every file.
        record["num_kept"] = pc.sum(table["keep"]).as_py() or 0
    folder = dataset.layer_uri(layer)
    if exists(join(folder, LAYER_MANIFEST)):
        if _read_record(folder, shard_index) != record:
            raise ArtifactError(
                f"layer {layer} is committed, and shard {shard_index} of it differs",
                expected="the committed rows, or a layer of another name",
                action="write the new rows under another name, such as one with a new digest",
            )
        return
    open_store(folder).put(f"{shard_index:05d}.parquet", data)
    write_json(join(folder, f"{shard_index:05d}.json"), record)


def has_layer_shard(dataset: Dataset, layer: str, shard_index: int) -> bool:
    """Return whether the rows of ``layer`` for this version of the shard exist and are complete."""
    store = open_store(dataset.layer_uri(_check_name(layer)))
    name = f"{shard_index:05d}.parquet"
    if not (store.exists(f"{shard_index:05d}.json") and store.exists(name)):
        return False
    record = _read_record(store.uri, shard_index)
    # Two processes that computed different rows at once may leave one's file, another's record.
    is_complete: bool = store.size(name) == record["num_bytes"]
    return is_complete and record.get("shard") == dataset.shards[shard_index].sha256


def commit_layer(
    dataset: Dataset, layer: str, *, parents: tuple[Parent, ...], detail: dict[str, str]
) -> Dataset:
    """Add a layer with a file for every shard to the dataset, and return the new dataset.

    ``parents`` are what made it beside the dataset, which is added; ``detail`` is shown with
    its lineage. Commits of several layers at once are safe, and so is a repeated one. Raises
    ArtifactError if a shard's file is missing, or was computed over another shard than the
    dataset's.
    """
    folder = dataset.layer_uri(_check_name(layer))
    if not exists(join(folder, LAYER_MANIFEST)):
        shards = range(len(dataset.shards))
        with ThreadPoolExecutor(_NUM_READERS) as readers:
            present = list(readers.map(partial(has_layer_shard, dataset, layer), shards))
            files = list(
                readers.map(partial(_read_record, folder), filter(present.__getitem__, shards))
            )
        missing = [index for index in shards if not present[index]]
        if missing:
            raise ArtifactError(
                f"layer {layer} lacks shards {', '.join(map(str, missing[:10]))}"
                + (f" and {len(missing) - 10} more" if len(missing) > 10 else ""),
                expected=f"a file for each of the {len(shards)} shards",
                action="run the step that computes the layer again: it keeps what is there",
            )
        on = Parent(role="dataset", uri=dataset.uri, digest=dataset.digest)
        rows, size = (sum(file[key] for file in files) for key in ("num_rows", "num_bytes"))
        record = {
            "format": FORMAT,
            "kind": "layer",
            "name": layer,
            "digest": digest_json({"name": layer, "files": files}),
            "files": files,
            "parents": [parent.to_json() for parent in (on, *parents)],
            "summary": {"num_rows": rows, "num_bytes": size, **detail},
        }
        write_json(join(folder, LAYER_MANIFEST), record)
    return _list_layers(dataset)


def embedded_captions(dataset: Dataset, layer: str) -> tuple[Parent, ...]:
    """Return the captions layer of a teacher layer from elsewhere: the one of the same name."""
    kind, _, name = layer.partition("/")
    captions = f"captions/{name}"
    if kind != "teacher" or captions not in dataset.layers:
        return ()
    digest = dataset.layers[captions].digest
    return (Parent(role="captions", uri=dataset.layer_uri(captions), digest=digest),)


def read_layer(
    dataset: Dataset,
    layer: str,
    shard_index: int,
    cache: Path,
    *,
    columns: Sequence[str] | None = None,
) -> pa.Table:
    """Read the rows of a committed layer for one shard, in the order of its samples.

    ``columns`` selects columns by name (default: all). Raises ArtifactError if the
    dataset lists no such layer, or the file isn't the listed one.
    """
    files = _files(dataset, layer)
    uri = join(dataset.layer_uri(layer), f"{shard_index:05d}.parquet")
    with open_copy(uri, files[shard_index].sha256, cache) as file:
        # One thread: readers run in the loader's forked workers, where Arrow's pool isn't safe.
        parquet = pq.ParquetFile(file)
        names = None if columns is None else list(columns)
        return parquet.read(columns=names, use_threads=False)


def mmap_layer(dataset: Dataset, layer: str, shard_index: int, cache: Path) -> pa.Table:
    """Memory-map the rows of a committed layer for one shard: like :func:`read_layer`, but lazy.

    An uncompressed copy in ``cache`` is shared by all processes of a machine; only pages that are
    accessed are read. Raises ArtifactError as ``read_layer`` does.
    """
    digest = dataset.layers[layer].digest
    entry = cache / sha256_bytes(f"{digest} {shard_index}".encode())
    path = entry / "rows.arrow"
    with pin_entry(entry):
        if not path.is_file():
            table = read_layer(dataset, layer, shard_index, cache).combine_chunks()
            with (
                atomic_write(path) as temporary,
                pa.OSFile(str(temporary), "wb") as file,
                pa.ipc.new_file(file, table.schema) as writer,
            ):
                writer.write_table(table)
        file = pa.memory_map(str(path))
    return pa.ipc.open_file(file).read_all()


def layer_schema(dataset: Dataset, layer: str, cache: Path) -> pa.Schema:
    """Return the schema of a committed layer; raises ArtifactError as :func:`read_layer` does."""
    files = _files(dataset, layer)
    # A shard without samples doesn't know the width of its embeddings.
    index = next((i for i, shard in enumerate(dataset.shards) if shard.num_samples), 0)
    uri = join(dataset.layer_uri(layer), f"{index:05d}.parquet")
    with open_copy(uri, files[index].sha256, cache) as file:
        return pq.read_schema(file)


def num_kept(dataset: Dataset, layer: str) -> tuple[int, ...]:
    """Return how many samples of each shard a committed select layer keeps."""
    return tuple(file.num_kept for file in _files(dataset, layer))


def resolve_layer(names: Iterable[str], name_or_prefix: str) -> str:
    """Return the layer with this name, or the only one whose name starts with it and a dash.

    ``score/clip`` resolves to ``score/clip-1a2b3c4d``. Raises ConfigError for no or several
    matches.
    """
    known = sorted(names)
    if name_or_prefix in known:
        return name_or_prefix
    matches = [name for name in known if name.startswith(f"{name_or_prefix}-")]
    if len(matches) == 1:
        return matches[0]
    kind = name_or_prefix.partition("/")[0]
    choices = matches or [name for name in known if name.startswith(f"{kind}/")]
    raise ConfigError(
        f"{len(matches) or 'no'} layers of the dataset are named {name_or_prefix}",
        expected=f"one of {', '.join(choices)}" if choices else f"a layer {name_or_prefix}",
        action="name one of them, or narrow the choice with --prefer-layer"
        if matches
        else f"run `clipmill data {_COMMANDS.get(kind, 'import-layer')}` first",
    )


def list_parent_indices(column: pa.Array, *, counts: pa.Array | None = None) -> pa.Array:
    """Return the row index of each value in a flattened list column."""
    lengths = counts if counts is not None else pc.list_value_length(column).fill_null(0)
    return np.repeat(np.arange(len(column)), lengths.to_numpy(zero_copy_only=False))


def layer_table(
    layer: str,
    uids: Sequence[str],
    captions: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
) -> pa.Table:
    """Build the table of a layer that a source provides, for the samples of a shard.

    A sample without a synthetic caption gets its real one (``captions``), and ``fallback`` is
    set. Embeddings are lists of fixed-size lists of halffloat; null for no rows.
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
        columns[TORCHVISION_AUGMENTATION] = pa.array(
            [row[TORCHVISION_AUGMENTATION] for row in rows], _NUMBERS
        )
    return pa.table(columns)


def _list_layers(dataset: Dataset) -> Dataset:
    """Update the layers in ``dataset.json`` to those that are committed.

    Each writer reads again after writing, so of several concurrent writers the last one has seen
    every layer.
    """
    manifest = join(dataset.uri, MANIFEST)
    while True:
        layers = layer_list(_committed_layers(dataset))
        value = read_json(manifest)
        if value["layers"] == layers:
            return Dataset.open(dataset.uri)
        write_json(manifest, {**value, "layers": layers})


def _committed_layers(dataset: Dataset) -> list[LayerInfo]:
    store = open_store(dataset.uri)
    layers = []
    for key in store.list("layers/"):
        if key.endswith(f"/{LAYER_MANIFEST}"):
            value = json.loads(store.get(key))
            _check_attachable(dataset, value, join(dataset.uri, key))
            size = value["summary"]["num_bytes"]
            layers.append(LayerInfo(name=value["name"], digest=value["digest"], num_bytes=size))
    return layers


def _check_attachable(dataset: Dataset, value: Any, uri: str) -> None:
    """Refuse a layer that was written for other samples, such as one copied from elsewhere."""
    check_kind(value, "layer", uri)
    on = [parent["digest"] for parent in value["parents"] if parent["role"] == "dataset"]
    shards = [(file.get("shard"), file["num_rows"]) for file in value["files"]]
    if dataset.digest not in on or shards != [(s.sha256, s.num_samples) for s in dataset.shards]:
        raise ArtifactError(
            f"{uri} describes other samples than {dataset.uri} has",
            expected=f"a layer over the dataset with digest {dataset.digest[:12]}, and "
            f"{dataset.num_samples} rows in {len(dataset.shards)} shards",
            action="delete that layer's folder, and compute it again (or use data import-layer)",
        )


@dataclass(frozen=True, slots=True)
class _LayerFile:
    sha256: str
    num_kept: int


def _files(dataset: Dataset, layer: str) -> tuple[_LayerFile, ...]:
    if layer not in dataset.layers:
        raise ArtifactError(
            f"{dataset.uri} has no layer {layer}",
            expected=f"one of its layers: {', '.join(sorted(dataset.layers)) or 'it has none'}",
            action="correct the name, or compute and commit the layer first",
        )
    return _listed_files(dataset.layer_uri(layer), dataset.layers[layer].digest)


@lru_cache(16)
def _listed_files(folder: str, digest: str) -> tuple[_LayerFile, ...]:
    """Return the files of a committed layer, which must have this digest."""
    value = read_json(join(folder, LAYER_MANIFEST))
    check_kind(value, "layer", folder)
    if digest_json({"name": value["name"], "files": value["files"]}) != digest:
        raise inconsistent_artifact_error(
            join(folder, LAYER_MANIFEST), "isn't the one that the dataset lists"
        )
    return tuple(_LayerFile(file["sha256"], file.get("num_kept", 0)) for file in value["files"])


def _read_record(folder: str, shard_index: int) -> dict[str, Any]:
    record: dict[str, Any] = read_json(join(folder, f"{shard_index:05d}.json"))
    return record


def _to_parquet(layer: str, table: pa.Table) -> bytes:
    """Return Parquet bytes that depend on rows and types alone, not on chunks or metadata."""
    plain = pa.schema([field.remove_metadata() for field in table.schema])
    buffer = io.BytesIO()
    pq.write_table(
        pa.Table.from_arrays(table.columns, schema=plain), buffer, **parquet_options(layer)
    )
    return buffer.getvalue()


def parquet_options(layer: str) -> Mapping[str, Any]:
    """Return how a layer's rows are written: embeddings repeat no number, nor are they ordered."""
    has_repetition = not layer.startswith(("teacher/", "score/embedding"))
    return {
        "compression": "zstd",
        "use_dictionary": has_repetition,
        "write_statistics": has_repetition,
    }


def _check_name(layer: str) -> str:
    if not _NAME.fullmatch(layer):
        raise ConfigError(
            f"{layer!r} is not the name of a layer",
            expected="kind/maker, such as captions/coca-1a2b3c4d or score/clip-9f8e7d6c",
            action="correct the name",
        )
    return layer


def validate_layer_table(layer: str, shard_index: int, table: pa.Table) -> None:
    """Raise ArtifactError unless ``table`` has the columns of its kind of layer."""
    check = _CHECKS.get(layer.partition("/")[0])
    if check is not None:
        check(layer, shard_index, table)


def _check_captions(layer: str, shard_index: int, table: pa.Table) -> None:
    column = _column(layer, table, "captions", "a list of strings in each row")
    if not (pa.types.is_list(column.type) and pa.types.is_string(column.type.value_type)):
        raise _wrong_column_error(
            layer, "captions", str(column.type), "a list of strings in each row"
        )
    texts = column.flatten()
    is_blank = pc.or_kleene(pc.is_null(texts), pc.equal(pc.utf8_trim_whitespace(texts), ""))
    is_blank = is_blank.fill_null(True).to_numpy(zero_copy_only=False)
    is_missing = pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False) == 0
    is_missing[list_parent_indices(column)[is_blank]] = True
    if is_missing.any():
        raise ArtifactError(
            f"row {np.flatnonzero(is_missing)[0]} of shard {shard_index} of layer {layer} "
            "lacks a caption",
            expected="a column captions: in each row a list of at least one, none blank",
            action="write a caption for such a sample, for instance its real one",
        )


def _check_select(layer: str, shard_index: int, table: pa.Table) -> None:
    for name, kind in SELECT_COLUMNS.items():
        column = _column(layer, table, name, str(kind))
        if column.type != kind:
            raise _wrong_column_error(layer, name, str(column.type), str(kind))
        if column.null_count and name != "refused_by":
            raise _wrong_column_error(
                layer, name, f"null in shard {shard_index}", "a value in each row"
            )


def _check_teacher(layer: str, shard_index: int, table: pa.Table) -> None:
    # A row without an embedding is null: teachers can't embed every sample.
    expected = "fixed-size lists of halffloat, or lists of these: one, or several, a row"
    widths = {}
    for name in ("image", "text"):
        column = _column(layer, table, name, expected)
        column = column.flatten() if pa.types.is_list(column.type) else column.drop_null()
        kind = column.type
        if not (pa.types.is_fixed_size_list(kind) and pa.types.is_float16(kind.value_type)):
            raise _wrong_column_error(layer, name, str(table[name].type), expected)
        values = column.flatten()
        if column.null_count or values.null_count or not _are_finite(values):
            what = f"null, NaN or infinite in shard {shard_index}"
            raise _wrong_column_error(layer, name, what, "finite numbers")
        widths[name] = kind.list_size
    if widths["image"] != widths["text"]:
        raise _wrong_column_error(
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
        raise _wrong_column_error(layer, name, "missing", expected)
    return table[name].combine_chunks()


def _wrong_column_error(layer: str, name: str, actual: str, expected: str) -> ArtifactError:
    return ArtifactError(
        f"column {name} of layer {layer} was {actual}",
        expected=f"a column {name} of {expected}",
        action="write the layer with such a column",
    )


_COMMANDS = {"captions": "recaption", "score": "score", "select": "select"}

_NUMBERS = pa.list_(pa.list_(pa.float32()))


def _embeddings(values: Sequence[NDArray[np.float16]]) -> pa.Array:
    """Build a list column from arrays: converting number by number takes minutes."""
    flat = np.concatenate(values) if values else np.empty((0, 1), np.float16)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), flat.shape[1])
    offsets = np.cumsum([0, *map(len, values)], dtype=np.int32)
    absent = pa.array([not len(value) for value in values], pa.bool_())
    return pa.ListArray.from_arrays(pa.array(offsets), vectors, mask=absent)
