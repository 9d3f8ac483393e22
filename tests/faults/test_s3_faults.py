"""Work through a proxy that spoils answers ends as work without it does, or with a clear error."""

import dataclasses
import os
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pytest

from clipmill.data.dataset import Dataset
from clipmill.data.export import ExportConfig, export
from clipmill.data.layers import commit_layer, read_layer, write_layer_shard
from clipmill.data.shards.plan import ShardConfig
from clipmill.data.shards.read import read_shard
from clipmill.data.shards.write import write_dataset
from clipmill.data.verify import verify
from clipmill.errors import NotFoundError, StorageError
from clipmill.images import decode_rgb
from clipmill.storage import open_store
from clipmill.storage import s3 as s3_module
from clipmill.storage.s3 import RetryPolicy, S3Settings, S3Store
from helpers.s3_proxy import FaultRates, FaultyProxy

QUICK = RetryPolicy(attempts=8, base_seconds=0.002, max_seconds=0.01, read_timeout_seconds=1.0)
STALL_SECONDS = 1.5
KINDS = [field.name for field in dataclasses.fields(FaultRates)]
# A stall costs a second, so there are fewer of them.
ALL = FaultRates(**{**dict.fromkeys(KINDS, 0.05), "stalled": 0.015})
LAYER = "captions/test-1"
MIB = 1 << 20


@pytest.fixture
def real(s3: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> S3Settings:
    # Stores that are opened by URI are patient: too patient for many faults in a test.
    monkeypatch.setattr(s3_module, "RetryPolicy", lambda: QUICK)
    return S3Settings.from_environment()


@contextmanager
def faulty(real: S3Settings, rates: FaultRates, seed: int = 0) -> Iterator[FaultyProxy]:
    """The proxy, with everything that this process opens by URI going through it."""
    with (
        FaultyProxy(real.endpoint, rates, seed, stall_seconds=STALL_SECONDS) as proxy,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy


def through(proxy: FaultyProxy, real: S3Settings, root: str) -> S3Store:
    settings = dataclasses.replace(real, endpoint=proxy.endpoint)
    return S3Store("tests", root, settings, QUICK)


@pytest.mark.parametrize("kind", KINDS)
def test_each_fault_at_a_third_of_the_requests(real: S3Settings, kind: str, tmp_path: Path) -> None:
    root = uuid.uuid4().hex
    num_objects = 4 if kind == "stalled" else 12
    objects = {f"{i % 3}/ä{i}": os.urandom(i * 4000) for i in range(num_objects)}
    with faulty(real, FaultRates(**{kind: 0.33})) as proxy:
        store = through(proxy, real, root)
        for key, data in objects.items():
            store.put(key, data)
        for key, data in objects.items():
            assert store.get(key) == data
            assert store.get_range(key, 1000, 3000) == data[1000:4000]
            assert store.size(key) == len(data)
            store.get_file(key, tmp_path / "copy")
            assert (tmp_path / "copy").read_bytes() == data
            assert store.exists(key)
        assert not store.exists("none")
        with pytest.raises(NotFoundError):
            store.get("none")
        for prefix in ("", "0", "1/ä"):
            assert list(store.list(prefix)) == sorted(k for k in objects if k.startswith(prefix))
        store.delete("0/ä0")
    assert proxy.faults[kind] >= num_objects
    direct = S3Store("tests", root, real)
    assert {key: direct.get(key) for key in direct.list()} == {
        key: data for key, data in objects.items() if key != "0/ä0"
    }


@pytest.mark.parametrize(
    "kind", [k if k in ("lost", "etag") else pytest.param(k, marks=pytest.mark.slow) for k in KINDS]
)
def test_uploads_in_parts(
    real: S3Settings, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_module, "_PART_BYTES", 5 * MIB)
    data = os.urandom(12 * MIB)
    (tmp_path / "file").write_bytes(data)
    with faulty(real, FaultRates(**{kind: 0.25}), seed=4) as proxy:
        store = through(proxy, real, uuid.uuid4().hex)
        store.put_file("large", tmp_path / "file")
        store.get_file("large", tmp_path / "copy")
    assert proxy.faults[kind]
    assert (tmp_path / "copy").read_bytes() == data
    assert S3Store("tests", store.prefix.rstrip("/"), real).get("large") == data


@pytest.mark.parametrize("kind", ["busy", "lost", "cut", "stalled", "refused"])
def test_past_the_limit_it_is_a_clear_error(real: S3Settings, kind: str) -> None:
    policy = dataclasses.replace(QUICK, attempts=3, read_timeout_seconds=0.3)
    key = uuid.uuid4().hex
    S3Store("tests", "", real).put(key, bytes(100))
    with faulty(real, FaultRates(**{kind: 1.0})) as proxy:
        settings = dataclasses.replace(real, endpoint=proxy.endpoint)
        store = S3Store("tests", "", settings, policy)
        uses: list[Callable[[], object]] = [
            lambda: store.get(key),
            lambda: list(store.list(key)),
        ]
        if kind not in ("cut", "stalled"):  # an upload's answer has no body to spoil
            uses += [lambda: store.put(key, bytes(100)), lambda: store.exists(key)]
        for use in uses:
            before = proxy.num_requests
            with pytest.raises(StorageError, match=proxy.endpoint) as caught:
                use()
            assert caught.value.action
            # Half of a hundred bytes, half of the rest, ...: seven bodies that bring something.
            assert proxy.num_requests - before <= policy.attempts + 7


def caption_and_score(uri: str, cache: Path) -> None:
    """What recaption and score workers do: read each picture, write its rows, commit."""
    dataset = Dataset.open(uri)
    for index in range(len(dataset.shards)):
        with read_shard(dataset, index, cache) as reader:
            rows = range(len(reader))
            means = [float(sum(decode_rgb(reader.image(r)).getpixel((0, 0)))) for r in rows]
            captions = [[f"{reader.caption(r)} again"] for r in rows]
            uids = reader.uids
        write_layer_shard(dataset, LAYER, index, pa.table({"uid": uids, "captions": captions}))
        write_layer_shard(dataset, "score/x", index, pa.table({"uid": uids, "real": means}))
    for layer in (LAYER, "score/x"):
        commit_layer(dataset, layer, parents=(), detail={})


def objects_of(uri: str) -> dict[str, bytes]:
    store = open_store(uri)
    return {key: store.get(key) for key in store.list()}


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_dataset_made_through_faults_is_the_same_to_the_byte(
    real: S3Settings,
    pairs: Callable[[int], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
) -> None:
    source = pairs(14)
    config = ShardConfig(samples_per_shard=4)
    # Layers name their dataset by its URI, so both runs must use one; the first is put aside.
    root = f"s3://tests/{uuid.uuid4().hex}"
    monkeypatch.setenv("CLIPMILL_CACHE", str(tmp_path / "cache"))
    uri = write_dataset(config, str(source), root)
    caption_and_score(uri, tmp_path / "cache")
    exported = export(ExportConfig(samples_per_tar=7), uri, root, tmp_path / "cache")
    expected = {**objects_of(uri), **objects_of(exported)}
    store = open_store(root)
    for key in list(store.list()):
        store.delete(key)
    with faulty(real, ALL, seed) as proxy:
        assert write_dataset(config, str(source), root) == uri
        caption_and_score(uri, tmp_path / "cold")
        assert export(ExportConfig(samples_per_tar=7), uri, root, tmp_path / "cold") == exported
        assert verify(uri).is_ok
        cold = Dataset.open(uri)
        rows = [
            row
            for index in range(len(cold.shards))
            for row in read_layer(cold, LAYER, index, tmp_path / "colder").to_pylist()
        ]
    assert len({row["uid"] for row in rows}) == len(rows) == cold.num_samples == 14
    assert all(proxy.faults[kind] for kind in KINDS), proxy.faults
    assert {**objects_of(uri), **objects_of(exported)} == expected


def test_workers_at_once_through_faults(
    real: S3Settings, pairs: Callable[[int], Path], tmp_path: Path
) -> None:
    source = pairs(14)
    config = ShardConfig(samples_per_shard=4)
    root = f"s3://tests/{uuid.uuid4().hex}"
    with faulty(real, ALL, seed=3):
        barrier = threading.Barrier(3)

        def work(worker: int) -> str:
            barrier.wait()
            uri = write_dataset(config, str(source), root)
            caption_and_score(uri, tmp_path / f"cache{worker}")
            return uri

        with ThreadPoolExecutor(3) as pool:
            uris = set(pool.map(work, range(3)))
    (uri,) = uris
    found = verify(uri)
    assert (found.faults, found.notes) == ((), ())
    assert set(Dataset.open(uri).layers) == {LAYER, "score/x"}
