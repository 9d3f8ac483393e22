"""Training checkpoints: all state that makes a resumed run equal to one that was never stopped.

Random numbers are no part of it: each step seeds them from the run's seed, its own number and the
rank. Tensors go by their parameters' names and unsharded, so that another number of ranks, sharded
or not, can resume from them.

Saving copies the state on the training thread; another thread hashes and writes it. The copy goes
straight into the bytes of a safetensors file, so that it is the only one. The format is the length
of the header, header, data (https://huggingface.co/docs/safetensors).
"""

import json
import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clipmill.config import sha256_bytes
from clipmill.engine.distributed import DistributedContext, distribute_like, full_tensors
from clipmill.engine.objective import Objective
from clipmill.engine.spike_guard import LossSpikeGuard
from clipmill.errors import ArtifactError, StorageError, StoreUnavailableError
from clipmill.storage import join, open_store, read_bytes, read_json, write_bytes, write_json
from clipmill.telemetry import CheckpointPhase, Outcome, train_metrics

FORMAT = 2
_SUFFIX = ".safetensors"
_ALIGNMENT = 64
_DTYPE_NAMES = {
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
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainProgress:
    """Progress of a run."""

    step: int = 0
    """Updates done; also the dataloader's start."""
    log: tuple[dict[str, float], ...] = ()
    """Records logged so far."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainState:
    """State that an update changes."""

    objective: Objective
    """Weights and buffers."""
    optimizer: torch.optim.Optimizer
    """Moments."""
    ema: Mapping[str, Tensor]
    """TrainState average of weights and buffers; empty without one."""
    spike_guard: LossSpikeGuard
    """Running mean of the loss."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return all tensors by name, unsharded; a collective, called on all ranks together."""
        tensors = {f"model/{k}": v for k, v in self.objective.state_dict().items()}
        tensors |= {f"average/{k}": v for k, v in self.ema.items()}
        for name, parameter in self.objective.named_parameters():
            moments = self.optimizer.state.get(parameter, {})
            tensors |= {f"optimizer/{name}/{k}": v for k, v in moments.items()}
        tensors["guard/memory"] = self.spike_guard.memory
        return {k: v.detach() for k, v in full_tensors(tensors).items()}

    @torch.no_grad()
    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the tensors of :meth:`state_dict`.

        Raises:
            ArtifactError: the tensors are those of another model.
        """
        targets = {f"model/{k}": v for k, v in self.objective.state_dict().items()}
        targets |= {f"average/{k}": v for k, v in self.ema.items()}
        targets["guard/memory"] = self.spike_guard.memory
        parameters = dict(self.objective.named_parameters())
        moments = {k: v for k, v in tensors.items() if k.startswith("optimizer/")}
        if targets.keys() != tensors.keys() - moments.keys() or any(
            targets[name].shape != tensors[name].shape for name in targets
        ):
            raise ArtifactError(
                "the training checkpoint's parameters don't match this model",
                expected=f"{len(targets)} tensors, as this version of the model has them",
                action="remove the run's folder named state, or resume with the version of "
                "clipmill that started it",
            )
        for name, target in targets.items():
            target.copy_(distribute_like(tensors[name], target))
        for key, value in moments.items():
            name, _, field = key.removeprefix("optimizer/").rpartition("/")
            parameter = parameters[name]
            # A copy, since the optimizer changes it and the file's bytes are read-only; and in the
            # parameter's memory order, since the fused kernel pairs elements as they lie there.
            if value.ndim == 0:
                moment = value.to(parameter.device).clone()
            else:
                moment = torch.empty_like(parameter, dtype=value.dtype)
                moment.copy_(distribute_like(value, parameter))
            self.optimizer.state[parameter][field] = moment


class SafetensorsBuffer:
    """The bytes of a safetensors file in memory: laid out once, filled for each checkpoint."""

    def __init__(self, tensors: Mapping[str, Tensor], *, pinned: bool = False) -> None:
        # Wide types first: then every tensor starts at a multiple of its own width.
        order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
        layout: dict[str, Any] = {}
        offset = 0
        for name in order:
            tensor = tensors[name]
            end = offset + tensor.numel() * tensor.element_size()
            layout[name] = {
                "dtype": _DTYPE_NAMES[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [offset, end],
            }
            offset = end
        header = json.dumps(layout).encode()
        header += b" " * (-(8 + len(header)) % _ALIGNMENT)
        start = 8 + len(header)
        file = torch.empty(start + offset, dtype=torch.uint8, pin_memory=pinned)
        file[:start] = torch.frombuffer(
            bytearray(len(header).to_bytes(8, "little") + header), dtype=torch.uint8
        )
        self._file = file
        self._views = {
            name: file[start + entry["data_offsets"][0] : start + entry["data_offsets"][1]]
            .view(tensors[name].dtype)
            .view(tensors[name].shape)
            for name, entry in layout.items()
        }

    def matches(self, tensors: Mapping[str, Tensor]) -> bool:
        """Return whether the tensors have the names, types and shapes of the layout."""
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
        """The file's bytes."""
        return self._file.numpy().data


class Checkpointer:
    """Saves training checkpoints under a URI, one at a time, and restores the last complete one."""

    def __init__(
        self, uri: str, state: TrainState, dist: DistributedContext, *, keep_last: int
    ) -> None:
        self._uri = uri
        self._state = state
        self._dist = dist
        self._keep_last = keep_last
        self._buffer: SafetensorsBuffer | None = None
        self._writer: threading.Thread | None = None
        self._error: BaseException | None = None
        self._metrics = train_metrics()

    def restore(self) -> TrainProgress:
        """Load the last complete checkpoint, the same on all ranks; step 0 where there is none."""
        latest = latest_checkpoint(self._uri) if self._dist.rank == 0 else None
        step = self._dist.broadcast_int(latest[0].step if latest else 0)
        if step == 0:
            return TrainProgress()
        progress, tensors = latest or read_checkpoint(self._uri, step)
        self._state.load_state_dict(tensors)
        return progress

    def save(self, progress: TrainProgress) -> None:
        """Copy the state now, and write it in the background; a collective.

        It waits for the previous write. A write that fails for lack of space or because of the
        store is logged as a warning, and leaves the earlier checkpoints.
        """
        started = time.perf_counter()
        tensors = self._state.state_dict()
        if self._dist.rank == 0:
            self._wait_for_pending_write()
            buffer = self._copy_to_host(tensors)
            self._writer = threading.Thread(
                target=self._write, args=(progress, buffer), name="clipmill-checkpoint"
            )
            self._writer.start()
        stall = time.perf_counter() - started
        self._metrics.checkpoint_seconds.labels(phase=CheckpointPhase.BLOCKING).observe(stall)

    def finish(self, *, must_succeed: bool) -> None:
        """Wait for the pending write; raise its StorageError if it ``must_succeed``."""
        error = self._wait_for_pending_write()
        if must_succeed and error is not None:
            raise error

    def _wait_for_pending_write(self) -> StorageError | None:
        if self._writer is not None:
            self._writer.join()
            self._writer = None
        error, self._error = self._error, None
        if error is not None and not isinstance(error, StorageError):
            raise error
        return error

    def _copy_to_host(self, tensors: dict[str, Tensor]) -> SafetensorsBuffer:
        buffer = self._buffer
        pinned = self._dist.device.type == "cuda"
        if buffer is None or not buffer.matches(tensors):
            buffer = SafetensorsBuffer(tensors, pinned=pinned)
        # Pinned memory is expensive to allocate and the host has plenty; a CPU run needs it back.
        self._buffer = buffer if pinned else None
        buffer.fill(tensors)
        return buffer

    def _write(self, progress: TrainProgress, buffer: SafetensorsBuffer) -> None:
        started = time.perf_counter()
        try:
            self._write_or_prune_and_retry(progress, buffer)
            prune_checkpoints(self._uri, self._keep_last)
        except StorageError as error:
            self._error = error
            self._metrics.checkpoints.labels(outcome=Outcome.FAILURE).inc()
            steps = _steps_if_listed(self._uri)
            _LOG.warning(
                "the checkpoint of step %d wasn't saved: %s (complete checkpoints: steps %s)",
                progress.step,
                error.what,
                steps,
            )
        except BaseException as error:  # noqa: BLE001 - raised again on the training thread
            self._error = error
        else:
            self._metrics.checkpoints.labels(outcome=Outcome.SUCCESS).inc()
        seconds = self._metrics.checkpoint_seconds.labels(phase=CheckpointPhase.BACKGROUND)
        seconds.observe(time.perf_counter() - started)

    def _write_or_prune_and_retry(self, progress: TrainProgress, buffer: SafetensorsBuffer) -> None:
        """Write; where that fails, delete all older checkpoints but the last one, and retry."""
        try:
            write_checkpoint(self._uri, progress, buffer.data)
        except StorageError:
            if len(checkpoint_steps(self._uri)) < 2:
                raise
            prune_checkpoints(self._uri, 1)
            write_checkpoint(self._uri, progress, buffer.data)


def write_checkpoint(uri: str, progress: TrainProgress, data: bytes | memoryview) -> None:
    """Write a checkpoint whose safetensors file is ``data``; its record comes last, as a commit."""
    name = _name(progress.step)
    write_bytes(join(uri, f"{name}{_SUFFIX}"), data)
    record = {
        "format": FORMAT,
        "step": progress.step,
        "log": list(progress.log),
        "sha256": sha256_bytes(data),
    }
    write_json(join(uri, f"{name}.json"), record)


def read_checkpoint(uri: str, step: int) -> tuple[TrainProgress, dict[str, Tensor]]:
    """Read the checkpoint of a step.

    Raises:
        ArtifactError: it is cut, changed, or of another format.
        NotFoundError: it doesn't exist.
    """
    from safetensors.torch import load

    name = _name(step)
    record = read_json(join(uri, f"{name}.json"))
    data = read_bytes(join(uri, f"{name}{_SUFFIX}"))
    if record.get("format") != FORMAT or sha256_bytes(data) != record.get("sha256"):
        raise ArtifactError(
            f"{join(uri, name)}{_SUFFIX} doesn't match its record",
            expected=f"a complete training checkpoint of format {FORMAT}",
            action="remove it; the run resumes from an earlier one, or from its start",
        )
    return TrainProgress(step=record["step"], log=tuple(record["log"])), load(data)


def latest_checkpoint(uri: str) -> tuple[TrainProgress, dict[str, Tensor]] | None:
    """Read the last complete checkpoint, or return None; incomplete ones are skipped.

    Raises:
        StoreUnavailableError: the store doesn't answer; an earlier checkpoint would lose steps.
    """
    for step in reversed(checkpoint_steps(uri)):
        try:
            return read_checkpoint(uri, step)
        except StoreUnavailableError:
            raise
        except (ArtifactError, StorageError):
            continue
    return None


def checkpoint_steps(uri: str) -> list[int]:
    """Return the steps whose checkpoints have their record, ascending."""
    names = (key.removesuffix(".json") for key in open_store(uri).list("step-"))
    return sorted(int(n.removeprefix("step-")) for n in names if not n.endswith(_SUFFIX))


def prune_checkpoints(uri: str, keep_last: int) -> None:
    """Delete all checkpoints but the last ones, and the remains of failed writes."""
    store = open_store(uri)
    kept = {_name(step) for step in checkpoint_steps(uri)[-keep_last:]}
    for key in sorted(store.list("step-")):  # a record is deleted before its tensors
        if key.rpartition(".")[0] not in kept:
            store.delete(key)


def _steps_if_listed(uri: str) -> list[int] | None:
    """Return the checkpoints' steps, or None where the store can't list them."""
    try:
        return checkpoint_steps(uri)
    except StorageError:
        return None


def _name(step: int) -> str:
    return f"step-{step:08d}"
