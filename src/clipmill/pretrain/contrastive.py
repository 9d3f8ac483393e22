"""Contrastive losses of a CLIP batch over all ranks, from features to numbers.

Each rank computes its own rows against all ranks' columns (local loss), and gradients go back
through the gathered features; averaged over ranks that is the one-process loss.

The similarity matrix is never held in memory: it is computed in chunks of rows, and each chunk
gives its part of the loss and at once of all gradients, since these losses know their gradient as
soon as they know their value. Memory is that of the features and one chunk, at the price of no
extra matrix product. Exact, in the features' own precision even under autocast.

Shapes: b a rank's samples (rows), N all ranks' samples (columns), c rows of a chunk, D embedding
width, E the teachers' widths together.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from clipmill.engine.distributed import DistributedContext
from clipmill.pretrain.config import DistillationConfig

MAX_CHUNK_ELEMENTS = 2**24
"""Elements of the similarity matrix at once at most: 64 MiB of fp32."""


class ContrastiveLoss:
    """Losses by caption kind (``real``, ``synthetic``), and distilled ones in addition."""

    def __init__(
        self,
        kind: Literal["softmax", "sigmoid"],
        dist: DistributedContext,
        distillation: DistillationConfig | None = None,
    ) -> None:
        self._kind = kind
        self._dist = dist
        self._distillation = distillation

    def __call__(
        self,
        features: Mapping[str, Tensor],
        scale: Tensor,
        bias: Tensor | None,
        teachers: Mapping[str, Tensor],
    ) -> dict[str, Tensor]:
        """Return losses by name, weighted.

        Args:
            features: unit embeddings (b, D): ``image``, and one for each kind of caption.
            scale: factor of the similarities.
            bias: added to them (sigmoid loss), or None.
            teachers: stored embeddings (b, E) under the same names; empty without distillation.
        """
        all_features = self._gather(features)
        kinds = [name for name in features if name != "image"]
        losses = {}
        distillation = self._distillation
        if distillation is None or distillation.contrastive_weight:
            weight = 1.0 if distillation is None else distillation.contrastive_weight
            for kind in kinds:
                losses[kind] = weight * self._contrastive(features, all_features, kind, scale, bias)
        if distillation is not None:
            all_teachers = self._gather(teachers)
            for kind in kinds:
                loss = self._distilled(
                    distillation, features, all_features, kind, scale, teachers, all_teachers
                )
                losses[f"{kind}_distillation"] = distillation.weight * loss
        return losses

    def _contrastive(
        self,
        features: Mapping[str, Tensor],
        all_features: Mapping[str, Tensor],
        kind: str,
        scale: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        first = self._dist.rank * len(features["image"])
        if self._kind == "sigmoid":
            # Each pair counts once, so one direction has them all.
            return chunked_loss(
                features["image"], all_features[kind], scale, SiglipLoss(first), bias
            )
        loss = InfoNceLoss(first)
        to_text = chunked_loss(features["image"], all_features[kind], scale, loss, bias)
        to_image = chunked_loss(features[kind], all_features["image"], scale, loss, bias)
        return (to_text + to_image) / 2

    def _distilled(
        self,
        config: DistillationConfig,
        features: Mapping[str, Tensor],
        all_features: Mapping[str, Tensor],
        kind: str,
        scale: Tensor,
        teachers: Mapping[str, Tensor],
        all_teachers: Mapping[str, Tensor],
    ) -> Tensor:
        directions = [("image", kind), (kind, "image")]
        losses = [
            chunked_loss(
                features[rows],
                all_features[columns],
                scale,
                DistillationLoss(
                    teachers[rows],
                    all_teachers[columns],
                    config.teacher_widths,
                    config.teacher_scale,
                ),
            )
            for rows, columns in directions
        ]
        return torch.stack(losses).mean()

    def _gather(self, rows: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Gather all ranks' rows under the same names, in one exchange."""
        if self._dist.world_size == 1:
            return rows
        width = next(iter(rows.values())).shape[1]
        gathered = gather_rows(torch.cat(list(rows.values()), dim=1), self._dist)
        return dict(zip(rows, torch.split(gathered, width, dim=1), strict=True))


class PairwiseLoss(ABC):
    """A loss of similarities that gives its gradient along with its value."""

    @abstractmethod
    def __call__(self, logits_cN: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Return the summed loss of a chunk of rows from ``start`` on, and its gradient (c, N).

        The logits may be overwritten.
        """


class InfoNceLoss(PairwiseLoss):
    """Softmax cross-entropy (CLIP) where row ``i`` belongs to column ``first_column + i``."""

    def __init__(self, first_column: int) -> None:
        self._first_column = first_column

    def __call__(self, logits_cN: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Return the summed loss and its gradient."""
        local_c1 = _local_columns(logits_cN, self._first_column + start)
        log_sum_c1 = logits_cN.logsumexp(dim=1, keepdim=True)
        loss = (log_sum_c1 - logits_cN.gather(1, local_c1)).sum()
        gradient_cN = logits_cN.sub_(log_sum_c1).exp_()
        minus_c1 = gradient_cN.new_full(local_c1.shape, -1.0)
        return loss, gradient_cN.scatter_add_(1, local_c1, minus_c1)


class SiglipLoss(PairwiseLoss):
    """SigLIP's loss (Zhai et al. 2023): binary per pair, true at ``first_column + i`` of row i."""

    def __init__(self, first_column: int) -> None:
        self._first_column = first_column

    def __call__(self, logits_cN: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Return the summed loss and its gradient."""
        local_c1 = _local_columns(logits_cN, self._first_column + start)
        loss = F.softplus(logits_cN).sum() - logits_cN.gather(1, local_c1).sum()
        gradient_cN = logits_cN.sigmoid_()
        minus_c1 = gradient_cN.new_full(local_c1.shape, -1.0)
        return loss, gradient_cN.scatter_add_(1, local_c1, minus_c1)


class DistillationLoss(PairwiseLoss):
    """Cross-entropy against the mean of several teachers' softmax over the same columns.

    Teachers are concatenated in the last axis, ``widths`` apart, each a unit embedding. The mean is
    taken after the softmax (MobileCLIP, CVPR 2024).
    """

    def __init__(
        self, rows_bE: Tensor, columns_NE: Tensor, widths: Sequence[int], teacher_scale: float
    ) -> None:
        self._teachers = list(
            zip(
                torch.split(rows_bE, list(widths), 1),
                torch.split(columns_NE, list(widths), 1),
                strict=True,
            )
        )
        self._teacher_scale = teacher_scale

    def __call__(self, logits_cN: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Return the summed loss and its gradient."""
        target_cN = torch.zeros_like(logits_cN)
        for rows, columns in self._teachers:
            chunk = rows[start : start + len(logits_cN)]
            target_cN += (self._teacher_scale * chunk @ columns.T).softmax(dim=1)
        target_cN /= len(self._teachers)
        log_sum_c1 = logits_cN.logsumexp(dim=1, keepdim=True)
        loss = log_sum_c1.sum() - (target_cN * logits_cN).sum()
        return loss, logits_cN.sub_(log_sum_c1).exp_().sub_(target_cN)


def chunked_loss(
    rows_bD: Tensor,
    columns_ND: Tensor,
    scale: Tensor,
    pairwise_loss: PairwiseLoss,
    bias: Tensor | None = None,
) -> Tensor:
    """Return the mean over rows of ``pairwise_loss`` on ``scale * rows @ columns.T + bias``."""
    loss: Tensor = _ChunkedLoss.apply(rows_bD, columns_ND, scale, bias, pairwise_loss)
    return loss


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows_bD: Tensor,
        columns_ND: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        pairwise_loss: PairwiseLoss,
    ) -> Tensor:
        num_rows, num_columns = len(rows_bD), len(columns_ND)
        size = max(1, MAX_CHUNK_ELEMENTS // num_columns)
        needs_gradient = any(ctx.needs_input_grad)
        loss, scale_gradient, bias_gradient = (rows_bD.new_zeros(()) for _ in range(3))
        row_gradients, column_gradient_ND = [], torch.zeros_like(columns_ND)
        with torch.autocast(rows_bD.device.type, enabled=False):
            for start in range(0, num_rows, size):
                chunk_cD = rows_bD[start : start + size]
                logits_cN = (scale * chunk_cD) @ columns_ND.T
                if bias is not None:
                    logits_cN += bias
                chunk_loss, gradient_cN = pairwise_loss(logits_cN, start)
                loss += chunk_loss
                if not needs_gradient:
                    continue
                pulled_cD = gradient_cN @ columns_ND
                row_gradients.append(scale * pulled_cD)
                column_gradient_ND.addmm_(gradient_cN.T, chunk_cD)
                scale_gradient += (pulled_cD * chunk_cD).sum()
                bias_gradient += gradient_cN.sum()
        if needs_gradient:
            gradients = (
                torch.cat(row_gradients),
                column_gradient_ND.mul_(scale),
                scale_gradient,
                bias_gradient,
            )
            ctx.save_for_backward(*(g.div_(num_rows) for g in gradients))
            ctx.has_bias = bias is not None
        return loss / num_rows

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        rows, columns, scale, bias = (outer[0] * saved for saved in ctx.saved_tensors)
        return rows, columns, scale, bias if ctx.has_bias else None, None


def _local_columns(logits_cN: Tensor, first: int) -> Tensor:
    return torch.arange(first, first + len(logits_cN), device=logits_cN.device)[:, None]


def gather_rows(rows_bD: Tensor, dist: DistributedContext) -> Tensor:
    """Gather all ranks' rows (N, D), in the order of ranks; equal numbers of rows on each.

    The gradient of a row is summed over the ranks' losses, so that averaging the parameters'
    gradients over ranks (DDP, FSDP) gives those of the mean of these losses.
    """
    if dist.world_size == 1:
        return rows_bD
    gathered_ND: Tensor = _Gather.apply(rows_bD, dist.world_size)
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
        local_bD = gradient_ND.new_empty(ctx.num_rows, gradient_ND.shape[1])
        torch.distributed.reduce_scatter_single(local_bD, gradient_ND.contiguous())
        return local_bD, None
