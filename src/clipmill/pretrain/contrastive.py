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
from clipmill.pretrain.distillation import DistillationConfig
from clipmill.pretrain.gather import gather_rows
from clipmill.pretrain.similarity import (
    cross_entropy,
    sigmoid,
    similarity_loss,
    teacher_cross_entropy,
)


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
