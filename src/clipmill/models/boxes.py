"""Boxes: anchors, how a network moves them, and which of many that overlap is kept.

Shapes: N boxes, as x1 y1 x2 y2 in pixels; h w a map's height and width.
"""

import math

import torch
from torch import Tensor

ANCHOR_RATIOS = (0.5, 1.0, 2.0)
"""Height over width of the anchors at a place (Ren et al. 2015)."""

# Growth that a network may ask for in a step: 1000 / 16, as in the first Fast R-CNN.
_MAX_LOG_GROWTH = math.log(1000 / 16)


def anchors(size: tuple[int, int], stride: int, scale: float, like: Tensor) -> Tensor:
    """Anchors (h * w * 3, 4): at each place one a ratio, of area ``(scale * stride)^2``."""
    height, width = size
    ratios_3 = like.new_tensor(ANCHOR_RATIOS).sqrt()
    sides_32 = stride * scale * torch.stack([1 / ratios_3, ratios_3], dim=1)
    base_34 = torch.cat([-sides_32 / 2, sides_32 / 2], dim=1)
    y_hw, x_hw = torch.meshgrid(
        torch.arange(height, device=like.device) * stride,
        torch.arange(width, device=like.device) * stride,
        indexing="ij",
    )
    centres_P4 = torch.stack([x_hw, y_hw, x_hw, y_hw], dim=-1).reshape(-1, 1, 4)
    return (centres_P4 + base_34).reshape(-1, 4)


def move(
    boxes_N4: Tensor, deltas_N4: Tensor, stds: tuple[float, ...], size: tuple[int, int]
) -> Tensor:
    """Boxes moved by a network's deltas, within an image of ``size`` (H, W).

    A delta is the centre's move in sides and the logarithm of the sides' growth, each over its
    standard deviation (Girshick et al. 2014, appendix C).
    """
    deltas_N4 = deltas_N4 * deltas_N4.new_tensor(stds)
    sides_N2 = boxes_N4[:, 2:] - boxes_N4[:, :2]
    centres_N2 = (boxes_N4[:, :2] + boxes_N4[:, 2:]) / 2 + sides_N2 * deltas_N4[:, :2]
    half_N2 = sides_N2 * deltas_N4[:, 2:].clamp(-_MAX_LOG_GROWTH, _MAX_LOG_GROWTH).exp() / 2
    moved_N4 = torch.cat([centres_N2 - half_N2, centres_N2 + half_N2], dim=1)
    height, width = size
    return torch.minimum(moved_N4.clamp(min=0), moved_N4.new_tensor([width, height] * 2))


def suppress(boxes_N4: Tensor, scores_N: Tensor, groups_N: Tensor, threshold: float) -> Tensor:
    """Indices of the boxes kept, best first: none overlaps a better one of its group by more."""
    from torchvision.ops import batched_nms

    kept: Tensor = batched_nms(boxes_N4.float(), scores_N.float(), groups_N, threshold)
    return kept
