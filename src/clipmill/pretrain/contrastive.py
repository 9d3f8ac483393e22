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
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from clipmill.engine.distributed import DistributedContext
from clipmill.pretrain.config import DistillationConfig

MAX_CHUNK_ELEMENTS = 2**24
"""Elements of the similarity matrix at once at most: 64 MiB of fp32."""


@dataclass(frozen=True, slots=True)
class RowLosses:
    """A loss of rows against columns."""

    loss: Tensor
    """The mean over rows, with gradients."""
    losses_b: Tensor
    """That of each row, without gradients."""
    is_match_b: Tensor | None
    """True where a row's own column is the most similar one; None unless requested."""


@dataclass(frozen=True, slots=True)
class ContrastiveOutput:
    """Losses of a batch, and of each of this rank's samples."""

    losses: dict[str, Tensor]
    """By caption kind, weighted, with gradients."""
    sample_losses_b: Tensor
    """The sum of these for each sample; its mean is the sum of ``losses``. No gradients."""
    accuracy_b: Tensor | None
    """Share of a sample's captions that are the most similar of all ranks' to its image."""


class ContrastiveLoss:
    """Losses by caption kind (``real``, ``synthetic``), and distilled ones in addition."""

    def __init__(
        self,
        kind: Literal["softmax", "sigmoid"],
        dist: DistributedContext,
        distillation: DistillationConfig | None = None,
        *,
        with_accuracy: bool = False,
    ) -> None:
        self._kind = kind
        self._dist = dist
        self._distillation = distillation
        self._with_accuracy = with_accuracy

    def __call__(
        self,
        features: Mapping[str, Tensor],
        scale: Tensor,
        bias: Tensor | None,
        teachers: Mapping[str, Tensor],
    ) -> ContrastiveOutput:
        """Return the losses by name.

        Args:
            features: unit embeddings (b, D): ``image``, and one for each kind of caption.
            scale: factor of the similarities.
            bias: added to them (sigmoid loss), or None.
            teachers: stored embeddings (b, E) under the same names; empty without distillation.
        """
        all_features = self._gather(features)
        kinds = [name for name in features if name != "image"]
        terms: dict[str, RowLosses] = {}
        distillation = self._distillation
        if distillation is None or distillation.contrastive_weight:
            weight = 1.0 if distillation is None else distillation.contrastive_weight
            for kind in kinds:
                rows = self._contrastive(features, all_features, kind, scale, bias)
                terms[kind] = _weighted(rows, weight)
        if distillation is not None:
            all_teachers = self._gather(teachers)
            for kind in kinds:
                rows = self._distilled(
                    distillation, features, all_features, kind, scale, teachers, all_teachers
                )
                terms[f"{kind}_distillation"] = _weighted(rows, distillation.weight)
        matches = [t.is_match_b.float() for t in terms.values() if t.is_match_b is not None]
        return ContrastiveOutput(
            losses={name: term.loss for name, term in terms.items()},
            sample_losses_b=torch.stack([term.losses_b for term in terms.values()]).sum(0),
            accuracy_b=torch.stack(matches).mean(0) if matches else None,
        )

    def _contrastive(
        self,
        features: Mapping[str, Tensor],
        all_features: Mapping[str, Tensor],
        kind: str,
        scale: Tensor,
        bias: Tensor | None,
    ) -> RowLosses:
        first = self._first_row(features)
        if self._kind == "sigmoid":
            # Each pair counts once, so one direction has them all.
            return self._to_text(features, all_features, kind, scale, SiglipLoss(first), bias)
        loss = InfoNceLoss(first)
        to_text = self._to_text(features, all_features, kind, scale, loss, bias)
        return _mean_of_directions(
            to_text, row_losses(features[kind], all_features["image"], scale, loss, bias)
        )

    def _distilled(
        self,
        config: DistillationConfig,
        features: Mapping[str, Tensor],
        all_features: Mapping[str, Tensor],
        kind: str,
        scale: Tensor,
        teachers: Mapping[str, Tensor],
        all_teachers: Mapping[str, Tensor],
    ) -> RowLosses:
        to_text, to_image = (
            DistillationLoss(
                teachers[rows], all_teachers[columns], config.teacher_widths, config.teacher_scale
            )
            for rows, columns in (("image", kind), (kind, "image"))
        )
        return _mean_of_directions(
            self._to_text(features, all_features, kind, scale, to_text),
            row_losses(features[kind], all_features["image"], scale, to_image),
        )

    def _to_text(
        self,
        features: Mapping[str, Tensor],
        all_features: Mapping[str, Tensor],
        kind: str,
        scale: Tensor,
        pairwise_loss: "PairwiseLoss",
        bias: Tensor | None = None,
    ) -> RowLosses:
        """Return the losses of the images' rows, with the accuracy if it is to be known."""
        first = self._first_row(features) if self._with_accuracy else None
        return row_losses(
            features["image"], all_features[kind], scale, pairwise_loss, bias, first_column=first
        )

    def _first_row(self, features: Mapping[str, Tensor]) -> int:
        return self._dist.rank * len(features["image"])

    def _gather(self, rows: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Gather all ranks' rows under the same names, in one exchange."""
        if self._dist.world_size == 1:
            return rows
        width = next(iter(rows.values())).shape[1]
        gathered = gather_rows(torch.cat(list(rows.values()), dim=1), self._dist)
        return dict(zip(rows, torch.split(gathered, width, dim=1), strict=True))


def _weighted(rows: RowLosses, weight: float) -> RowLosses:
    return RowLosses(weight * rows.loss, weight * rows.losses_b, rows.is_match_b)


def _mean_of_directions(to_text: RowLosses, to_image: RowLosses) -> RowLosses:
    return RowLosses(
        (to_text.loss + to_image.loss) / 2,
        (to_text.losses_b + to_image.losses_b) / 2,
        to_text.is_match_b,
    )


class PairwiseLoss(ABC):
    """A loss of similarities that gives its gradient along with its value."""

    @abstractmethod
    def __call__(self, logits_cN: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Return the losses (c,) of a chunk of rows from ``start`` on, and their sum's gradient.

        The logits may be overwritten.
        """


class InfoNceLoss(PairwiseLoss):
    """Softmax cross-entropy (CLIP) where row ``i`` belongs to column ``first_column + i``."""

    def __init__(self, first_column: int) -> None:
        self._first_column = first_column

    def __call__(self, logits_cN: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Return the rows' losses, and the gradient of their sum."""
        local_c1 = _local_columns(logits_cN, self._first_column + start)
        log_sum_c1 = logits_cN.logsumexp(dim=1, keepdim=True)
        losses_c = (log_sum_c1 - logits_cN.gather(1, local_c1)).squeeze(1)
        gradient_cN = logits_cN.sub_(log_sum_c1).exp_()
        minus_c1 = gradient_cN.new_full(local_c1.shape, -1.0)
        return losses_c, gradient_cN.scatter_add_(1, local_c1, minus_c1)


class SiglipLoss(PairwiseLoss):
    """SigLIP's loss (Zhai et al. 2023): binary per pair, true at ``first_column + i`` of row i."""

    def __init__(self, first_column: int) -> None:
        self._first_column = first_column

    def __call__(self, logits_cN: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Return the rows' losses, and the gradient of their sum."""
        local_c1 = _local_columns(logits_cN, self._first_column + start)
        losses_c = F.softplus(logits_cN).sum(1) - logits_cN.gather(1, local_c1).squeeze(1)
        gradient_cN = logits_cN.sigmoid_()
        minus_c1 = gradient_cN.new_full(local_c1.shape, -1.0)
        return losses_c, gradient_cN.scatter_add_(1, local_c1, minus_c1)


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
        """Return the rows' losses, and the gradient of their sum."""
        target_cN = torch.zeros_like(logits_cN)
        for rows, columns in self._teachers:
            chunk = rows[start : start + len(logits_cN)]
            target_cN += (self._teacher_scale * chunk @ columns.T).softmax(dim=1)
        target_cN /= len(self._teachers)
        log_sum_c1 = logits_cN.logsumexp(dim=1, keepdim=True)
        losses_c = log_sum_c1.squeeze(1) - (target_cN * logits_cN).sum(1)
        return losses_c, logits_cN.sub_(log_sum_c1).exp_().sub_(target_cN)


def row_losses(
    rows_bD: Tensor,
    columns_ND: Tensor,
    scale: Tensor,
    pairwise_loss: PairwiseLoss,
    bias: Tensor | None = None,
    *,
    first_column: int | None = None,
) -> RowLosses:
    """Return the losses of ``pairwise_loss`` on ``scale * rows @ columns.T + bias``.

    With ``first_column``, that of the first row's own column, matches are returned as well.
    """
    loss, losses_b, is_match_b = _ChunkedLoss.apply(
        rows_bD, columns_ND, scale, bias, pairwise_loss, first_column
    )
    return RowLosses(loss, losses_b, is_match_b if first_column is not None else None)


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows_bD: Tensor,
        columns_ND: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        pairwise_loss: PairwiseLoss,
        first_column: int | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        num_rows, num_columns = len(rows_bD), len(columns_ND)
        size = max(1, MAX_CHUNK_ELEMENTS // num_columns)
        needs_gradient = any(ctx.needs_input_grad)
        loss, scale_gradient, bias_gradient = (rows_bD.new_zeros(()) for _ in range(3))
        losses_b = rows_bD.new_empty(num_rows)
        is_match_b = torch.empty(num_rows, dtype=torch.bool, device=rows_bD.device)
        row_gradients, column_gradient_ND = [], torch.zeros_like(columns_ND)
        with torch.autocast(rows_bD.device.type, enabled=False):
            for start in range(0, num_rows, size):
                chunk_cD = rows_bD[start : start + size]
                chunk = slice(start, start + len(chunk_cD))
                logits_cN = (scale * chunk_cD) @ columns_ND.T
                if bias is not None:
                    logits_cN += bias
                if first_column is not None:
                    local_c1 = _local_columns(logits_cN, first_column + start)
                    is_match_b[chunk] = logits_cN.argmax(1) == local_c1.squeeze(1)
                losses_b[chunk], gradient_cN = pairwise_loss(logits_cN, start)
                loss += losses_b[chunk].sum()
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
        ctx.mark_non_differentiable(losses_b, is_match_b)
        return loss / num_rows, losses_b, is_match_b

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        rows, columns, scale, bias = (outer[0] * saved for saved in ctx.saved_tensors)
        return rows, columns, scale, bias if ctx.has_bias else None, None, None


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
