"""Making one shard: its tar, the record beside it, and the rows of the source's layers."""

import base64
import io
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clipmill.data.dataset import FORMAT, UNIQUE, Dataset, ShardInfo, read_sidecar, sidecar_uri
from clipmill.data.layers import has_layer_shard, write_layer_shard
from clipmill.data.ordered_map import OrderedMap
from clipmill.data.pairs import Pair
from clipmill.data.shard_duplicates import FINGERPRINT
from clipmill.data.shard_plan import ShardPlan
from clipmill.data.shard_tar import TarWriter
from clipmill.data.source_layers import layer_table
from clipmill.data.sources import Entry
from clipmill.digest import sha256_bytes
from clipmill.errors import BadSampleError, StorageError
from clipmill.storage import Store, open_store, replacing, write_json
from clipmill.storage.local import LocalStore

Read = Callable[[Entry], Pair]


@dataclass(frozen=True, slots=True)
class MadeShard:
    """What came of a shard's items."""

    num_samples: int
    """How many are in it."""
    quarantined: Counter[str]
    """How many aren't, by reason."""


def write_shard(
    plan: ShardPlan,
    index: int,
    entries: Iterable[Entry],
    read: Read,
    mapped: OrderedMap,
) -> Callable[[], MadeShard]:
    """Write the tar of shard ``index``, its entries read by ``mapped``; the call puts it in place.

    That call waits for a disk or a network, so that another thread may make it. The tar goes first
    and its sidecar after, so a sidecar says "whole". Both raise StorageError, this one SourceError.
    """
    store = open_store(plan.uri)
    quarantined: list[dict[str, str]] = []
    uids: dict[str, None] = {}
    fingerprints: list[bytes] = []
    rows: list[Any] = []
    with ExitStack() as stack:
        path = stack.enter_context(staged(store, tar_key(index)))
        with path.open("wb") as file:
            tar = TarWriter(file)
            for origin, found in mapped(partial(_read_entry, read), entries):
                pair = found if isinstance(found, BadSampleError) else _unless_seen(found, uids)
                if isinstance(pair, BadSampleError):
                    bad = {"origin": origin, "reason": pair.reason, "detail": pair.detail}
                    quarantined.append(bad)
                    continue
                tar.add(pair)
                uids[pair.uid] = None
                fingerprints.append(pair.fingerprint)
                if plan.layers:
                    rows.append((pair.caption, pair.rows))
            sha256 = tar.finish()
        placing = stack.pop_all()
    encoded = base64.b64encode(b"".join(fingerprints)).decode()
    record = {
        "format": FORMAT,
        "kind": "shard",
        "num_samples": len(uids),
        "num_bytes": tar.num_bytes,
        "sha256": sha256,
        "uids": list(uids),
        "quarantined": quarantined,
        "fingerprints": encoded,
        "fingerprints_sha256": sha256_bytes(encoded.encode()),
    }

    def put() -> MadeShard:
        placing.close()
        write_json(sidecar_uri(plan.uri, index), record)
        _put_layers(plan, index, record, rows)
        if plan.config.duplicates == "drop" and store.exists(f"shards/{index:05d}{UNIQUE}.json"):
            # Somebody finished meanwhile, and needs this version no more.
            delete_original(store, index)
        return MadeShard(len(uids), Counter(bad["reason"] for bad in quarantined))

    return put


def is_whole(plan: ShardPlan, index: int) -> bool:
    """Whether shard ``index`` is there, in either version, with its layers' rows."""
    store = open_store(plan.uri)
    for mark in (UNIQUE, "") if plan.config.duplicates == "drop" else ("",):
        if store.exists(f"shards/{index:05d}{mark}.json"):
            size: int = read_sidecar(store.uri, index, mark)["num_bytes"]
            tar = tar_key(index, mark)
            if store.exists(tar) and store.size(tar) == size:
                return bool(mark) or all(_has_rows(plan, layer, index) for layer in plan.layers)
    return False


def delete_original(store: Store, index: int) -> None:
    """Delete the version of a shard that has doubles; the record first, which says "whole"."""
    store.delete(f"shards/{index:05d}.json")
    store.delete(tar_key(index))


def tar_key(index: int, mark: str = "") -> str:
    """Where the tar of a shard lies in its dataset."""
    return f"shards/{index:05d}{mark}.tar"


def shard_info(index: int, sidecar: dict[str, Any], mark: str = "") -> ShardInfo:
    """The entry of a dataset's list for a shard with this sidecar."""
    return ShardInfo(
        name=f"{index:05d}{mark}.tar",
        num_samples=sidecar["num_samples"],
        num_bytes=sidecar["num_bytes"],
        sha256=sidecar["sha256"],
    )


def fingerprints_of(sidecar: dict[str, Any]) -> NDArray[np.void]:
    """The fingerprints of the samples that a shard had when it was made."""
    return np.frombuffer(base64.b64decode(sidecar["fingerprints"]), FINGERPRINT)


def staged_rows_key(layer: str, index: int) -> str:
    """Where a layer's rows wait until the doubles are known, if these are to be dropped."""
    return f"plan/rows/{layer}/{index:05d}.parquet"


@contextmanager
def staged(store: Store, key: str) -> Iterator[Path]:
    """Yield a path to write a file at, which is put at ``key`` when the block ends well."""
    if isinstance(store, LocalStore):
        with replacing(store.path(key)) as path:
            yield path
        return
    with TemporaryDirectory(prefix="clipmill-shard-") as folder:
        path = Path(folder) / "shard.tar"
        try:
            yield path
        except OSError as error:
            raise StorageError(
                f"can't write a shard to {folder}: {error.strerror}",
                expected="space for a shard in the folder for temporary files",
                action="free some, or set TMPDIR to a folder on a larger disk",
            ) from error
        store.put_file(key, path)


def _unless_seen(pair: Pair, uids: Container[str]) -> Pair | BadSampleError:
    """Refuse a second pair of one uid: a tar can't hold two members of one name."""
    if pair.uid in uids:
        return BadSampleError("duplicate-id", f"the same as sample {pair.uid}")
    return pair


def _put_layers(plan: ShardPlan, index: int, record: dict[str, Any], rows: list[Any]) -> None:
    captions = [caption for caption, _ in rows]
    for layer in plan.layers:
        table = layer_table(layer, record["uids"], captions, [row[layer] for _, row in rows])
        if plan.config.duplicates == "drop":
            buffer = io.BytesIO()
            pq.write_table(table, buffer, compression="zstd")
            open_store(plan.uri).put(staged_rows_key(layer, index), buffer.getvalue())
        else:
            write_layer_shard(_so_far(plan, index, shard_info(index, record)), layer, index, table)


def _has_rows(plan: ShardPlan, layer: str, index: int) -> bool:
    if plan.config.duplicates == "drop":
        return open_store(plan.uri).exists(staged_rows_key(layer, index))
    info = shard_info(index, read_sidecar(plan.uri, index))
    return has_layer_shard(_so_far(plan, index, info), layer, index)


def _so_far(plan: ShardPlan, index: int, info: ShardInfo) -> Dataset:
    """The dataset as far as the maker of one shard knows it: that shard, in its place."""
    shards = (info,) * (index + 1)
    return Dataset(uri=plan.uri, shards=shards, layers={}, quarantine={}, parents=())


def read_staged_rows(plan: ShardPlan, layer: str, index: int) -> pa.Table:
    """A layer's rows as they wait (see ``staged_rows_key``)."""
    data = open_store(plan.uri).get(staged_rows_key(layer, index))
    return pq.read_table(io.BytesIO(data), use_threads=False)


def _read_entry(read: Read, entry: Entry) -> tuple[str, Pair | BadSampleError]:
    """The entry's origin and what came of it: one bad sample must not end its shard."""
    try:
        return entry.origin, read(entry)
    except BadSampleError as bad:
        return entry.origin, bad
