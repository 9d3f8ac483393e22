"""Ranks, as ``torchrun`` sets them; a process alone is rank 0 of 1."""

import contextlib
import datetime as dt
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous
from torch.nn.modules.batchnorm import _BatchNorm

from clipmill.errors import ConfigError

_meetings = itertools.count()


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranks:
    """This process among all that train together."""

    rank: int = 0
    """Number of this process."""
    world_size: int = 1
    """Number of processes."""
    device: torch.device = torch.device("cpu")
    """Where this process computes."""
    store: Store | None = None
    """What all ranks read and write; None for a process alone."""

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module, averaging gradients over ranks where there are several."""
        if self.world_size == 1:
            return module
        return nn.parallel.DistributedDataParallel(
            module,
            device_ids=[self.device.index] if self.device.type == "cuda" else None,
            # Only statistics change by themselves; anything else is the same on all ranks.
            forward_sync_buffers=any(isinstance(m, _BatchNorm) for m in module.modules()),
            gradient_as_bucket_view=True,
        )

    def share(self, batch_size: int, num_pieces: int) -> int:
        """Samples of a global batch that this rank takes.

        Raises:
            ConfigError: ranks, or the pieces of a rank's share, can't be equal.
        """
        if batch_size % (self.world_size * num_pieces):
            raise ConfigError(
                f"batch_size was {batch_size}, with {self.world_size} ranks "
                f"and micro_batches={num_pieces}: it can't be cut into equal pieces",
                expected="batch_size divisible by micro_batches times the number of ranks",
                action="change one of them",
            )
        return batch_size // self.world_size

    def agreed(self, number: int) -> int:
        """Rank 0's number, on all ranks."""
        if self.world_size == 1:
            return number
        told = torch.tensor([number], dtype=torch.int64, device=self.device)
        torch.distributed.broadcast(told, src=0)
        return int(told)

    def total(self, values: Tensor) -> Tensor:
        """The sum over all ranks, in place."""
        if self.world_size > 1:
            torch.distributed.all_reduce(values)
        return values


@contextlib.contextmanager
def ranks(timeout_seconds: float = 1800.0) -> Iterator[Ranks]:
    """Join the group that the environment names, and leave it at the end.

    A rank that waits for another one longer than ``timeout_seconds`` fails.

    Raises:
        ConfigError: this machine has GPUs, but none for this rank.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        _check_gpu(local_rank, torch.cuda.device_count())
        torch.cuda.set_device(device)
    if world_size == 1:
        yield Ranks(device=device)
        return
    timeout = dt.timedelta(seconds=timeout_seconds)
    store, rank, world_size = next(rendezvous("env://", timeout=timeout))
    # Ranks may meet several times in one store, which remembers where they were.
    store = PrefixStore(f"meeting-{next(_meetings)}", store)
    torch.distributed.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=store,
        rank=rank,
        world_size=world_size,
        timeout=timeout,
    )
    try:
        yield Ranks(rank=rank, world_size=world_size, device=device, store=store)
    finally:
        torch.distributed.destroy_process_group()


def _check_gpu(local_rank: int, num_gpus: int) -> None:
    """NCCL would wait for its whole timeout where two ranks share one."""
    if local_rank >= num_gpus:
        raise ConfigError(
            f"rank {local_rank} of this machine has no GPU: there are {num_gpus}",
            expected="a GPU for each rank",
            action=f"start {num_gpus} ranks a machine (torchrun --nproc-per-node {num_gpus}), or "
            "train on its processors (CUDA_VISIBLE_DEVICES= in the environment)",
        )
