"""Datasets without pictures: a list of shards and their uids, enough for layers."""

import json

import pyarrow as pa

from clipmill.config import digest_json, sha256_bytes
from clipmill.data.dataset import Dataset
from clipmill.data.layers import commit_layer, write_layer_shard


def bare_dataset(folder, sizes, label="u"):
    """A dataset of shards of these sizes, with uids u0, u1, ..."""
    shards, first = [], 0
    (folder / "shards").mkdir(parents=True)
    for index, size in enumerate(sizes):
        uids = [f"{label}{number}" for number in range(first, first + size)]
        first += size
        sha256 = sha256_bytes(" ".join(uids).encode())
        shards.append(
            {"name": f"{index:05d}.tar", "num_samples": size, "num_bytes": 1, "sha256": sha256}
        )
        sidecar = {"format": 1, "kind": "shard", "sha256": sha256, "uids": uids}
        (folder / "shards" / f"{index:05d}.json").write_text(json.dumps(sidecar))
    manifest = {
        "format": 1,
        "kind": "dataset",
        "digest": digest_json(shards),
        "shards": shards,
        "layers": {},
        "quarantine": {},
        "parents": [],
    }
    (folder / "dataset.json").write_text(json.dumps(manifest))
    return Dataset.open(str(folder))


def add_layer(dataset, name, columns):
    """Commit a layer with these columns, given for all rows of the dataset together."""
    table, first = pa.table(columns), 0
    for index, shard in enumerate(dataset.shards):
        rows = table.slice(first, shard.num_samples)
        first += shard.num_samples
        uids = pa.array(dataset.uids(index), pa.string())
        write_layer_shard(dataset, name, index, rows.add_column(0, "uid", uids))
    return commit_layer(dataset, name, parents=(), detail={})
