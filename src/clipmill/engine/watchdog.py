"""Who holds up a run: each rank tells where it is, and the first one says who is behind.

Ranks meet in the process group's store, which needs no step to end: a rank that hangs in a kernel,
in a collective or in its data still has a thread that tells so, and one that is lost has none.
"""

import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
import torch
from clipmill.engine.distributed import Ranks
from clipmill.telemetry import train_metrics
import signal
from types import FrameType, TracebackType

_LOG = logging.getLogger(__name__)

# Beats that a rank may miss before it counts as lost.
_MISSED_BEATS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Beat:
    """Where a rank was when it last told."""

    number: int
    """How often it has told."""
    step: int
    """Updates that it had done."""
    phase: str
    """What it was doing: ``data``, ``compute``, ``checkpoint`` or ``evaluation``."""
    seconds: float
    """For how long."""
    data_seconds: float
    """How long it has waited for data in all."""

    def words(self, rank: int) -> str:
        """``rank 1 at step 12, waiting for data for 61 s``."""
        doing = {"data": "waiting for data", "compute": "computing, or waiting for other ranks"}
        return (
            f"rank {rank} at step {self.step}, {doing.get(self.phase, f'in its {self.phase}')} "
            f"for {self.seconds:.0f} s"
        )


class Watchdog:
    """Context manager with a thread that tells this rank's beats, and on rank 0 watches all."""

    def __init__(
        self,
        here: Ranks,
        *,
        hang_seconds: float,
        heartbeat_seconds: float,
        tell: Callable[[str], None] = _LOG.error,
    ) -> None:
        self._here = here
        self._store = here.store.clone() if here.store is not None else None
        self._hang_seconds = hang_seconds
        self._heartbeat_seconds = heartbeat_seconds
        self._tell = tell
        self._told: tuple[int, ...] = ()
        self._place = (0, "compute", time.monotonic())
        self._data_seconds = 0.0
        self._number = 0
        self._heard: dict[int, tuple[Beat, float]] = {}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="clipmill-watchdog")

    def __enter__(self) -> Self:
        self._beat()
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

    def at(self, step: int, phase: str) -> None:
        """Note that this rank is now there; costs nothing to speak of."""
        now = time.monotonic()
        if self._place[1] == "data":
            self._data_seconds += now - self._place[2]
        self._place = (step, phase, now)

    def lost_ranks(self) -> str:
        """After a collective failed: the ranks that no longer beat, in words; takes a few beats."""
        if self._store is None:
            return "no other rank"
        try:
            before = self._beats()
            self._end.wait(_MISSED_BEATS * self._heartbeat_seconds)
            after = self._beats()
        except RuntimeError:
            return "the rank or agent that holds the store (rank 0, unless torchrun started it)"
        silent = [r for r, beat in after.items() if beat == before.get(r) and r != self._here.rank]
        return ", ".join(after[r].words(r) for r in silent) or "no rank that has stopped telling"

    def _watch(self) -> None:
        while not self._end.wait(self._heartbeat_seconds):
            # The store ends with the process that holds it; the training thread says so, too.
            with contextlib.suppress(RuntimeError):
                self._beat()
                if self._here.rank == 0:
                    self._look()

    def _beat(self) -> None:
        self._number += 1
        if self._store is not None:
            self._store.set(_key(self._here.rank), json.dumps(_plain(self._own())))

    def _own(self) -> Beat:
        step, phase, since = self._place
        return Beat(
            number=self._number,
            step=step,
            phase=phase,
            seconds=time.monotonic() - since,
            data_seconds=self._data_seconds,
        )

    def _beats(self) -> dict[int, Beat]:
        if self._store is None:
            return {0: self._own()}
        ranks = [r for r in range(self._here.world_size) if self._store.check([_key(r)])]
        return {r: Beat(**json.loads(self._store.get(_key(r)))) for r in ranks}

    def _look(self) -> None:
        """Report, once for each place where it happens, the ranks that hold the others up."""
        now = time.monotonic()
        for rank, beat in self._beats().items():
            train_metrics().rank_data_wait_seconds.labels(rank=str(rank)).set(beat.data_seconds)
            if rank not in self._heard or self._heard[rank][0].number != beat.number:
                self._heard[rank] = (beat, now)
        beats = {rank: beat for rank, (beat, _) in self._heard.items()}
        limit = max(self._hang_seconds, _MISSED_BEATS * self._heartbeat_seconds)
        lost = [r for r, (_, heard) in self._heard.items() if now - heard > limit]
        slow = any(beat.seconds > self._hang_seconds for beat in beats.values())
        if not (lost or slow):
            self._told = ()
            return
        steps = tuple(beat.step for beat in beats.values())
        if steps == self._told:
            return
        self._told = steps
        train_metrics().hangs.inc()
        if lost:
            places = "; ".join(beats[r].words(r) for r in lost)
            self._tell(f"not heard of for {limit:.0f} s: {places}")
            return
        behind = _behind(beats)
        others = "; ".join(b.words(r) for r, b in beats.items() if r not in behind) or "none"
        words = "; ".join(beats[r].words(r) for r in behind)
        self._tell(f"no update for {self._hang_seconds:.0f} s. Behind: {words}. Others: {others}")


def _behind(beats: dict[int, Beat]) -> list[int]:
    """The ranks at the lowest step; among those, any that does something else than compute.

    A rank that computes may only be waiting, in a collective, for one that doesn't get there.
    """
    lowest = min(beat.step for beat in beats.values())
    last = [rank for rank, beat in beats.items() if beat.step == lowest]
    busy = [rank for rank in last if beats[rank].phase != "compute"]
    return busy or last


def _key(rank: int) -> str:
    return f"clipmill/beat/{rank}"


def _plain(beat: Beat) -> dict[str, Any]:
    return {name: getattr(beat, name) for name in Beat.__slots__}


def is_lost_rank(error: BaseException) -> bool:
    """Whether a collective failed since another rank is gone, or didn't come in time."""
    if isinstance(error, torch.distributed.DistError):
        return True
    words = str(error).lower()
    signs = ("connection closed by peer", "connection reset by peer", "timed out", "gloo", "nccl")
    return isinstance(error, RuntimeError) and any(sign in words for sign in signs)



class StopSignal:
    """Context manager: while it lasts, SIGTERM only sets :attr:`requested`.

    Only a process's main thread can take signals; elsewhere it does nothing.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: Any = None
        self._is_main = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> Self:
        if self._is_main:
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._is_main:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self.requested = True
