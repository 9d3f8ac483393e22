"""A function over many items on a few threads, its results in the items' order."""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

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


def ordered_map(
    pool: Executor, num_threads: int, function: Callable[[T], R], items: Iterable[T]
) -> Iterator[R]:
    """Yield ``function(item)`` for each; ``pool`` has ``num_threads``, and is little ahead."""
    iterator = iter(items)
    pending: deque[Future[list[R]]] = deque()
    while batch := list(itertools.islice(iterator, _BATCH)):
        pending.append(pool.submit(lambda batch: [function(item) for item in batch], batch))
        if len(pending) == _AHEAD * num_threads:
            yield from pending.popleft().result()
    for future in pending:
        yield from future.result()
