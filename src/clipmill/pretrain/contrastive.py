"""The losses of a CLIP batch over all ranks, from features to numbers.

Each rank computes its own rows against everyone's columns (local loss), and gradients go back
through the gathered features; averaged over ranks that is the one-process loss.

Shapes: b a rank's samples, N all ranks' samples, D embedding width, E teachers' widths together.
"""

from collections.abc import Mapping
from typing import Literal
import torch
from torch import Tensor
from clipmill.engine.distributed import Ranks
from clipmill.pretrain.config import DistillationConfig
from collections.abc import Callable, Sequence
from typing import Any
from torch.nn import functional as F


class CaptionLosses:
    """Losses by caption kind (``real``, ``synthetic``), and distilled ones beside them."""

    def __init__(
        self,
        kind: Literal["softmax", "sigmoid"],
        here: Ranks,
        distillation: DistillationConfig | None = None,
    ) -> None:
        self._kind = kind
        self._here = here
        self._distillation = distillation

    def __call__(
        self,
        features: Mapping[str, Tensor],
        scale: Tensor,
        bias: Tensor | None,
        teachers: Mapping[str, Tensor],
    ) -> dict[str, Tensor]:
        """Losses by name, weighted.

        Args:
            features: unit embeddings (b, D): ``image``, and one for each kind of caption.
            scale: factor of the similarities.
            bias: added to them (sigmoid loss), or None.
            teachers: stored embeddings (b, E) under the same names; empty without distillation.
        """
        everyone = self._gather(features)
        kinds = [name for name in features if name != "image"]
        losses = {}
        weights = self._distillation
        if weights is None or weights.contrastive_weight:
            factor = 1.0 if weights is None else weights.contrastive_weight
            for kind in kinds:
                losses[kind] = factor * self._contrastive(features, everyone, kind, scale, bias)
        if weights is not None:
            known = self._gather(teachers)
            for kind in kinds:
                loss = self._distilled(weights, features, everyone, kind, scale, teachers, known)
                losses[f"{kind}_distillation"] = weights.weight * loss
        return losses

    def _contrastive(
        self,
        own: Mapping[str, Tensor],
        everyone: Mapping[str, Tensor],
        kind: str,
        scale: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        first = self._here.rank * len(own["image"])
        if self._kind == "sigmoid":
            # Each pair counts once, so one direction has them all.
            return similarity_loss(own["image"], everyone[kind], scale, sigmoid(first), bias)
        rule = cross_entropy(first)
        to_text = similarity_loss(own["image"], everyone[kind], scale, rule, bias)
        to_image = similarity_loss(own[kind], everyone["image"], scale, rule, bias)
        return (to_text + to_image) / 2

    def _distilled(
        self,
        config: DistillationConfig,
        own: Mapping[str, Tensor],
        everyone: Mapping[str, Tensor],
        kind: str,
        scale: Tensor,
        teachers: Mapping[str, Tensor],
        known: Mapping[str, Tensor],
    ) -> Tensor:
        directions = [("image", kind), (kind, "image")]
        parts = [
            similarity_loss(
                own[rows],
                everyone[columns],
                scale,
                teacher_cross_entropy(
                    teachers[rows], known[columns], config.teacher_widths, config.teacher_scale
                ),
            )
            for rows, columns in directions
        ]
        return torch.stack(parts).mean()

    def _gather(self, rows: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Everyone's rows under the same names, in one exchange."""
        if self._here.world_size == 1:
            return rows
        width = next(iter(rows.values())).shape[1]
        together = gather_rows(torch.cat(list(rows.values()), dim=1), self._here)
        return dict(zip(rows, torch.split(together, width, dim=1), strict=True))


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
