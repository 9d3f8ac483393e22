"""FSDP2: an objective whose weights, gradients and moments are shared out among ranks.

Its modules take seconds to import, so that only those who shard do.
"""

from collections.abc import Iterable
from typing import Any
import torch
from torch import Tensor, nn
from clipmill.engine.distributed import Ranks

# A block with fewer weights isn't worth a collective of its own.
_MIN_BLOCK_PARAMETERS = 100_000


def shard(objective: nn.Module, here: Ranks) -> nn.Module:
    """Shard in place, each block of a stack by itself; gradients are averaged over ranks.

    Scalars (a logit scale) can't be sharded: they stay whole, and :func:`average_scalars` must
    follow each backward pass.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(here.device.type, (here.world_size,))
    scalars = {p for p in objective.parameters() if p.ndim == 0}
    for stack in [m for m in objective.modules() if isinstance(m, nn.ModuleList | nn.Sequential)]:
        for block in stack:
            sizes = [p.numel() for p in block.parameters() if not is_sharded(p)]
            if sum(sizes) >= _MIN_BLOCK_PARAMETERS:
                fully_shard(block, mesh=mesh, ignored_params=scalars)
    fully_shard(objective, mesh=mesh, ignored_params=scalars)
    if hasattr(objective, "features"):
        # Called from outside, by objectives that cache features: weights must be gathered first.
        register_fsdp_forward_method(objective, "features")
    return objective


def average_scalars(objective: nn.Module, here: Ranks) -> None:
    """Average over ranks the gradients that FSDP leaves alone."""
    gradients = [
        p.grad for p in objective.parameters() if p.grad is not None and not is_sharded(p.grad)
    ]
    if gradients:
        mean = here.total(torch.stack(gradients)) / here.world_size
        for gradient, value in zip(gradients, mean.unbind(), strict=True):
            gradient.copy_(value)


def whole(tensor: Tensor) -> Tensor:
    """The tensor as one process has it; all ranks must ask for it together."""
    kind: Any = tensor
    found: Tensor = kind.full_tensor() if is_sharded(tensor) else tensor
    return found


def whole_all(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each of them whole."""
    return {name: whole(tensor) for name, tensor in tensors.items()}


def like(value: Tensor, model: Tensor) -> Tensor:
    """A whole tensor laid out as ``model`` is, on its device."""
    value = value.to(model.device)
    if is_sharded(model):
        from torch.distributed.tensor import distribute_tensor

        layout: Any = model
        # Every rank has the whole of it, so none need send a part.
        return distribute_tensor(value, layout.device_mesh, layout.placements, src_data_rank=None)
    return value


def norm_of(tensors: Iterable[Tensor]) -> Tensor:
    """The norm over all of them, the same on each rank."""
    tensors = list(tensors)
    shared = [t for t in tensors if is_sharded(t)]
    plain = [t for t in tensors if not is_sharded(t)]
    norms = [whole(torch.nn.utils.get_total_norm(part)) for part in (shared, plain) if part]
    return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))


def is_sharded(tensor: Tensor) -> bool:
    """Whether it is a DTensor, of which this rank has a part."""
    return hasattr(tensor, "full_tensor")
