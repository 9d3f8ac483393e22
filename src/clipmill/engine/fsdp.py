"""FSDP2: weights, gradients and moments of an objective sharded over ranks.

torch's FSDP modules take seconds to import, so functions import them where they shard.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from clipmill.engine.distributed import DistributedContext

# A block with fewer weights isn't worth a collective of its own.
_MIN_BLOCK_PARAMETERS = 100_000


def apply_fsdp(objective: nn.Module, dist: DistributedContext) -> nn.Module:
    """Shard in place, block by block; gradients are averaged over ranks.

    Scalars (a logit scale) can't be sharded: they are replicated, and
    :func:`all_reduce_scalar_grads` must follow each backward pass.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(dist.device.type, (dist.world_size,))
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


def all_reduce_scalar_grads(objective: nn.Module, dist: DistributedContext) -> None:
    """Average the gradients of replicated scalars over ranks."""
    gradients = [
        p.grad for p in objective.parameters() if p.grad is not None and not is_sharded(p.grad)
    ]
    if gradients:
        mean = dist.all_reduce_sum(torch.stack(gradients)) / dist.world_size
        for gradient, value in zip(gradients, mean.unbind(), strict=True):
            gradient.copy_(value)


def full_tensor(tensor: Tensor) -> Tensor:
    """Gather a tensor that may be sharded; a collective, called on all ranks together."""
    sharded: Any = tensor
    full: Tensor = sharded.full_tensor() if is_sharded(tensor) else tensor
    return full


def full_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gather each tensor that is sharded."""
    return {name: full_tensor(tensor) for name, tensor in tensors.items()}


def distribute_like(value: Tensor, model: Tensor) -> Tensor:
    """Return a full tensor sharded as ``model`` is, on its device."""
    value = value.to(model.device)
    if is_sharded(model):
        from torch.distributed.tensor import distribute_tensor

        layout: Any = model
        # Every rank has the full tensor, so none has to send a part.
        return distribute_tensor(value, layout.device_mesh, layout.placements, src_data_rank=None)
    return value


def total_norm(tensors: Iterable[Tensor]) -> Tensor:
    """Return the norm over all tensors, the same on each rank."""
    tensors = list(tensors)
    sharded = [t for t in tensors if is_sharded(t)]
    plain = [t for t in tensors if not is_sharded(t)]
    norms = [full_tensor(torch.nn.utils.get_total_norm(part)) for part in (sharded, plain) if part]
    return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))


def is_sharded(tensor: Tensor) -> bool:
    """Return whether a tensor is a DTensor, of which this rank has a part."""
    return hasattr(tensor, "full_tensor")
