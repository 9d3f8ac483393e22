"""A run's state between two steps: all that makes a resumed run equal to one never stopped.

Random numbers are no part of it: each step seeds them from the run's seed, its own number and the
rank. Tensors go by their parameters' names and whole, so that another number of ranks, sharded or
not, goes on from them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
import torch
from torch import Tensor
from clipmill.config import sha256_bytes
from clipmill.engine.spike_guard import Guard
from clipmill.engine.objective import Objective
from clipmill.engine.fsdp import like, whole_all
from clipmill.errors import ArtifactError, StorageError
from clipmill.storage import join, open_store, read_bytes, read_json, write_bytes, write_json
import json
from typing import Any
import logging
import threading
import time
from clipmill.engine.distributed import Ranks
from clipmill.errors import StorageError
from clipmill.telemetry import train_metrics

FORMAT = 2
_SUFFIX = ".safetensors"


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far a run has come."""

    step: int = 0
    """Updates done; also the loader's cursor."""
    log: tuple[dict[str, float], ...] = ()
    """Records logged so far."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Moving:
    """What an update changes."""

    objective: Objective
    """Weights and buffers."""
    optimizer: torch.optim.Optimizer
    """Moments."""
    averaged: Mapping[str, Tensor]
    """The moving average of weights and buffers, or nothing."""
    guard: Guard
    """The running mean of the loss."""

    def tensors(self) -> dict[str, Tensor]:
        """All of it by name, each tensor whole; all ranks must ask for it together."""
        found = {f"model/{k}": v for k, v in self.objective.state_dict().items()}
        found |= {f"average/{k}": v for k, v in self.averaged.items()}
        for name, parameter in self.objective.named_parameters():
            moments = self.optimizer.state.get(parameter, {})
            found |= {f"optimizer/{name}/{k}": v for k, v in moments.items()}
        found["guard/memory"] = self.guard.memory
        return {k: v.detach() for k, v in whole_all(found).items()}

    @torch.no_grad()
    def fill(self, tensors: Mapping[str, Tensor]) -> None:
        """Become what :meth:`tensors` gave.

        Raises:
            ArtifactError: the tensors are those of another model.
        """
        places = {f"model/{k}": v for k, v in self.objective.state_dict().items()}
        places |= {f"average/{k}": v for k, v in self.averaged.items()}
        places["guard/memory"] = self.guard.memory
        parameters = dict(self.objective.named_parameters())
        moments = {k: v for k, v in tensors.items() if k.startswith("optimizer/")}
        if places.keys() != tensors.keys() - moments.keys() or any(
            places[name].shape != tensors[name].shape for name in places
        ):
            raise ArtifactError(
                "the saved state of this run is that of another model",
                expected=f"{len(places)} tensors of weights, as this version of the model has them",
                action="remove the run's folder named state, or go on with the version of clipmill "
                "that began it",
            )
        for name, place in places.items():
            place.copy_(like(tensors[name], place))
        for key, value in moments.items():
            name, _, field = key.removeprefix("optimizer/").rpartition("/")
            parameter = parameters[name]
            # A copy: the optimiser changes it, and the file's bytes aren't ours to change. And in
            # the parameter's own order: the fused kernel pairs elements as they lie in memory.
            if value.ndim == 0:
                kept = value.to(parameter.device).clone()
            else:
                kept = torch.empty_like(parameter, dtype=value.dtype)
                kept.copy_(like(value, parameter))
            self.optimizer.state[parameter][field] = kept


def write_state(uri: str, progress: Progress, data: bytes | memoryview) -> None:
    """Write a state whose tensors' file is ``data``: the record comes last, and makes it whole."""
    name = _name(progress.step)
    write_bytes(join(uri, f"{name}{_SUFFIX}"), data)
    record = {
        "format": FORMAT,
        "step": progress.step,
        "log": list(progress.log),
        "sha256": sha256_bytes(data),
    }
    write_json(join(uri, f"{name}.json"), record)


def read_state(uri: str, step: int) -> tuple[Progress, dict[str, Tensor]]:
    """The state of that step.

    Raises:
        ArtifactError: it is cut, changed, or of another format.
        NotFoundError: it isn't there.
    """
    from safetensors.torch import load

    name = _name(step)
    record = read_json(join(uri, f"{name}.json"))
    data = read_bytes(join(uri, f"{name}{_SUFFIX}"))
    if record.get("format") != FORMAT or sha256_bytes(data) != record.get("sha256"):
        raise ArtifactError(
            f"{join(uri, name)}{_SUFFIX} isn't what its record says",
            expected=f"a whole state of format {FORMAT}",
            action="remove it; the run goes on from an earlier one, or from its start",
        )
    return Progress(step=record["step"], log=tuple(record["log"])), load(data)


def newest_state(uri: str) -> tuple[Progress, dict[str, Tensor]] | None:
    """The last state that is whole, or None; those that aren't are passed over."""
    for step in reversed(state_steps(uri)):
        try:
            return read_state(uri, step)
        except (ArtifactError, StorageError):
            continue
    return None


def state_steps(uri: str) -> list[int]:
    """The steps whose states have their record, ascending."""
    names = (key.removesuffix(".json") for key in open_store(uri).list("step-"))
    return sorted(int(n.removeprefix("step-")) for n in names if not n.endswith(_SUFFIX))


def keep_last(uri: str, num_kept: int) -> None:
    """Remove all states but the last ones, and what was left of writes that failed."""
    store = open_store(uri)
    kept = {_name(step) for step in state_steps(uri)[-num_kept:]}
    for key in sorted(store.list("step-")):  # a record goes before its tensors
        if key.rpartition(".")[0] not in kept:
            store.delete(key)


def drop_state(uri: str) -> None:
    """Remove what resuming needed, once the run's result is safe."""
    store = open_store(uri)
    for key in list(store.list()):
        store.delete(key)


def _name(step: int) -> str:
    return f"step-{step:08d}"


_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_ALIGNMENT = 64


class Snapshot:
    """The bytes of a safetensors file that holds these tensors."""

    def __init__(self, tensors: Mapping[str, Tensor], *, pinned: bool = False) -> None:
        # Wide types first: then every tensor starts at a multiple of its own width.
        order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
        places: dict[str, Any] = {}
        at = 0
        for name in order:
            tensor = tensors[name]
            end = at + tensor.numel() * tensor.element_size()
            places[name] = {
                "dtype": _NAMES[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [at, end],
            }
            at = end
        header = json.dumps(places).encode()
        header += b" " * (-(8 + len(header)) % _ALIGNMENT)
        start = 8 + len(header)
        file = torch.empty(start + at, dtype=torch.uint8, pin_memory=pinned)
        file[:start] = torch.frombuffer(
            bytearray(len(header).to_bytes(8, "little") + header), dtype=torch.uint8
        )
        self._file = file
        self._views = {
            name: file[start + place["data_offsets"][0] : start + place["data_offsets"][1]]
            .view(tensors[name].dtype)
            .view(tensors[name].shape)
            for name, place in places.items()
        }

    def fits(self, tensors: Mapping[str, Tensor]) -> bool:
        """Whether these tensors have the names, types and shapes that it was laid out for."""
        return self._views.keys() == tensors.keys() and all(
            view.dtype == tensors[name].dtype and view.shape == tensors[name].shape
            for name, view in self._views.items()
        )

    def fill(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy the tensors in; returns when their values may change again."""
        for name, view in self._views.items():
            view.copy_(tensors[name].detach(), non_blocking=True)
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    @property
    def data(self) -> memoryview:
        """The file."""
        return self._file.numpy().data


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
