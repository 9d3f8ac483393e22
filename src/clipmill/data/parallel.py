"""A function over many items on threads or processes, its results in the items' order."""

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
_MOST_THREADS = 4


def default_threads() -> int:
    """One a CPU that this process may use, up to the few that help."""
    return min(available_cpus(), _MOST_THREADS)


class OrderedMap(Protocol):
    """Yields ``function(item)`` for each item, in their order, and is little ahead."""

    def __call__(self, function: Callable[[T], R], items: Iterable[T], /) -> Iterator[R]:
        """As the built-in ``map``, which is one."""


@contextmanager
def ordered_map(num_threads: int) -> Iterator[OrderedMap]:
    """A map on ``num_threads``, or in the caller's if that is one: handing over costs more."""
    if num_threads == 1:
        yield map
        return
    with ThreadPoolExecutor(num_threads) as pool:
        yield partial(executor_map, pool, num_threads, _BATCH)


def auto_map(few: OrderedMap, number: int, pool: Executor, num_processes: int) -> OrderedMap:
    """``few`` for less than ``number`` items, and a pool's processes for more."""

    def mapped(function: Callable[[T], R], items: Iterable[T], /) -> Iterator[R]:
        iterator = iter(items)
        first = list(itertools.islice(iterator, number))
        if len(first) < number:
            return few(function, first)
        rest = itertools.chain(first, iterator)
        return executor_map(pool, num_processes, _PROCESS_BATCH, function, rest)

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
    while batch := list(itertools.islice(iterator, size)):
        pending.append(pool.submit(_apply, function, batch))
        if len(pending) == _AHEAD * num_workers:
            yield from pending.popleft().result()
    for future in pending:
        yield from future.result()


def _apply(function: Callable[[T], R], batch: list[T]) -> list[R]:
    return [function(item) for item in batch]
