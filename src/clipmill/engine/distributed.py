"""The process group that ``torchrun`` describes, and FSDP2 over it.

A single process is rank 0 of 1. FSDP shards an objective's weights, gradients and moments over
ranks; torch's FSDP modules take seconds to import, so functions import them where they shard.
"""

import contextlib
import datetime as dt
import itertools
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous
from torch.nn.modules.batchnorm import _BatchNorm

from clipmill.errors import ConfigError
from clipmill.processes import local_rank

_rendezvous_count = itertools.count()


@dataclass(frozen=True, kw_only=True, slots=True)
class DistributedContext:
    """This process in the process group: its rank, its device, and collectives."""

    rank: int = 0
    """Index of this process."""
    world_size: int = 1
    """Number of processes."""
    device: torch.device = torch.device("cpu")
    """Device of this process."""
    store: Store | None = None
    """Key-value store shared by all ranks; None for a single process."""

    def wrap_ddp(self, module: nn.Module) -> nn.Module:
        """Wrap a module in DDP, which averages gradients over ranks, if there are several."""
        if self.world_size == 1:
            return module
        return nn.parallel.DistributedDataParallel(
            module,
            device_ids=[self.device.index] if self.device.type == "cuda" else None,
            # Only batch statistics differ between ranks.
            forward_sync_buffers=any(isinstance(m, _BatchNorm) for m in module.modules()),
            gradient_as_bucket_view=True,
        )

    def per_rank_batch_size(self, batch_size: int, grad_accum_steps: int) -> int:
        """Return the samples of a global batch that this rank takes.

        Raises:
            ConfigError: the batch can't be cut into equal micro-batches.
        """
        if batch_size % (self.world_size * grad_accum_steps):
            raise ConfigError(
                f"batch_size was {batch_size}, with {self.world_size} ranks "
                f"and grad_accum_steps={grad_accum_steps}: not divisible into equal micro-batches",
                expected="batch_size divisible by grad_accum_steps times the number of ranks",
                action="change one of them",
            )
        return batch_size // self.world_size

    def broadcast_int(self, number: int) -> int:
        """Return rank 0's number on all ranks."""
        if self.world_size == 1:
            return number
        value = torch.tensor([number], dtype=torch.int64, device=self.device)
        torch.distributed.broadcast(value, src=0)
        return int(value)

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        """Sum over all ranks, in place."""
        if self.world_size > 1:
            torch.distributed.all_reduce(values)
        return values


@contextlib.contextmanager
def init_distributed(timeout_seconds: float = 1800.0) -> Iterator[DistributedContext]:
    """Join the group that the environment names, and leave it at the end.

    A rank that waits for another one longer than ``timeout_seconds`` fails.

    Raises:
        ConfigError: this machine has GPUs, but none for this rank.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    gpu = local_rank()
    device = torch.device("cuda", gpu) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        _check_gpu(gpu, torch.cuda.device_count())
        torch.cuda.set_device(device)
    if world_size == 1:
        yield DistributedContext(device=device)
        return
    timeout = dt.timedelta(seconds=timeout_seconds)
    store, rank, world_size = next(rendezvous("env://", timeout=timeout))
    # A process may join several groups in turn, in one store that keeps the earlier groups' keys.
    store = PrefixStore(f"group-{next(_rendezvous_count)}", store)
    torch.distributed.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=store,
        rank=rank,
        world_size=world_size,
        timeout=timeout,
    )
    try:
        yield DistributedContext(rank=rank, world_size=world_size, device=device, store=store)
    finally:
        torch.distributed.destroy_process_group()


def _check_gpu(gpu: int, num_gpus: int) -> None:
    """Refuse a rank without a GPU (ConfigError); NCCL would wait until its timeout."""
    if gpu >= num_gpus:
        raise ConfigError(
            f"rank {gpu} of this machine has no GPU: there are {num_gpus}",
            expected="a GPU for each rank",
            action=f"start {num_gpus} ranks a machine (torchrun --nproc-per-node {num_gpus}), or "
            "train on its processors (CUDA_VISIBLE_DEVICES= in the environment)",
        )


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
