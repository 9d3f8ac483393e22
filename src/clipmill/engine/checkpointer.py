"""States written beside the training: a copy on its thread, the rest on another."""

import logging
import threading
import time

from torch import Tensor

from clipmill.engine.distributed import Ranks
from clipmill.engine.snapshot import Snapshot
from clipmill.engine.state import (
    Moving,
    Progress,
    keep_last,
    newest_state,
    read_state,
    state_steps,
    write_state,
)
from clipmill.errors import StorageError
from clipmill.telemetry import train_metrics

_LOG = logging.getLogger(__name__)


class Checkpointer:
    """Saves states under a URI, one at a time, and brings a run back to the last whole one."""

    def __init__(self, uri: str, moving: Moving, here: Ranks, *, num_kept: int) -> None:
        self._uri = uri
        self._moving = moving
        self._here = here
        self._num_kept = num_kept
        self._snapshot: Snapshot | None = None
        self._writer: threading.Thread | None = None
        self._error: BaseException | None = None
        self._metrics = train_metrics()

    def restore(self) -> Progress:
        """Go to the last whole state, the same on all ranks; a run without one is at its start."""
        found = newest_state(self._uri) if self._here.rank == 0 else None
        step = self._here.agreed(found[0].step if found else 0)
        if step == 0:
            return Progress()
        progress, tensors = found or read_state(self._uri, step)
        self._moving.fill(tensors)
        return progress

    def save(self, progress: Progress) -> None:
        """Copy the state now, and write it beside the training; all ranks must call it together.

        It waits for the write before it. One that fails for want of space or of a store is a
        warning, and leaves the states that are there.
        """
        started = time.perf_counter()
        tensors = self._moving.tensors()
        if self._here.rank == 0:
            self._settle()
            snapshot = self._filled(tensors)
            self._writer = threading.Thread(
                target=self._write, args=(progress, snapshot), name="clipmill-checkpoint"
            )
            self._writer.start()
        stall = time.perf_counter() - started
        self._metrics.checkpoint_seconds.labels(part="stall").observe(stall)

    def finish(self, *, must: bool) -> None:
        """Wait for the write under way; raise its StorageError if it ``must`` succeed."""
        error = self._settle()
        if must and error is not None:
            raise error

    def _settle(self) -> StorageError | None:
        if self._writer is not None:
            self._writer.join()
            self._writer = None
        error, self._error = self._error, None
        if error is not None and not isinstance(error, StorageError):
            raise error
        return error

    def _filled(self, tensors: dict[str, Tensor]) -> Snapshot:
        snapshot = self._snapshot
        pinned = self._here.device.type == "cuda"
        if snapshot is None or not snapshot.fits(tensors):
            snapshot = Snapshot(tensors, pinned=pinned)
        # Pinned memory is dear to get, and the host's is plenty; a CPU run wants its memory back.
        self._snapshot = snapshot if pinned else None
        snapshot.fill(tensors)
        return snapshot

    def _write(self, progress: Progress, snapshot: Snapshot) -> None:
        started = time.perf_counter()
        try:
            self._write_with_room(progress, snapshot)
            keep_last(self._uri, self._num_kept)
        except StorageError as error:
            self._error = error
            self._metrics.checkpoints.labels(result="failed").inc()
            steps = _steps_if_listed(self._uri)
            _LOG.warning(
                "the state of step %d wasn't saved: %s (whole states are there of steps %s)",
                progress.step,
                error.what,
                steps,
            )
        except BaseException as error:  # noqa: BLE001 - raised again on the training's thread
            self._error = error
        else:
            self._metrics.checkpoints.labels(result="saved").inc()
        self._metrics.checkpoint_seconds.labels(part="write").observe(time.perf_counter() - started)

    def _write_with_room(self, progress: Progress, snapshot: Snapshot) -> None:
        """Write; where that fails, give up all older states but the last one, and try again."""
        try:
            write_state(self._uri, progress, snapshot.data)
        except StorageError:
            if len(state_steps(self._uri)) < 2:
                raise
            keep_last(self._uri, 1)
            write_state(self._uri, progress, snapshot.data)


def _steps_if_listed(uri: str) -> list[int] | None:
    """The steps of the states at a URI, or None where the store doesn't even list them."""
    try:
        return state_steps(uri)
    except StorageError:
        return None
