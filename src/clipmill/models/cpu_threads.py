"""PyTorch's threads on a CPU, and images through a network: each by itself on its threads.

A batch's maps leave the caches that one image's fit in, and one thread's share of an operator is
too little to be worth sharing. ``benchmarks/task_throughput.py --batch 8`` measures it.
"""

import os
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from typing import Final, TypeVar

import torch

from clipmill.processes import available_cpus

# An event loop beside them, which answers probes and refuses what is too much, goes first.
_NICENESS: Final = 5

Item = TypeVar("Item")
Result = TypeVar("Result")


def use_threads(number: int = 0) -> None:
    """Let PyTorch use so many threads; 0: as many as it would, within the container's CPU limit."""
    torch.set_num_threads(number or min(torch.get_num_threads(), available_cpus()))


class CpuThreads:
    """The threads that PyTorch has when this is made, for several images at once."""

    def __init__(self) -> None:
        self._num_threads = torch.get_num_threads()
        self._pool = cache(self._new_pool)

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """``function`` of each item; what one raises comes through, once all have ended."""
        num_workers = min(len(items), self._num_threads)
        if num_workers < 2:
            return [function(item) for item in items]
        pool = self._pool(self._num_threads // num_workers)
        futures = [pool.submit(function, item) for item in items]
        wait(futures)
        # A worker's number is also what threads start with that PyTorch hasn't met yet.
        torch.set_num_threads(self._num_threads)
        return [future.result() for future in futures]

    def _new_pool(self, threads_each: int) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(
            self._num_threads // threads_each,
            thread_name_prefix="image",
            initializer=_begin,
            initargs=(threads_each,),
        )


def _begin(num_threads: int) -> None:
    torch.set_num_threads(num_threads)
    if sys.platform == "linux":  # where a thread has a priority of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
