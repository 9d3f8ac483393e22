"""From a source to a dataset of shards: resumable, and equal bytes for equal inputs.

Shard ``i`` holds a range of the source's items that the plan fixes, so it can be made by any
process, at any time, twice over; the store is all that workers share. What a worker finds made
already it passes over.
"""

import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from clipmill.data.dataset import MANIFEST, Dataset
from clipmill.data.ordered_map import (
    OrderedMap,
    default_threads,
    fitting_map,
    ordered_map,
    pool_map,
)
from clipmill.data.shard_finish import finish_shards
from clipmill.data.shard_making import MadeShard, is_whole, write_shard
from clipmill.data.shard_plan import (
    ShardConfig,
    ShardPlan,
    dataset_uri,
    parse_worker,
    plan_shards,
    read_plan,
    worker_range,
    write_plan,
)
from clipmill.data.sources import open_source
from clipmill.processes import available_cpus, process_pool
from clipmill.storage import Parent, exists, join
from clipmill.telemetry import data_metrics

__all__ = [
    "ShardConfig",
    "ShardPlan",
    "finish_shards",
    "parse_worker",
    "plan_shards",
    "read_plan",
    "shard",
    "shard_range",
    "worker_range",
]

Progress = Callable[[int, int], None]
"""Takes the number of items done, and of all."""

_WORTH_PROCESSES: Final = 10_000
"""Items from which on starting processes costs less than sharing one interpreter."""
_SHARDS_AT_ONCE: Final = 4
"""Shards that a process takes: one is put in its place while the next is written."""


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
