"""A function over many items on a few threads, its results in the items' order."""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Protocol, TypeVar

from clipmill.processes import available_cpus

T = TypeVar("T")
R = TypeVar("R")

# Items a thread takes at once: handing over one at a time costs as much as hashing a file.
_BATCH = 8
# Batches that wait for a thread, or for whoever takes the results, a thread.
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
        yield partial(_map, pool, num_threads)


def _map(
    pool: ThreadPoolExecutor, num_threads: int, function: Callable[[T], R], items: Iterable[T]
) -> Iterator[R]:
    iterator = iter(items)
    pending: deque[Future[list[R]]] = deque()
    while batch := list(itertools.islice(iterator, _BATCH)):
        pending.append(pool.submit(lambda batch: [function(item) for item in batch], batch))
        if len(pending) == _AHEAD * num_threads:
            yield from pending.popleft().result()
    for future in pending:
        yield from future.result()
