"""Processes that work side by side."""

import multiprocessing
import os
import threading
from concurrent.futures import ProcessPoolExecutor


def process_pool(num_processes: int = 0) -> ProcessPoolExecutor:
    """Processes started afresh, one a CPU if 0; they end when this one does, however it ends.

    One that forks, as is the custom, may hang where torch has started threads before.
    """
    context = multiprocessing.get_context("spawn")
    number = num_processes or len(os.sched_getaffinity(0))
    return ProcessPoolExecutor(number, mp_context=context, initializer=_end_with_parent)


def _end_with_parent() -> None:
    """A worker whose parent was killed would go on with what is queued for it."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, name="end-with-parent", daemon=True).start()
