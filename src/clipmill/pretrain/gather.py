"""Rows of all ranks in one tensor, with gradients back to the rank that each came from.

Shapes: b rows of a rank, N rows of all ranks, D width.
"""

from typing import Any

import torch
from torch import Tensor

from clipmill.engine.distributed import Ranks


def gather_rows(rows_bD: Tensor, here: Ranks) -> Tensor:
    """Every rank's rows (N, D), by rank; equal numbers of rows on each.

    The gradient of a row is summed over the ranks' losses, so that what averages parameters'
    gradients over ranks (DDP, FSDP) gives those of the mean of these losses.
    """
    if here.world_size == 1:
        return rows_bD
    gathered_ND: Tensor = _Gather.apply(rows_bD, here.world_size)
    return gathered_ND


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_bD: Tensor, world_size: int) -> Tensor:
        ctx.num_rows = len(rows_bD)
        gathered_ND = rows_bD.new_empty(world_size * len(rows_bD), rows_bD.shape[1])
        torch.distributed.all_gather_single(gathered_ND, rows_bD.contiguous())
        return gathered_ND

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient_ND,) = gradients
        own_bD = gradient_ND.new_empty(ctx.num_rows, gradient_ND.shape[1])
        torch.distributed.reduce_scatter_single(own_bD, gradient_ND.contiguous())
        return own_bD, None
