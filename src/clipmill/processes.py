"""Processes: how many side by side, on how many CPUs, and the memory that one keeps."""

import ctypes
import multiprocessing
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

_CGROUPS = Path("/sys/fs/cgroup")
_V1_FILES = ("quota", "period")
# glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT_BYTES: Final = 2**30


def available_cpus(cgroups: Path = _CGROUPS, memberships: str | None = None) -> int:
    """CPUs that this process may use: those of its affinity, within its cgroups' limits.

    A container's CPU limit leaves it every CPU of its node, each for a share of the time: as
    many threads as CPUs would then wait for each other. A limit of 2.5 CPUs counts as 2, below
    1 as 1. ``memberships`` is what /proc/self/cgroup holds. Cgroups of both versions are read.
    """
    if memberships is None:
        with suppress(OSError):
            memberships = Path("/proc/self/cgroup").read_text("ascii")
    limits = _limits(cgroups, memberships or "")
    return max(1, int(min([len(os.sched_getaffinity(0)), *limits])))


def _limits(cgroups: Path, memberships: str) -> Iterator[float]:
    """The CPU limits of the cgroups that a process is in, and of those above them."""
    for line in memberships.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = cgroups / controllers if controllers else cgroups
        # Within a container its own cgroup may be what is mounted as the root.
        for place in (root / path.lstrip("/"), *(root / path.lstrip("/")).parents):
            with suppress(OSError, ValueError):
                if controllers:
                    quota, period = ((place / f"cpu.cfs_{n}_us").read_text() for n in _V1_FILES)
                else:
                    quota, period = (place / "cpu.max").read_text().split()
                if int(quota) > 0:
                    yield int(quota) / int(period)
            if place == root:
                break


@contextmanager
def process_pool(num_processes: int = 0) -> Iterator[ProcessPoolExecutor]:
    """Processes started afresh, one a CPU if 0; they end when this one does, however it ends.

    What waits for them is dropped where the block raises. Processes that fork, as is the custom,
    may hang where torch has started threads before.
    """
    pool = ProcessPoolExecutor(
        num_processes or available_cpus(),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_end_with_parent,
    )
    try:
        yield pool
    except BaseException:
        pool.shutdown(cancel_futures=True)
        raise
    pool.shutdown()


def _end_with_parent() -> None:
    """A worker whose parent was killed would go on with what is queued for it."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, name="end-with-parent", daemon=True).start()


def keep_freed_memory() -> None:
    """Let freed memory stay with the process, for what is allocated next.

    glibc hands large blocks back at once, so that each pass of a network on a CPU would have its
    maps' pages mapped and zeroed anew. With another C library nothing changes.
    """
    with suppress(AttributeError, OSError):
        library = ctypes.CDLL(None)
        for parameter in (_TRIM_THRESHOLD, _MMAP_THRESHOLD):
            library.mallopt(parameter, _KEPT_BYTES)
