"""Processes that work side by side."""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor


def process_pool(num_processes: int = 0) -> ProcessPoolExecutor:
    """Processes started afresh, one a CPU if 0.

    One that forks, as is the custom, may hang where torch has started threads before.
    """
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(num_processes or len(os.sched_getaffinity(0)), mp_context=context)
