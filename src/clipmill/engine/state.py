"""A run's state between two steps: all that makes a resumed run equal to one never stopped."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clipmill.digest import sha256_bytes
from clipmill.engine.objective import Objective
from clipmill.storage import join, open_store, read_bytes, read_json, write_bytes, write_json

NUM_KEPT = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far a run has come."""

    step: int = 0
    """Updates done; also the loader's cursor."""
    log: tuple[dict[str, float], ...] = ()
    """Records logged so far."""


def save_state(
    uri: str,
    progress: Progress,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    averaged: Mapping[str, Tensor],
) -> None:
    """Write the state of ``progress.step``, whole or not at all; keep the last two."""
    from safetensors.torch import save

    tensors = {f"model/{k}": v for k, v in objective.state_dict().items()}
    tensors |= {f"average/{k}": v for k, v in averaged.items()}
    tensors["random/cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random/cuda"] = torch.cuda.get_rng_state()
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{k}": v for k, v in values.items()}
    data = save({k: v.detach().cpu().contiguous() for k, v in tensors.items()})
    name = f"step-{progress.step:08d}"
    write_bytes(join(uri, f"{name}.safetensors"), data)
    value = {"step": progress.step, "log": list(progress.log), "sha256": sha256_bytes(data)}
    write_json(join(uri, f"{name}.json"), value)
    store = open_store(uri)
    for old in _steps(uri)[:-NUM_KEPT]:
        for suffix in ("json", "safetensors"):
            store.delete(f"{old}.{suffix}")


def load_state(
    uri: str,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    averaged: dict[str, Tensor],
) -> Progress:
    """Bring everything to the last whole state; a run without one stands at its start."""
    from safetensors.torch import load

    for name in reversed(_steps(uri)):
        value = read_json(join(uri, f"{name}.json"))
        data = read_bytes(join(uri, f"{name}.safetensors"))
        if sha256_bytes(data) != value["sha256"]:
            continue
        tensors = load(data)
        objective.load_state_dict(_under(tensors, "model/"))
        for key, tensor in _under(tensors, "average/").items():
            averaged[key].copy_(tensor)
        state: dict[int, dict[str, Any]] = {}
        for key, tensor in _under(tensors, "optimizer/").items():
            index, _, field = key.partition("/")
            state.setdefault(int(index), {})[field] = tensor
        optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
        torch.set_rng_state(tensors["random/cpu"])
        if torch.cuda.is_available() and "random/cuda" in tensors:
            torch.cuda.set_rng_state(tensors["random/cuda"])
        return Progress(step=value["step"], log=tuple(value["log"]))
    return Progress()


def drop_state(uri: str) -> None:
    """Remove what resuming needed, once the run's result is safe."""
    store = open_store(uri)
    for key in list(store.list()):
        store.delete(key)


def _steps(uri: str) -> list[str]:
    return sorted(k.removesuffix(".json") for k in open_store(uri).list() if k.endswith(".json"))


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
