"""Damage of every kind to real datasets, and what verify says of it."""

import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipmill.data.dataset import Dataset
from clipmill.data.layers import commit_layer, write_layer_shard
from clipmill.data.verify import verify
from clipmill.errors import StorageError

LAYER = "captions/test-1"


@pytest.fixture
def dataset(
    make_dataset: Callable[..., Dataset], add_captions: Callable[[Dataset, str], Dataset]
) -> Dataset:
    return add_captions(make_dataset(10), LAYER)


def edit(path: Path, change: Callable[[dict], object]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def faults(dataset: Dataset, *, contents: bool = True) -> list[str]:
    found = verify(dataset.uri, contents=contents)
    assert found.is_ok == (not found.faults)
    return [str(fault).removeprefix(f"{dataset.uri}/") for fault in found.faults]


def test_whole(dataset: Dataset) -> None:
    found = verify(dataset.uri)
    assert (found.faults, found.notes, found.digest) == ((), (), dataset.digest)
    # dataset.json, 3 shards with their sidecars, layer.json, 3 tables with their records.
    assert found.num_files == 1 + 6 + 1 + 6
    shards = sum(shard.num_bytes for shard in dataset.shards)
    assert found.num_bytes == shards + dataset.layers[LAYER].num_bytes


def test_in_s3(
    s3: dict[str, str],
    make_dataset: Callable[..., Dataset],
    add_captions: Callable[[Dataset, str], Dataset],
) -> None:
    from clipmill.storage import open_store

    dataset = add_captions(make_dataset(6, store="s3://tests/verify"), LAYER)
    assert verify(dataset.uri).is_ok
    store = open_store(dataset.uri)
    store.put("shards/00000.tar", store.get("shards/00000.tar")[:-700])
    (fault, *_) = verify(dataset.uri).faults
    assert "00000.tar is cut" in str(fault)


def test_no_dataset(tmp_path: Path) -> None:
    (fault,) = verify(str(tmp_path)).faults
    assert str(fault) == f"{tmp_path}/dataset.json is missing"


def test_a_store_that_cannot_be_asked_is_an_error() -> None:
    with pytest.raises(StorageError):
        verify("ftp://host/dataset")


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 1, "kind": "layer"}', "\xff"])
def test_a_list_that_is_none(dataset: Dataset, text: str) -> None:
    (Path(dataset.uri) / "dataset.json").write_bytes(text.encode("latin-1"))
    (fault,) = faults(dataset)
    assert fault.startswith("dataset.json ")


def test_an_edited_list(dataset: Dataset) -> None:
    edit(Path(dataset.uri) / "dataset.json", lambda v: v["shards"][0].update(num_samples=5))
    assert faults(dataset) == ["dataset.json doesn't match its own digest"]


def test_a_cut_shard(dataset: Dataset) -> None:
    path = Path(dataset.uri) / "shards" / "00001.tar"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:5000])
    cut, unreadable = faults(dataset)
    assert cut == f"shards/00001.tar is cut: it has 5,000 bytes, and {size:,} listed"
    assert unreadable.startswith("shards/00001.tar ")
    assert faults(dataset, contents=False) == [cut]


def test_a_broken_picture_is_named(dataset: Dataset) -> None:
    path = Path(dataset.uri) / "shards" / "00000.tar"
    with tarfile.open(path) as tar:
        picture = next(m for m in tar if m.name.endswith(".png"))
    data = bytearray(path.read_bytes())
    data[picture.offset_data + 40] ^= 0xFF
    path.write_bytes(data)
    changed, broken = faults(dataset)
    assert "its SHA-256 is" in changed
    uid = picture.name.partition(".")[0]
    assert broken == f"shards/00000.tar holds images that don't decode: sample {uid}"
    assert faults(dataset, contents=False) == []


def test_missing_files(dataset: Dataset) -> None:
    for name in ("shards/00000.tar", "shards/00001.json", f"layers/{LAYER}/00002.parquet"):
        (Path(dataset.uri) / name).unlink()
    found = faults(dataset)
    assert sorted(found) == [
        f"layers/{LAYER}/00002.parquet is missing",
        "shards/00000.tar is missing",
        "shards/00001.json is missing",
    ]
    assert sorted(faults(dataset, contents=False)) == sorted(found)


def test_samples_in_another_order(dataset: Dataset) -> None:
    edit(Path(dataset.uri) / "shards" / "00000.json", lambda v: v["uids"].reverse())
    uids = dataset.uids(0)
    expected = f"is in another order: row 0 is {uids[-1]}, and {uids[0]} expected"
    assert faults(dataset) == [
        f"shards/00000.tar {expected}",
        f"layers/{LAYER}/00000.parquet {expected}",
    ]


def test_lost_foreign_and_doubled_samples(dataset: Dataset) -> None:
    first, second, *_ = dataset.uids(0)
    edit(
        Path(dataset.uri) / "shards" / "00000.json",
        lambda v: v.update(uids=[first, first, "0" * 20, *v["uids"][3:]]),
    )
    third = dataset.uids(0)
    found = faults(dataset)
    assert f"shards/00000.tar lacks sample {'0' * 20}" in found
    assert any(f.startswith("shards/00000.tar holds samples") and second in f for f in found)
    assert f"shards hold {first} more than once: 00000.tar and 00000.tar" in found
    assert third


def test_a_layer_of_another_dataset(dataset: Dataset) -> None:
    folder = Path(dataset.layer_uri(LAYER))
    edit(folder / "layer.json", lambda v: v["parents"][0].update(digest="f" * 64))
    assert faults(dataset) == [f"layers/{LAYER}/layer.json was made from a dataset {'f' * 64}"]


def test_a_layer_written_anew(dataset: Dataset) -> None:
    path = Path(dataset.layer_uri(LAYER)) / "00000.parquet"
    table = pq.read_table(path)
    pq.write_table(table.slice(0, 2), path)
    found = faults(dataset)
    assert any("00000.parquet is cut" in f or "00000.parquet is longer" in f for f in found)
    assert any(f.startswith(f"layers/{LAYER}/00000.parquet lacks samples") for f in found)


def test_unfinished_work_is_a_note(dataset: Dataset) -> None:
    uids = dataset.uids(0)
    write_layer_shard(dataset, "score/x", 0, pa.table({"uid": uids, "real": [0.5] * len(uids)}))
    (Path(dataset.uri) / "shards" / "notes.md").write_text("mine")
    found = verify(dataset.uri)
    assert found.is_ok
    assert found.notes == (
        f"{dataset.uri}/shards/notes.md is listed nowhere",
        "layer score/x isn't finished: 1 of 3 shards",
    )


def test_a_committed_layer_that_is_not_listed_is_a_note(dataset: Dataset) -> None:
    edit(Path(dataset.uri) / "dataset.json", lambda v: v.update(layers={}))
    found = verify(dataset.uri)
    assert found.is_ok
    assert found.notes == (f"layer {LAYER} is committed, and the dataset doesn't list it yet",)
    commit_layer(dataset, LAYER, parents=(), detail={})
    assert verify(dataset.uri).notes == ()


@pytest.mark.parametrize(
    "name",
    ["shards/00001.tar", "shards/00001.json", "00001.parquet", "00001.json"],
)
def test_any_changed_byte_is_found(dataset: Dataset, name: str) -> None:
    path = Path(dataset.uri if name.startswith("shards/") else dataset.layer_uri(LAYER)) / name
    data = path.read_bytes()
    random = np.random.default_rng(0)
    for place in random.integers(0, len(data), 40).tolist():
        damaged = bytearray(data)
        damaged[place] ^= 1 << int(random.integers(8))
        same = name.endswith(".json") and _same_json(bytes(damaged), data)
        path.write_bytes(damaged)
        assert bool(faults(dataset)) != same, place


def _same_json(one: bytes, other: bytes) -> bool:
    try:
        return json.loads(one) == json.loads(other)
    except ValueError:
        return False
