"""Batch norms over the samples of all ranks, so that a result doesn't depend on their number.

torch's SyncBatchNorm does this on GPUs only, and replaces modules, which drops the activation of
timm's. Here hooks normalize the input of any batch norm by the statistics of all ranks, and the
module, in eval mode and with running statistics of 0 and 1, only applies its weights.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from clipmill.engine.distributed import DistributedContext

_BEFORE = "_clipmill_running_statistics"


def sync_batch_norms(module: nn.Module, dist: DistributedContext) -> None:
    """Let batch norms that train use the statistics of all ranks, if there are several.

    Each rank's batch must be of one size. Norms without running statistics stay as they are.
    """
    if dist.world_size == 1:
        return
    for norm in module.modules():
        if isinstance(norm, _BatchNorm) and not isinstance(norm, nn.SyncBatchNorm):
            norm.register_forward_pre_hook(_normalize)
            norm.register_forward_hook(_restore, always_call=True)


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        del ctx
        total = values.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        del ctx
        total = gradient.clone()
        torch.distributed.all_reduce(total)
        return total


def _normalize(norm: _BatchNorm, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    """Return the input normalized over all ranks; in eval mode the module then leaves it so."""
    mean_before, var_before = norm.running_mean, norm.running_var
    if not norm.training or mean_before is None or var_before is None:
        return None
    x, *others = inputs
    axes = [0, *range(2, x.ndim)]
    shape = [1, -1, *[1] * (x.ndim - 2)]
    count = x.numel() // x.shape[1] * torch.distributed.get_world_size()
    values = x.float()
    # Two passes: the variance as a difference of squares loses digits.
    mean = _SumOverRanks.apply(values.sum(axes)) / count
    centered = values - mean.view(shape)
    variance = _SumOverRanks.apply(centered.square().sum(axes)) / count
    if norm.track_running_stats:
        _update_running(norm, mean.detach(), variance.detach() * count / (count - 1))
    norm.eval()
    norm.running_mean = torch.zeros_like(mean_before)
    norm.running_var = torch.full_like(var_before, 1 - norm.eps)
    norm.__dict__[_BEFORE] = (mean_before, var_before)
    normalized = centered * (variance + norm.eps).rsqrt().view(shape)
    return (normalized.to(x.dtype), *others)


def _restore(norm: _BatchNorm, inputs: Any, output: Any) -> None:
    del inputs, output
    if before := norm.__dict__.pop(_BEFORE, None):
        norm.running_mean, norm.running_var = before
        norm.train()


@torch.no_grad()
def _update_running(norm: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    momentum = norm.momentum
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        momentum = 1 / float(norm.num_batches_tracked) if momentum is None else momentum
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), momentum or 0.0)
    norm.running_var.lerp_(variance.to(norm.running_var.dtype), momentum or 0.0)
