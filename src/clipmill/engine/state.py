"""A run's state between two steps: all that makes a resumed run equal to one never stopped.

Random numbers are no part of it: each step seeds them from the run's seed, its own number and the
rank. Tensors go by their parameters' names and whole, so that another number of ranks, sharded or
not, goes on from them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from clipmill.digest import sha256_bytes
from clipmill.engine.guard import Guard
from clipmill.engine.objective import Objective
from clipmill.engine.sharded import like, whole_all
from clipmill.errors import ArtifactError, StorageError
from clipmill.storage import join, open_store, read_bytes, read_json, write_bytes, write_json

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
