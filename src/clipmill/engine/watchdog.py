"""Hanging and lost ranks, and SIGTERM.

Each rank publishes a heartbeat with its step and phase in the process group's store, which needs no
step to end: a rank that hangs in a kernel, in a collective or in its data still has a thread that
publishes, and one that is lost has none. Rank 0 reports the ranks that delay the others.
"""

import contextlib
import json
import logging
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any, Self

import torch

from clipmill.engine.distributed import DistributedContext
from clipmill.telemetry import train_metrics

_LOG = logging.getLogger(__name__)

# Heartbeats that a rank may miss before it counts as lost.
_MISSED_HEARTBEATS = 3


class SigtermHandler:
    """Context manager in which SIGTERM, as Kubernetes sends it, only sets :attr:`requested`.

    The trainer acts on it between two steps. Only a process's main thread can handle signals; in
    others it does nothing.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: Any = None
        self._is_main = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> Self:
        if self._is_main:
            self._previous = signal.signal(signal.SIGTERM, self._set_requested)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._is_main:
            signal.signal(signal.SIGTERM, self._previous)

    def _set_requested(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self.requested = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Heartbeat:
    """Position of a rank in its run."""

    number: int
    """Number of heartbeats so far."""
    step: int
    """Updates done."""
    phase: str
    """Current phase: ``data``, ``compute``, ``checkpoint`` or ``evaluation``."""
    seconds: float
    """Time in that phase."""
    data_seconds: float
    """Total time spent waiting for data."""
    energy_joules: float | None
    """Energy of the rank's device so far; None where it can't be read."""

    def describe(self, rank: int) -> str:
        """Return ``rank 1 at step 12, waiting for data for 61 s``."""
        doing = {"data": "waiting for data", "compute": "computing, or waiting for other ranks"}
        return (
            f"rank {rank} at step {self.step}, {doing.get(self.phase, f'in its {self.phase}')} "
            f"for {self.seconds:.0f} s"
        )


class Watchdog:
    """Context manager with a thread that publishes heartbeats, and on rank 0 checks all of them."""

    def __init__(
        self,
        dist: DistributedContext,
        *,
        step_timeout_seconds: float,
        heartbeat_interval_seconds: float,
        read_energy: Callable[[], float | None] = lambda: None,
        log: Callable[[str], None] = _LOG.error,
    ) -> None:
        self._dist = dist
        self._store = dist.store.clone() if dist.store is not None else None
        self._step_timeout_seconds = step_timeout_seconds
        self._heartbeat_interval_seconds = heartbeat_interval_seconds
        self._log = log
        self._read_energy = read_energy
        self._energy_lock = threading.Lock()
        self._reported: tuple[int, ...] = ()
        self._position = (0, "compute", time.monotonic())
        self._data_seconds = 0.0
        self._number = 0
        self._received: dict[int, tuple[Heartbeat, float]] = {}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="clipmill-watchdog")

    def __enter__(self) -> Self:
        self._publish()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end.set()
        self._thread.join()

    def set_phase(self, step: int, phase: str) -> None:
        """Set this rank's step and phase; takes no noticeable time."""
        now = time.monotonic()
        if self._position[1] == "data":
            self._data_seconds += now - self._position[2]
        self._position = (step, phase, now)

    def lost_ranks(self) -> str:
        """Describe the ranks without a heartbeat, after a failed collective; takes seconds."""
        if self._store is None:
            return "no other rank"
        try:
            before = self._heartbeats()
            self._end.wait(_MISSED_HEARTBEATS * self._heartbeat_interval_seconds)
            after = self._heartbeats()
        except RuntimeError:
            return "the rank or agent that holds the store (rank 0, unless torchrun started it)"
        silent = [r for r, beat in after.items() if beat == before.get(r) and r != self._dist.rank]
        return ", ".join(after[r].describe(r) for r in silent) or "no rank without a heartbeat"

    def total_energy(self) -> float | None:
        """Return the energy of all ranks' devices so far, J; None if one can't be read.

        That of other ranks is from their last heartbeat. For rank 0.
        """
        beats = [beat for r, (beat, _) in list(self._received.items()) if r != self._dist.rank]
        joules = [self._own_energy(), *(beat.energy_joules for beat in beats)]
        known = [value for value in joules if value is not None]
        return sum(known) if len(known) == self._dist.world_size else None

    def _watch(self) -> None:
        while not self._end.wait(self._heartbeat_interval_seconds):
            # The store ends with the process that holds it; the training thread reports that.
            with contextlib.suppress(RuntimeError):
                self._publish()
                if self._dist.rank == 0:
                    self._check_stragglers()

    def _publish(self) -> None:
        self._number += 1
        if self._store is not None:
            heartbeat = self._own_heartbeat()
            values = {name: getattr(heartbeat, name) for name in Heartbeat.__slots__}
            self._store.set(_key(self._dist.rank), json.dumps(values))

    def _own_heartbeat(self) -> Heartbeat:
        step, phase, since = self._position
        return Heartbeat(
            number=self._number,
            step=step,
            phase=phase,
            seconds=time.monotonic() - since,
            data_seconds=self._data_seconds,
            energy_joules=self._own_energy(),
        )

    def _own_energy(self) -> float | None:
        with self._energy_lock:  # a counter of a CPU isn't safe to read from two threads
            return self._read_energy()

    def _heartbeats(self) -> dict[int, Heartbeat]:
        if self._store is None:
            return {0: self._own_heartbeat()}
        ranks = [r for r in range(self._dist.world_size) if self._store.check([_key(r)])]
        return {r: Heartbeat(**json.loads(self._store.get(_key(r)))) for r in ranks}

    def _check_stragglers(self) -> None:
        """Report the ranks that delay the others, once for each combination of steps."""
        now = time.monotonic()
        for rank, beat in self._heartbeats().items():
            previous = self._received[rank][0] if rank in self._received else None
            if rank != self._dist.rank:
                waited = beat.data_seconds - (previous.data_seconds if previous else 0)
                train_metrics().data_wait_seconds.labels(rank=str(rank)).inc(max(0, waited))
            if previous is None or previous.number != beat.number:
                self._received[rank] = (beat, now)
        beats = {rank: beat for rank, (beat, _) in self._received.items()}
        limit = max(
            self._step_timeout_seconds, _MISSED_HEARTBEATS * self._heartbeat_interval_seconds
        )
        lost = [r for r, (_, received) in self._received.items() if now - received > limit]
        is_slow = any(beat.seconds > self._step_timeout_seconds for beat in beats.values())
        if not (lost or is_slow):
            self._reported = ()
            return
        steps = tuple(beat.step for beat in beats.values())
        if steps == self._reported:
            return
        self._reported = steps
        train_metrics().watchdog_timeouts.inc()
        if lost:
            ranks = "; ".join(beats[r].describe(r) for r in lost)
            self._log(f"no heartbeat for {limit:.0f} s: {ranks}")
            return
        slowest = _slowest_ranks(beats)
        behind = "; ".join(beats[r].describe(r) for r in slowest)
        others = "; ".join(b.describe(r) for r, b in beats.items() if r not in slowest) or "none"
        timeout = self._step_timeout_seconds
        self._log(f"no update for {timeout:.0f} s. Behind: {behind}. Others: {others}")


def _slowest_ranks(beats: dict[int, Heartbeat]) -> list[int]:
    """Return the ranks at the lowest step; among those, any in another phase than compute.

    A rank that computes may only be waiting, in a collective, for one that doesn't get there.
    """
    lowest = min(beat.step for beat in beats.values())
    last = [rank for rank, beat in beats.items() if beat.step == lowest]
    busy = [rank for rank in last if beats[rank].phase != "compute"]
    return busy or last


def _key(rank: int) -> str:
    return f"clipmill/beat/{rank}"


def is_lost_rank(error: BaseException) -> bool:
    """Return whether a collective failed because another rank is gone, or too late."""
    if isinstance(error, torch.distributed.DistError):
        return True
    message = str(error).lower()
    signs = ("connection closed by peer", "connection reset by peer", "timed out", "gloo", "nccl")
    return isinstance(error, RuntimeError) and any(sign in message for sign in signs)
