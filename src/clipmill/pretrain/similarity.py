"""Losses over a matrix of similarities that is never held whole.

The matrix is made a few rows at a time; each piece gives its part of the loss and, at once, of all
gradients, since these losses know their gradient as soon as they know their value. So memory is
that of the features and one piece, at the price of no extra matrix product. Exact, in the
features' own precision even under autocast.

Shapes: b rows, N columns, c rows of a piece, D width of an embedding, E width of a teacher's.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

PIECE_ELEMENTS = 2**24
"""Most elements of the similarity matrix at once: 64 MiB of fp32."""

Rule = Callable[[Tensor, int], tuple[Tensor, Tensor]]
"""Logits (c, N) and the first row's number to their summed loss and its gradient (c, N)."""


def similarity_loss(
    rows_bD: Tensor, columns_ND: Tensor, scale: Tensor, rule: Rule, bias: Tensor | None = None
) -> Tensor:
    """The mean over rows of ``rule`` on ``scale * rows @ columns.T + bias``."""
    loss: Tensor = _SimilarityLoss.apply(rows_bD, columns_ND, scale, bias, rule)
    return loss


def cross_entropy(first_column: int) -> Rule:
    """Softmax cross-entropy where row ``i`` belongs to column ``first_column + i``."""

    def rule(logits_cN: Tensor, start: int) -> tuple[Tensor, Tensor]:
        own_c1 = _own_columns(logits_cN, first_column + start)
        log_sum_c1 = logits_cN.logsumexp(dim=1, keepdim=True)
        loss = (log_sum_c1 - logits_cN.gather(1, own_c1)).sum()
        gradient_cN = logits_cN.sub_(log_sum_c1).exp_()
        return loss, gradient_cN.scatter_add_(1, own_c1, gradient_cN.new_full(own_c1.shape, -1.0))

    return rule


def sigmoid(first_column: int) -> Rule:
    """SigLIP's loss (Zhai et al. 2023): each pair alone, true for row ``i``'s own column."""

    def rule(logits_cN: Tensor, start: int) -> tuple[Tensor, Tensor]:
        own_c1 = _own_columns(logits_cN, first_column + start)
        loss = F.softplus(logits_cN).sum() - logits_cN.gather(1, own_c1).sum()
        gradient_cN = logits_cN.sigmoid_()
        return loss, gradient_cN.scatter_add_(1, own_c1, gradient_cN.new_full(own_c1.shape, -1.0))

    return rule


def teacher_cross_entropy(
    rows_bE: Tensor, columns_NE: Tensor, widths: Sequence[int], teacher_scale: float
) -> Rule:
    """Cross-entropy against the mean of several teachers' softmax over the same columns.

    Teachers lie side by side in the last axis, ``widths`` apart, each a unit embedding. The mean is
    taken after the softmax (MobileCLIP, CVPR 2024).
    """
    teachers = list(
        zip(
            torch.split(rows_bE, list(widths), 1),
            torch.split(columns_NE, list(widths), 1),
            strict=True,
        )
    )

    def rule(logits_cN: Tensor, start: int) -> tuple[Tensor, Tensor]:
        target_cN = torch.zeros_like(logits_cN)
        for rows, columns in teachers:
            piece = rows[start : start + len(logits_cN)]
            target_cN += (teacher_scale * piece @ columns.T).softmax(dim=1)
        target_cN /= len(teachers)
        log_sum_c1 = logits_cN.logsumexp(dim=1, keepdim=True)
        loss = log_sum_c1.sum() - (target_cN * logits_cN).sum()
        return loss, logits_cN.sub_(log_sum_c1).exp_().sub_(target_cN)

    return rule


class _SimilarityLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows_bD: Tensor,
        columns_ND: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        rule: Rule,
    ) -> Tensor:
        num_rows, num_columns = len(rows_bD), len(columns_ND)
        size = max(1, PIECE_ELEMENTS // num_columns)
        wants_gradient = any(ctx.needs_input_grad)
        loss, scale_gradient, bias_gradient = (rows_bD.new_zeros(()) for _ in range(3))
        row_gradients, column_gradient_ND = [], torch.zeros_like(columns_ND)
        with torch.autocast(rows_bD.device.type, enabled=False):
            for start in range(0, num_rows, size):
                piece_cD = rows_bD[start : start + size]
                logits_cN = (scale * piece_cD) @ columns_ND.T
                if bias is not None:
                    logits_cN += bias
                part, gradient_cN = rule(logits_cN, start)
                loss += part
                if not wants_gradient:
                    continue
                pulled_cD = gradient_cN @ columns_ND
                row_gradients.append(scale * pulled_cD)
                column_gradient_ND.addmm_(gradient_cN.T, piece_cD)
                scale_gradient += (pulled_cD * piece_cD).sum()
                bias_gradient += gradient_cN.sum()
        if wants_gradient:
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


def _own_columns(logits_cN: Tensor, first: int) -> Tensor:
    return torch.arange(first, first + len(logits_cN), device=logits_cN.device)[:, None]
