"""Ranks, as ``torchrun`` sets them; a process alone is rank 0 of 1."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranks:
    """This process among all that train together."""

    rank: int = 0
    """Number of this process."""
    world_size: int = 1
    """Number of processes."""
    device: torch.device = torch.device("cpu")
    """Where this process computes."""

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module, averaging gradients over ranks where there are several."""
        if self.world_size == 1:
            return module
        ids = [self.device.index] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(module, device_ids=ids)


@contextlib.contextmanager
def ranks() -> Iterator[Ranks]:
    """Join the group that the environment names, and leave it at the end."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world_size == 1:
        yield Ranks(device=device)
        return
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        rank = torch.distributed.get_rank()
        yield Ranks(rank=rank, world_size=world_size, device=device)
    finally:
        torch.distributed.destroy_process_group()
