"""Parallel maps over threads or processes that keep the order of items."""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Protocol, TypeVar

from clipmill.processes import available_cpus

T = TypeVar("T")
R = TypeVar("R")

# Items a thread takes at once, and a process: handing over one costs as much as hashing a file.
_BATCH = 8
_PROCESS_BATCH = 128
# Batches that wait for a worker, or for whoever takes the results, a worker.
_AHEAD = 2
# Reading, hashing and decoding leave the interpreter to others, but the rest doesn't.
_MAX_THREADS = 4


def default_threads() -> int:
    """Return one thread per available CPU, up to the few that help."""
    return min(available_cpus(), _MAX_THREADS)


class OrderedMap(Protocol):
    """Yields ``function(item)`` for each item, in their order, and is little ahead."""

    def __call__(self, function: Callable[[T], R], items: Iterable[T], /) -> Iterator[R]:
        """As the built-in ``map``, which is one."""


@contextmanager
def ordered_map(num_threads: int) -> Iterator[OrderedMap]:
    """Yield a map over ``num_threads``; one thread runs in the caller, which is cheaper."""
    if num_threads == 1:
        yield map
        return
    with ThreadPoolExecutor(num_threads) as pool:
        yield partial(executor_map, pool, num_threads, _BATCH)


def auto_map(
    thread_map: OrderedMap, min_items: int, pool: Executor, num_processes: int
) -> OrderedMap:
    """Return a map that uses ``thread_map`` below ``min_items`` items, and a process pool above."""

    def mapped(function: Callable[[T], R], items: Iterable[T], /) -> Iterator[R]:
        iterator = iter(items)
        first = list(itertools.islice(iterator, min_items))
        if len(first) < min_items:
            return thread_map(function, first)
        remaining = itertools.chain(first, iterator)
        return executor_map(pool, num_processes, _PROCESS_BATCH, function, remaining)

    return mapped


def executor_map(
    pool: Executor,
    num_workers: int,
    size: int,
    function: Callable[[T], R],
    items: Iterable[T],
) -> Iterator[R]:
    """Yield ``function(item)`` for each; a worker takes ``size`` at once, and few lie ready."""
    iterator = iter(items)
    pending: deque[Future[list[R]]] = deque()
    try:
        while batch := list(itertools.islice(iterator, size)):
            pending.append(pool.submit(_apply, function, batch))
            if len(pending) == _AHEAD * num_workers:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


def _apply(function: Callable[[T], R], batch: list[T]) -> list[R]:
    return [function(item) for item in batch]
