"""Layers: what was computed over a dataset's samples, one Parquet file a shard.

Row ``i`` of a file describes sample ``i`` of its shard and carries its uid. A layer is written
shard by shard, by any number of processes, and then committed, which makes it part of the
dataset and unchangeable.
"""

import io
import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clipmill.data.cache import open_copy
from clipmill.data.dataset import (
    FORMAT,
    MANIFEST,
    Dataset,
    LayerInfo,
    check_kind,
    inconsistent,
    layer_list,
)
from clipmill.digest import digest_json, sha256_bytes
from clipmill.errors import ArtifactError, ConfigError
from clipmill.storage import Parent, exists, join, open_store, read_json, write_json

LAYER_MANIFEST = "layer.json"
_NAME = re.compile(r"[a-z]+(/[A-Za-z0-9][A-Za-z0-9._-]*)+")


def write_layer_shard(dataset: Dataset, layer: str, shard_index: int, table: pa.Table) -> None:
    """Put the rows of ``layer`` for one shard; equal tables give equal bytes.

    ``table`` needs a string column ``uid`` with the shard's uids in their order. In a layer
    below ``captions/``, a column ``captions`` (list of strings) needs a caption in each row,
    none blank. Raises ArtifactError otherwise, or if the layer is committed with another file.
    """
    _check_name(layer)
    uids = dataset.uids(shard_index)
    if "uid" not in table.column_names or table["uid"].to_pylist() != uids:
        raise ArtifactError(
            f"the table for shard {shard_index} of layer {layer} doesn't have the shard's uids",
            expected=f"a column uid with the shard's {len(uids)} uids, in the shard's order",
            action="compute the table from read_shard(dataset, index, cache), row by row",
        )
    if layer.startswith("captions/"):
        _check_captions(layer, shard_index, table)
    data = _to_parquet(table)
    record = {"num_rows": len(table), "num_bytes": len(data), "sha256": sha256_bytes(data)}
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
    """Whether the rows of ``layer`` for this shard are there, whole."""
    store = open_store(dataset.layer_uri(_check_name(layer)))
    name = f"{shard_index:05d}.parquet"
    if not (store.exists(f"{shard_index:05d}.json") and store.exists(name)):
        return False
    # Two processes that computed different rows at once may leave one's file, another's record.
    size: int = _read_record(store.uri, shard_index)["num_bytes"]
    return store.size(name) == size


def commit_layer(
    dataset: Dataset, layer: str, *, parents: tuple[Parent, ...], detail: dict[str, str]
) -> Dataset:
    """List a layer that has a file for every shard, and return the dataset that has it.

    ``parents`` are what made it beside the dataset, which is added; ``detail`` is shown with
    its lineage. Commits of several layers at once are safe, and so is a repeated one. Raises
    ArtifactError if a shard's file is missing.
    """
    folder = dataset.layer_uri(_check_name(layer))
    if not exists(join(folder, LAYER_MANIFEST)):
        shards = range(len(dataset.shards))
        missing = [index for index in shards if not has_layer_shard(dataset, layer, index)]
        if missing:
            raise ArtifactError(
                f"layer {layer} lacks shards {', '.join(map(str, missing[:10]))}"
                + (f" and {len(missing) - 10} more" if len(missing) > 10 else ""),
                expected=f"a file for each of the {len(shards)} shards",
                action="run the step that computes the layer again: it keeps what is there",
            )
        files = [_read_record(folder, index) for index in shards]
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


def read_layer(dataset: Dataset, layer: str, shard_index: int, cache: Path) -> pa.Table:
    """The rows of a committed layer for one shard, in the order of its samples.

    Raises ArtifactError if the dataset lists no such layer, or the file isn't the listed one.
    """
    if layer not in dataset.layers:
        raise ArtifactError(
            f"{dataset.uri} has no layer {layer}",
            expected=f"one of its layers: {', '.join(sorted(dataset.layers)) or 'it has none'}",
            action="correct the name, or compute and commit the layer first",
        )
    folder = dataset.layer_uri(layer)
    sha256 = _listed_files(folder, dataset.layers[layer].digest)[shard_index]
    with open_copy(join(folder, f"{shard_index:05d}.parquet"), sha256, cache) as file:
        # One thread: readers run in the loader's forked workers, where Arrow's pool isn't safe.
        return pq.read_table(file, use_threads=False)


def _list_layers(dataset: Dataset) -> Dataset:
    """Bring ``dataset.json`` in line with the layers that are committed.

    Whoever writes looks again afterwards, so of several writers at once the last one to write
    has seen every layer.
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
    found = []
    for key in store.list("layers/"):
        if key.endswith(f"/{LAYER_MANIFEST}"):
            value = json.loads(store.get(key))
            check_kind(value, "layer", join(dataset.uri, key))
            size = value["summary"]["num_bytes"]
            found.append(LayerInfo(name=value["name"], digest=value["digest"], num_bytes=size))
    return found


@lru_cache(16)
def _listed_files(folder: str, digest: str) -> tuple[str, ...]:
    """The SHA-256 of each file of a committed layer, which must have this digest."""
    value = read_json(join(folder, LAYER_MANIFEST))
    check_kind(value, "layer", folder)
    if digest_json({"name": value["name"], "files": value["files"]}) != digest:
        raise inconsistent(join(folder, LAYER_MANIFEST), "isn't the one that the dataset lists")
    return tuple(file["sha256"] for file in value["files"])


def _read_record(folder: str, shard_index: int) -> dict[str, Any]:
    record: dict[str, Any] = read_json(join(folder, f"{shard_index:05d}.json"))
    return record


def _to_parquet(table: pa.Table) -> bytes:
    """Parquet bytes that depend on the rows and types alone, not on chunks or metadata."""
    plain = pa.schema([field.remove_metadata() for field in table.schema])
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(table.columns, schema=plain), buffer, compression="zstd")
    return buffer.getvalue()


def _check_name(layer: str) -> str:
    if not _NAME.fullmatch(layer):
        raise ConfigError(
            f"{layer!r} is not the name of a layer",
            expected="kind/maker, such as captions/coca-1a2b3c4d or score/clip-9f8e7d6c",
            action="correct the name",
        )
    return layer


def _check_captions(layer: str, shard_index: int, table: pa.Table) -> None:
    captions = table["captions"].to_pylist() if "captions" in table.column_names else []
    for row in range(len(table)):
        if not captions or not captions[row] or not all(c and c.strip() for c in captions[row]):
            raise ArtifactError(
                f"row {row} of shard {shard_index} of layer {layer} lacks a caption",
                expected="a column captions: in each row a list of at least one, none blank",
                action="give such a sample a caption, for instance its real one",
            )
