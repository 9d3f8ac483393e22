"""Random access to shards, locally and in S3, and the bounded cache of copies."""

import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from clipmill.config import sha256_bytes
from clipmill.data.cache import evict_lru, open_copy
from clipmill.data.dataset import Dataset
from clipmill.data.shards.plan import ShardConfig
from clipmill.data.shards.read import read_shard
from clipmill.data.shards.tar import index_tar
from clipmill.data.shards.write import write_dataset
from clipmill.errors import ArtifactError, NotFoundError
from clipmill.storage import open_store

MakeDataset = Callable[..., Dataset]


def members(dataset: Dataset, index: int) -> dict[str, bytes]:
    with tarfile.open(Path(dataset.uri) / "shards" / f"{index:05d}.tar") as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


def test_parts_are_those_of_the_tar(tmp_path: Path, make_dataset: MakeDataset) -> None:
    dataset = make_dataset()
    for index in range(len(dataset.shards)):
        expected = members(dataset, index)
        for _ in range(2):  # the second time by the kept index
            with read_shard(dataset, index, tmp_path / "cache") as reader:
                assert reader.uids == dataset.uids(index)
                assert len(reader) == len(expected) // 3
                for row in reversed(range(len(reader))):
                    uid = reader.uid(row)
                    assert uid == reader.uids[row]
                    assert reader.caption(row).encode() == expected[f"{uid}.txt"]
                    assert reader.image(row) in expected.values()
                    assert reader.image(row) != expected[f"{uid}.txt"]


def test_nothing_is_written_beside_a_local_shard(tmp_path: Path, make_dataset: MakeDataset) -> None:
    dataset = make_dataset()
    before = sorted(Path(dataset.uri).rglob("*"))
    read_shard(dataset, 0, tmp_path / "cache").close()
    assert sorted(Path(dataset.uri).rglob("*")) == before


def test_empty_shard(tmp_path: Path, write_pairs: Callable[[Path, int], Path]) -> None:
    source = write_pairs(tmp_path / "source", 4)
    for path in (source / "part0").glob("*.txt"):
        path.write_text("")
    uri = write_dataset(ShardConfig(samples_per_shard=2), str(source), str(tmp_path / "store"))
    dataset = Dataset.open(uri)
    assert [info.num_samples for info in dataset.shards] == [0, 2]
    with read_shard(dataset, 0, tmp_path / "cache") as reader:
        assert (len(reader), reader.uids) == (0, [])


def test_damage_is_noticed_even_after_a_first_reading(
    tmp_path: Path, make_dataset: MakeDataset
) -> None:
    dataset = make_dataset()
    read_shard(dataset, 0, tmp_path / "cache").close()
    path = Path(dataset.uri) / "shards" / "00000.tar"
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match="has the SHA-256"):
        read_shard(dataset, 0, tmp_path / "cache")
    path.unlink()
    with pytest.raises(NotFoundError):
        read_shard(dataset, 0, tmp_path / "cache")


def test_foreign_tar_has_no_index(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.txt", "b.json"):
        (tmp_path / name).write_text("x")
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        for name in ("a.jpg", "a.txt", "b.json"):
            tar.add(tmp_path / name, name)
    with path.open("rb") as file, pytest.raises(ArtifactError, match="members a"):
        index_tar(file)
    path.write_bytes(b"not a tar" * 100)
    with path.open("rb") as file, pytest.raises(ArtifactError, match="is not a shard"):
        index_tar(file)


def test_remote_shard_is_copied_once(
    tmp_path: Path, make_dataset: MakeDataset, s3: dict[str, str]
) -> None:
    dataset = make_dataset(store=f"s3://tests/{tmp_path.name}")
    cache = tmp_path / "cache"
    with read_shard(dataset, 0, cache) as first:
        open_store(dataset.uri).delete("shards/00000.tar")
        with read_shard(dataset, 0, cache) as second:
            assert first.image(1) == second.image(1)
        evict_lru(cache, 0)
        assert first.caption(0).startswith("picture")
    with pytest.raises(NotFoundError):
        read_shard(dataset, 0, cache)


def test_trim_drops_what_was_used_longest_ago(tmp_path: Path, s3: dict[str, str]) -> None:
    store = open_store(f"s3://tests/{tmp_path.name}")
    cache = tmp_path / "cache"
    (cache / "trees").mkdir(parents=True)
    contents = {name: name.encode() * 1000 for name in "abc"}
    for age, (name, data) in enumerate(contents.items()):
        store.put(name, data)
        open_copy(f"{store.uri}/{name}", sha256_bytes(data), cache).close()
        os.utime(cache / sha256_bytes(data), (age, age))
    open_copy(f"{store.uri}/a", sha256_bytes(contents["a"]), cache).close()
    evict_lru(cache, 2000)
    kept = {path.name for path in cache.iterdir()}
    assert kept == {"trees", *(sha256_bytes(contents[name]) for name in "ac")}
