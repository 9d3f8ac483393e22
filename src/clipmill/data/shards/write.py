"""Write a dataset from a source: resumable, and equal bytes for equal inputs.

Shard ``i`` holds a range of the source's items that the plan fixes, so any process can write it at
any time, even twice; workers share nothing but the store, and skip shards that are complete.
"""

import base64
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from clipmill.config import sha256_bytes
from clipmill.data.dataset import (
    DEDUP,
    FORMAT,
    MANIFEST,
    RETRY_ROW,
    Dataset,
    ShardInfo,
    read_sidecar,
    sidecar_uri,
)
from clipmill.data.layers import has_layer_shard, layer_table, write_layer_shard
from clipmill.data.parallel import (
    OrderedMap,
    auto_map,
    default_threads,
    executor_map,
    ordered_map,
)
from clipmill.data.shards.finalize import finalize_dataset
from clipmill.data.shards.ingest import PreparedPair
from clipmill.data.shards.plan import (
    ShardConfig,
    ShardPlan,
    dataset_uri,
    delete_original,
    shard_info,
    shard_versions,
    sidecar_key,
    staged_file,
    staged_rows_key,
    tar_key,
    write_plan,
    write_staged_rows,
)
from clipmill.data.shards.tar import TarWriter
from clipmill.data.sources import Entry, Source, open_source
from clipmill.data.sources.base import RETRYABLE
from clipmill.data.sources.urls import retry_row
from clipmill.errors import BadSampleError, BadSampleReason
from clipmill.lineage import Parent
from clipmill.processes import available_cpus, process_pool
from clipmill.storage import exists, join, open_store, write_json
from clipmill.telemetry import data_metrics

Progress = Callable[[int, int], None]
"""Called with the number of items done, and of all."""

ReadEntry = Callable[[Entry], PreparedPair]

_MIN_ITEMS_FOR_PROCESSES: Final = 10_000
"""From this many items, starting processes costs less than sharing one interpreter."""

_ITEMS_PER_REPORT: Final = 16
"""Items of a shard between two reports of progress."""

_SHARDS_PER_TASK: Final = 4
"""Shards per task of a process: one is uploaded while the next is written."""


@dataclass(frozen=True, slots=True)
class ShardResult:
    """Counts of a written shard."""

    num_samples: int
    """Samples in it."""
    quarantined: Counter[str]
    """Quarantined items, by reason."""


def write_dataset(
    config: ShardConfig,
    source: str,
    store: str = "out",
    *,
    source_parents: tuple[Parent, ...] = (),
    progress: Progress | None = None,
    num_threads: int = 0,
    num_processes: int = 1,
) -> str:
    """Write the dataset of a source of image-text pairs; return its URI.

    Shards of an earlier run are kept.

    Args:
        config: Shard size and constraints.
        source: A folder of images with ``.txt`` files, a table, a COCO file, tars, ...: a source
            spec (see :mod:`clipmill.data.sources`).
        store: Folder or ``s3://`` URI for datasets.
        source_parents: Replace the plain reference to the source in the lineage.
        progress: Called with the items done, and their total.
        num_threads: As of :func:`write_shards`.
        num_processes: As of :func:`write_shards`.

    Raises:
        SourceError: nothing in the source can be used.

    Example:
        >>> uri = clipmill.write_dataset(clipmill.ShardConfig(), "photos", "out")
        >>> clipmill.Dataset.open(uri).num_samples
        24
    """
    opened = open_source(source)
    with _workers(num_threads, num_processes) as workers:
        digest = opened.digest_by(workers.mapped, config.fingerprint)
        uri = dataset_uri(config, digest, store)
        if exists(join(uri, MANIFEST)) and set(opened.layers) <= Dataset.open(uri).layers.keys():
            return uri
        with tempfile.TemporaryDirectory(prefix="clipmill-plan-") as folder:
            plan = write_plan(config, opened, digest, uri, folder)
            _write_shards(plan, 0, plan.num_shards, workers, progress)
            finalize_dataset(plan, source_parents=source_parents)
    return uri


def write_shards(
    plan: ShardPlan,
    start: int,
    stop: int,
    *,
    progress: Progress | None = None,
    num_threads: int = 0,
    num_processes: int = 1,
) -> None:
    """Write shards ``start`` to ``stop`` (exclusive), skipping those that are complete.

    In this process, with ``num_threads`` that check images (0: one per CPU, up to the few that
    help); or in ``num_processes`` (0: one per CPU) where there is enough to do. A script that uses
    processes needs ``if __name__ == "__main__"``.

    Raises SourceError where the source isn't readable as it was planned, StorageError.
    """
    with _workers(num_threads, num_processes) as workers:
        _write_shards(plan, start, stop, workers, progress)


@dataclass(frozen=True, slots=True)
class _Workers:
    """Threads and processes that write shards."""

    num_threads: int
    num_processes: int
    pool: Executor
    """Starts its processes with the first task."""
    mapped: OrderedMap
    """Maps over threads, or over the pool where there are many items."""


@contextmanager
def _workers(num_threads: int, num_processes: int) -> Iterator[_Workers]:
    threads, processes = num_threads or default_threads(), num_processes or available_cpus()
    with ordered_map(threads) as thread_map, process_pool(processes) as pool:
        mapped = thread_map
        if processes > 1:
            mapped = auto_map(thread_map, _MIN_ITEMS_FOR_PROCESSES, pool, processes)
        yield _Workers(threads, processes, pool, mapped)


def _write_shards(
    plan: ShardPlan, start: int, stop: int, workers: _Workers, progress: Progress | None
) -> None:
    if exists(join(plan.uri, MANIFEST)):
        return  # a late worker: all shards are complete
    open_store(plan.uri).remove_abandoned()
    total = sum(split.num_items for split in plan.splits(start, stop))
    done = 0

    def advance(num_items: int) -> None:
        nonlocal done
        done += num_items
        if progress and num_items:
            progress(done, total)

    if workers.num_processes == 1 or stop - start == 1 or total < _MIN_ITEMS_FOR_PROCESSES:
        shards = _write_range(plan, start, stop, workers.num_threads, advance)
    else:
        shards = _write_in_processes(plan, start, stop, workers)
    metrics = data_metrics()
    finished = 0
    for num_items, result in shards:
        if result is not None:
            metrics.samples_processed.inc(result.num_samples)
            for reason, count in result.quarantined.items():
                metrics.samples_rejected.labels(reason).inc(count)
        finished += num_items
        advance(max(finished - done, 0))


def _write_range(
    plan: ShardPlan,
    start: int,
    stop: int,
    num_threads: int,
    advance: Callable[[int], None] = lambda _: None,
) -> Iterator[tuple[int, ShardResult | None]]:
    """Yield each shard's number of items and its result; None if it was complete already.

    A shard is written while the one before is uploaded. ``advance`` is called with the items read
    since its last call.
    """
    source = open_source(plan.source)
    read = plan.config.ingest.read
    uploads: deque[tuple[int, Future[ShardResult] | None]] = deque()
    with (
        ordered_map(num_threads) as mapped,
        ThreadPoolExecutor(1) as uploader,
        closing(source),
    ):
        for index, num_items, entries in _open_ahead(plan, source, start, stop):
            upload = None
            if entries is None:
                advance(num_items)
            else:
                counted = _count(entries, advance)
                upload = uploader.submit(write_shard(plan, index, counted, read, mapped))
            uploads.append((num_items, upload))
            if len(uploads) > 1:
                yield _wait_for_upload(*uploads.popleft())
        for num_items, upload in uploads:
            yield _wait_for_upload(num_items, upload)


def _open_ahead(
    plan: ShardPlan, source: Source, start: int, stop: int
) -> Iterator[tuple[int, int, Iterator[Entry] | None]]:
    """Yield each shard's index, its number of items, and its entries; None if it is complete."""
    listing = plan.read_listing
    opened: deque[tuple[int, int, Iterator[Entry] | None]] = deque()
    for index, split in enumerate(plan.splits(start, stop), start):
        entries = None if is_complete(plan, index) else source.entries(split, listing)
        opened.append((index, split.num_items, entries))
        if len(opened) > source.num_splits_ahead:
            yield opened.popleft()
    yield from opened


def _count(entries: Iterator[Entry], advance: Callable[[int], None]) -> Iterator[Entry]:
    for number, entry in enumerate(entries, 1):
        yield entry
        if number % _ITEMS_PER_REPORT == 0:
            advance(_ITEMS_PER_REPORT)


def _wait_for_upload(
    num_items: int, upload: Future[ShardResult] | None
) -> tuple[int, ShardResult | None]:
    return num_items, None if upload is None else upload.result()


def _write_in_processes(
    plan: ShardPlan, start: int, stop: int, workers: _Workers
) -> Iterator[tuple[int, ShardResult | None]]:
    """Do as :func:`_write_range` in processes: threads would wait for the interpreter lock."""
    write = partial(_write_part, plan.to_json())
    parts = _parts(start, stop, workers.num_processes)
    for results in executor_map(workers.pool, workers.num_processes, 1, write, parts):
        yield from results


def _parts(start: int, stop: int, number: int) -> Iterator[range]:
    """Yield ranges of a few shards, of one at the end, so that no process waits long."""
    while start < stop:
        size = max(1, min(_SHARDS_PER_TASK, (stop - start) // (2 * number)))
        yield range(start, start + size)
        start += size


def _write_part(plan: Any, part: range) -> list[tuple[int, ShardResult | None]]:
    return list(_write_range(ShardPlan.from_json(plan), part.start, part.stop, 1))


def write_shard(
    plan: ShardPlan,
    index: int,
    entries: Iterable[Entry],
    read: ReadEntry,
    mapped: OrderedMap,
) -> Callable[[], ShardResult]:
    """Write the tar of shard ``index`` from entries read by ``mapped``; return a call to upload it.

    That call waits for a disk or a network, so another thread may make it. It uploads the tar
    first and the sidecar last, so a sidecar marks a complete shard. Both raise StorageError, this
    one also SourceError.
    """
    store = open_store(plan.uri)
    quarantined: list[dict[str, Any]] = []
    uids: dict[str, None] = {}
    fingerprints: list[bytes] = []
    rows: list[Any] = []
    with ExitStack() as stack:
        path = stack.enter_context(staged_file(store, tar_key(index)))
        with path.open("wb") as file:
            tar = TarWriter(file)
            for origin, row, pair in mapped(partial(_read_entry, read), entries):
                if not isinstance(pair, BadSampleError):
                    pair = _reject_duplicate_uid(pair, uids)  # noqa: PLW2901
                if isinstance(pair, BadSampleError):
                    bad: dict[str, Any] = {
                        "origin": origin,
                        "reason": pair.reason,
                        "detail": pair.detail,
                    }
                    if row is not None and pair.reason in RETRYABLE:
                        bad[RETRY_ROW] = retry_row(row)
                    quarantined.append(bad)
                    continue
                tar.add(pair)
                uids[pair.uid] = None
                fingerprints.append(pair.fingerprint)
                if plan.layers:
                    rows.append((pair.caption, pair.rows))
            sha256 = tar.finish()
        staged = stack.pop_all()
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

    def upload() -> ShardResult:
        staged.close()
        write_json(sidecar_uri(plan.uri, index), record)
        _put_layers(plan, index, record, rows)
        if store.exists(sidecar_key(index, DEDUP)):
            # Another process has finalized the dataset and no longer needs this version.
            delete_original(store, index)
        return ShardResult(len(uids), Counter(bad["reason"] for bad in quarantined))

    return upload


def is_complete(plan: ShardPlan, index: int) -> bool:
    """Return whether shard ``index`` exists, in either version, with its layers' rows."""
    store = open_store(plan.uri)
    for suffix in shard_versions(plan.config):
        if store.exists(sidecar_key(index, suffix)):
            size: int = read_sidecar(store.uri, index, suffix)["num_bytes"]
            tar = tar_key(index, suffix)
            if store.exists(tar) and store.size(tar) == size:
                return bool(suffix) or all(_has_rows(plan, layer, index) for layer in plan.layers)
    return False


def _reject_duplicate_uid(
    pair: PreparedPair, uids: Container[str]
) -> PreparedPair | BadSampleError:
    """Reject a second pair with the same uid: a tar can't hold two members of one name."""
    if pair.uid in uids:
        return BadSampleError(BadSampleReason.DUPLICATE_ID, f"the same as sample {pair.uid}")
    return pair


def _put_layers(plan: ShardPlan, index: int, record: dict[str, Any], rows: list[Any]) -> None:
    captions = [caption for caption, _ in rows]
    for layer in plan.layers:
        table = layer_table(layer, record["uids"], captions, [row[layer] for _, row in rows])
        if plan.config.duplicates == "drop":
            write_staged_rows(plan, layer, index, table)
        else:
            dataset = _single_shard_dataset(plan, index, shard_info(index, record))
            write_layer_shard(dataset, layer, index, table)


def _has_rows(plan: ShardPlan, layer: str, index: int) -> bool:
    if plan.config.duplicates == "drop":
        return open_store(plan.uri).exists(staged_rows_key(layer, index))
    info = shard_info(index, read_sidecar(plan.uri, index))
    return has_layer_shard(_single_shard_dataset(plan, index, info), layer, index)


def _single_shard_dataset(plan: ShardPlan, index: int, info: ShardInfo) -> Dataset:
    """Return a dataset of which only shard ``index`` is known."""
    shards = (info,) * (index + 1)
    return Dataset(uri=plan.uri, shards=shards, layers={}, quarantine={}, parents=())


def _read_entry(
    read: ReadEntry, entry: Entry
) -> tuple[str, Mapping[str, Any] | None, PreparedPair | BadSampleError]:
    """Return the entry's origin, its row, and its pair or error.

    One bad sample must not end its shard.
    """
    try:
        return entry.origin, entry.row, read(entry)
    except BadSampleError as bad:
        return entry.origin, entry.row, bad
