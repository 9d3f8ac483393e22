"""From a source to a dataset of shards: resumable, and equal bytes for equal inputs.

Shard ``i`` holds a range of the source's items that the plan fixes, so it can be made by any
process, at any time, twice over; the store is all that workers share. What a worker finds made
already it passes over.
"""

import tempfile
import base64
import io
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from collections import (deque, Counter)
from collections.abc import (Callable, Iterator, Container, Iterable)
from concurrent.futures import (Executor, Future, ThreadPoolExecutor)
from contextlib import (contextmanager, ExitStack)
from dataclasses import dataclass
from functools import partial
from typing import (Any, Final)
from clipmill.data.dataset import (MANIFEST, Dataset, FORMAT, UNIQUE, ShardInfo, read_sidecar, sidecar_uri)
from clipmill.data.parallel import (OrderedMap, default_threads, fitting_map, ordered_map, pool_map)
from clipmill.data.shards.finalize import (finish_shards, FINGERPRINT)
from clipmill.data.shards.plan import (ShardConfig, ShardPlan, dataset_uri, parse_worker, plan_shards, read_plan, worker_range, write_plan)
from clipmill.data.sources import (open_source, Entry)
from clipmill.processes import (available_cpus, process_pool)
from clipmill.storage import (exists, join, Store, open_store, atomic_write, write_json)
from clipmill.lineage import Parent
from clipmill.telemetry import data_metrics
from pathlib import Path
from tempfile import TemporaryDirectory
from numpy.typing import NDArray
from clipmill.data.layers import (has_layer_shard, write_layer_shard, layer_table)
from clipmill.data.shards.ingest import Pair
from clipmill.data.shards.tar import TarWriter
from clipmill.config import sha256_bytes
from clipmill.errors import (BadSampleError, StorageError)
from clipmill.storage.local import LocalStore


Progress = Callable[[int, int], None]
"""Takes the number of items done, and of all."""

Read = Callable[[Entry], Pair]

_WORTH_PROCESSES: Final = 10_000
"""Items from which on starting processes costs less than sharing one interpreter."""

_SHARDS_AT_ONCE: Final = 4
"""Shards that a process takes: one is put in its place while the next is written."""

@dataclass(frozen=True, slots=True)
class MadeShard:
    """What came of a shard's items."""

    num_samples: int
    """How many are in it."""
    quarantined: Counter[str]
    """How many aren't, by reason."""

def shard(
    config: ShardConfig,
    source: str,
    store: str,
    *,
    source_parents: tuple[Parent, ...] = (),
    progress: Progress | None = None,
    num_threads: int = 0,
    num_processes: int = 1,
) -> str:
    """Make the dataset of ``source`` under the folder ``store``, and return its URI.

    ``source`` is a source spec (see ``sources``). ``source_parents`` replace the plain reference
    to it in the lineage. Threads and processes are as in :func:`shard_range`. What an earlier run
    has finished is kept. Raises SourceError if nothing in the source can be used.
    """
    opened = open_source(source)
    with _workers(num_threads, num_processes) as workers:
        digest = opened.digest_by(workers.mapped, config.identity)
        uri = dataset_uri(config, digest, store)
        if exists(join(uri, MANIFEST)) and set(opened.layers) <= Dataset.open(uri).layers.keys():
            return uri
        with tempfile.TemporaryDirectory(prefix="clipmill-plan-") as place:
            plan = write_plan(config, opened, digest, uri, place)
            _shard_range(plan, 0, plan.num_shards, workers, progress)
            finish_shards(plan, source_parents=source_parents)
    return uri

def shard_range(
    plan: ShardPlan,
    start: int,
    stop: int,
    *,
    progress: Progress | None = None,
    num_threads: int = 0,
    num_processes: int = 1,
) -> None:
    """Make shards ``start`` to ``stop`` (exclusive), passing over those that are whole.

    In this process, by ``num_threads`` that check images (0: one a CPU, up to the few that help);
    or by ``num_processes`` (0: one a CPU) where there is enough to do. A script that asks for
    processes needs ``if __name__ == "__main__"``.

    Raises SourceError where the source isn't readable as it was planned, StorageError.
    """
    with _workers(num_threads, num_processes) as workers:
        _shard_range(plan, start, stop, workers, progress)

@dataclass(frozen=True, slots=True)
class _Workers:
    """Who does the work."""

    num_threads: int
    num_processes: int
    pool: Executor
    """Its processes start with the first task."""
    mapped: OrderedMap
    """By threads, or by the pool where there are many items."""

@contextmanager
def _workers(num_threads: int, num_processes: int) -> Iterator[_Workers]:
    threads, processes = num_threads or default_threads(), num_processes or available_cpus()
    with ordered_map(threads) as few, process_pool(processes) as pool:
        many = fitting_map(few, _WORTH_PROCESSES, pool, processes)
        yield _Workers(threads, processes, pool, many if processes > 1 else few)

def _shard_range(
    plan: ShardPlan, start: int, stop: int, workers: _Workers, progress: Progress | None
) -> None:
    if exists(join(plan.uri, MANIFEST)):
        return  # a late worker: all shards were whole
    total = sum(split.num_items for split in plan.splits(start, stop))
    if workers.num_processes == 1 or stop - start == 1 or total < _WORTH_PROCESSES:
        shards = _make(plan, start, stop, workers.num_threads)
    else:
        shards = _make_in_processes(plan, start, stop, workers)
    done = 0
    metrics = data_metrics()
    for num_items, made in shards:
        if made is not None:
            metrics.samples.inc(made.num_samples)
            for reason, count in made.quarantined.items():
                metrics.quarantined.labels(reason).inc(count)
        done += num_items
        if progress:
            progress(done, total)

def _make(
    plan: ShardPlan, start: int, stop: int, num_threads: int
) -> Iterator[tuple[int, MadeShard | None]]:
    """The items that each shard covers, and what it holds; None if it was whole before.

    A shard is written while the one before is put in its place.
    """
    source = open_source(plan.source)
    read, listing = plan.config.admission.read, plan.read_listing
    placing: deque[tuple[int, Future[MadeShard] | None]] = deque()
    with ordered_map(num_threads) as mapped, ThreadPoolExecutor(1) as placer:
        for index, split in enumerate(plan.splits(start, stop), start):
            made = None
            if not is_whole(plan, index):
                entries = source.entries(split, listing)
                made = placer.submit(write_shard(plan, index, entries, read, mapped))
            placing.append((split.num_items, made))
            if len(placing) > 1:
                yield _placed(*placing.popleft())
        for num_items, made in placing:
            yield _placed(num_items, made)

def _placed(num_items: int, made: Future[MadeShard] | None) -> tuple[int, MadeShard | None]:
    return num_items, None if made is None else made.result()

def _make_in_processes(
    plan: ShardPlan, start: int, stop: int, workers: _Workers
) -> Iterator[tuple[int, MadeShard | None]]:
    """The same: one interpreter would have its threads wait for each other."""
    make = partial(_make_part, plan.to_json())
    parts = _parts(start, stop, workers.num_processes)
    for made in pool_map(workers.pool, workers.num_processes, 1, make, parts):
        yield from made

def _parts(start: int, stop: int, number: int) -> Iterator[range]:
    """A few shards each, and one each at the end, so that no process waits long for others."""
    while start < stop:
        size = max(1, min(_SHARDS_AT_ONCE, (stop - start) // (2 * number)))
        yield range(start, start + size)
        start += size

def _make_part(plan: Any, part: range) -> list[tuple[int, MadeShard | None]]:
    return list(_make(ShardPlan.from_json(plan), part.start, part.stop, 1))

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



def _read_entry(read: Read, entry: Entry) -> tuple[str, Pair | BadSampleError]:
    """The entry's origin and what came of it: one bad sample must not end its shard."""
    try:
        return entry.origin, read(entry)
    except BadSampleError as bad:
        return entry.origin, bad
