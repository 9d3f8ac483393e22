"""Mask R-CNN's and Cascade Mask R-CNN's heads in plain PyTorch, to serve those that mmdet trained.

Mask R-CNN (He et al. 2017, arXiv:1703.06870); Cascade R-CNN (Cai and Vasconcelos 2018,
arXiv:1712.00726). Parameters are named as in mmdet's heads.

Shapes: B images, N boxes (x1 y1 x2 y2 in pixels), C classes, D width, h w a map's height and width.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ANCHOR_RATIOS = (0.5, 1.0, 2.0)
"""Height over width of the anchors at a position (Ren et al. 2015)."""

# Largest growth of a side in one step: 1000 / 16, as in the first Fast R-CNN.
_MAX_LOG_GROWTH = math.log(1000 / 16)

STAGE_STDS = ((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067))
"""Standard deviations of a cascade stage's deltas; Mask R-CNN is its first stage (mmdet)."""

BOX_SIZE, MASK_SIZE = 7, 14
"""Side of a region's features in the box and in the mask head."""
NUM_ROI_LEVELS = 4
"""Maps that regions are read from; the fifth is for proposals alone."""
FINEST_ROI_SCALE = 14
"""A region of this many finest strides, or less than twice that, is read from the finest map."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PostprocessConfig:
    """Thresholds and limits of proposals and detections (mmdet's ``test_cfg`` of Mask R-CNN)."""

    proposals_per_level: int = 1000
    """Best proposals of a map."""
    proposals: int = 1000
    """Best proposals of an image."""
    proposal_overlap: float = 0.7
    """Overlap with a better proposal of its map beyond which one is dropped."""
    score: float = 0.05
    """Probability above which something is a detection."""
    overlap: float = 0.5
    """Overlap with a better detection of its class beyond which one is dropped."""
    detections: int = 100
    """Best detections of an image."""


def make_anchors(size: tuple[int, int], stride: int, scale: float, like: Tensor) -> Tensor:
    """Return anchors (h * w * 3, 4): per position one a ratio, of area ``(scale * stride)^2``."""
    height, width = size
    ratios_3 = like.new_tensor(ANCHOR_RATIOS).sqrt()
    sides_32 = stride * scale * torch.stack([1 / ratios_3, ratios_3], dim=1)
    base_34 = torch.cat([-sides_32 / 2, sides_32 / 2], dim=1)
    y_hw, x_hw = torch.meshgrid(
        torch.arange(height, device=like.device) * stride,
        torch.arange(width, device=like.device) * stride,
        indexing="ij",
    )
    centers_P4 = torch.stack([x_hw, y_hw, x_hw, y_hw], dim=-1).reshape(-1, 1, 4)
    return (centers_P4 + base_34).reshape(-1, 4)


def decode_boxes(
    boxes_N4: Tensor, deltas_N4: Tensor, stds: tuple[float, ...], size: tuple[int, int]
) -> Tensor:
    """Apply predicted deltas to boxes, within an image of ``size`` (H, W).

    A delta is the center's shift in sides and the logarithm of the sides' growth, each over its
    standard deviation (Girshick et al. 2014, appendix C).
    """
    deltas_N4 = deltas_N4 * deltas_N4.new_tensor(stds)
    sides_N2 = boxes_N4[:, 2:] - boxes_N4[:, :2]
    centers_N2 = (boxes_N4[:, :2] + boxes_N4[:, 2:]) / 2 + sides_N2 * deltas_N4[:, :2]
    half_N2 = sides_N2 * deltas_N4[:, 2:].clamp(-_MAX_LOG_GROWTH, _MAX_LOG_GROWTH).exp() / 2
    moved_N4 = torch.cat([centers_N2 - half_N2, centers_N2 + half_N2], dim=1)
    height, width = size
    return torch.minimum(moved_N4.clamp(min=0), moved_N4.new_tensor([width, height] * 2))


def batched_nms(boxes_N4: Tensor, scores_N: Tensor, groups_N: Tensor, threshold: float) -> Tensor:
    """Return the indices of boxes that overlap no better one of their group by more, best first."""
    from torchvision import ops

    kept: Tensor = ops.batched_nms(boxes_N4.float(), scores_N.float(), groups_N, threshold)
    return kept


class RPNHead(nn.Module):
    """Region proposal network: boxes that may hold an object."""

    def __init__(self, width: int, strides: Sequence[int], anchor_scale: float) -> None:
        super().__init__()
        self.rpn_conv = nn.Conv2d(width, width, 3, padding=1)
        self.rpn_cls = nn.Conv2d(width, len(ANCHOR_RATIOS), 1)
        self.rpn_reg = nn.Conv2d(width, 4 * len(ANCHOR_RATIOS), 1)
        self._strides = strides
        self._scale = anchor_scale

    def forward(
        self, maps: list[Tensor], size: tuple[int, int], config: PostprocessConfig
    ) -> list[Tensor]:
        """Return boxes (N, 4) for each image, best first, within ``size`` (H, W)."""
        levels = [
            self._level_proposals(m, s, size, config)
            for m, s in zip(maps, self._strides, strict=True)
        ]
        return [
            self._top_proposals([level[image] for level in levels], config)
            for image in range(maps[0].shape[0])
        ]

    def _level_proposals(
        self, map_BDhw: Tensor, stride: int, size: tuple[int, int], config: PostprocessConfig
    ) -> list[tuple[Tensor, Tensor]]:
        height, width = map_BDhw.shape[-2:]
        hidden_BDhw = F.relu(self.rpn_conv(map_BDhw))
        anchors_A4 = make_anchors((height, width), stride, self._scale, map_BDhw)
        scores_BA = self.rpn_cls(hidden_BDhw).permute(0, 2, 3, 1).flatten(1).sigmoid()
        deltas_BA4 = self.rpn_reg(hidden_BDhw).permute(0, 2, 3, 1).reshape(*scores_BA.shape, 4)
        proposals = []
        for scores_A, deltas_A4 in zip(scores_BA, deltas_BA4, strict=True):
            best = scores_A.argsort(descending=True)[: config.proposals_per_level]
            boxes = decode_boxes(anchors_A4[best], deltas_A4[best], (1.0,) * 4, size)
            proposals.append((boxes, scores_A[best]))
        return proposals

    @staticmethod
    def _top_proposals(levels: list[tuple[Tensor, Tensor]], config: PostprocessConfig) -> Tensor:
        boxes_N4 = torch.cat([boxes for boxes, _ in levels])
        scores_N = torch.cat([scores for _, scores in levels])
        level_N = torch.cat([torch.full_like(s, n) for n, (_, s) in enumerate(levels)])
        real = (boxes_N4[:, 2:] > boxes_N4[:, :2]).all(dim=1)
        boxes_N4 = boxes_N4[real]
        kept = batched_nms(boxes_N4, scores_N[real], level_N[real], config.proposal_overlap)
        return boxes_N4[kept[: config.proposals]]


class BoxHead(nn.Module):
    """Class and box refinement of a region."""

    def __init__(self, width: int, hidden: int, num_classes: int, *, by_class: bool) -> None:
        super().__init__()
        self.shared_fcs = nn.ModuleList(
            [nn.Linear(width * BOX_SIZE**2, hidden), nn.Linear(hidden, hidden)]
        )
        self.fc_cls = nn.Linear(hidden, num_classes + 1)  # the last is "nothing"
        self.fc_reg = nn.Linear(hidden, 4 * num_classes if by_class else 4)

    def forward(self, regions_NDss: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N, C + 1), and deltas (N, 4) or (N, 4 C)."""
        hidden = regions_NDss.flatten(1)
        for layer in self.shared_fcs:
            hidden = F.relu(layer(hidden))
        return self.fc_cls(hidden), self.fc_reg(hidden)


class MaskHead(nn.Module):
    """A region's mask for each class."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.ModuleDict({"conv": nn.Conv2d(width, width, 3, padding=1)}) for _ in range(4)
        )
        self.upsample = nn.ConvTranspose2d(width, width, 2, stride=2)
        self.conv_logits = nn.Conv2d(width, num_classes, 1)

    def forward(self, regions_NDss: Tensor) -> Tensor:
        """Logits (N, C, 28, 28)."""
        for convolution in self.convs:
            regions_NDss = F.relu(convolution["conv"](regions_NDss))  # type: ignore[index]
        logits_NCss: Tensor = self.conv_logits(F.relu(self.upsample(regions_NDss)))
        return logits_NCss


class RoIHeads(nn.Module):
    """One stage (Mask R-CNN), or three that refine one another's boxes (Cascade)."""

    def __init__(
        self,
        width: int,
        hidden: int,
        num_classes: int,
        *,
        num_stages: int,
        strides: Sequence[int],
        has_masks: bool = True,
    ) -> None:
        super().__init__()
        self.bbox_head = nn.ModuleList(
            BoxHead(width, hidden, num_classes, by_class=num_stages == 1) for _ in range(num_stages)
        )
        self.mask_head = nn.ModuleList(
            MaskHead(width, num_classes) for _ in range(num_stages if has_masks else 0)
        )
        self._strides = tuple(strides[:NUM_ROI_LEVELS])

    def boxes(
        self,
        maps: list[Tensor],
        proposals: list[Tensor],
        size: tuple[int, int],
        config: PostprocessConfig,
    ) -> list[dict[str, Tensor]]:
        """Return ``boxes`` (N, 4), ``scores`` and ``labels`` (N,) of each image, best first."""
        counts = [len(boxes) for boxes in proposals]
        image_N = torch.arange(len(counts), device=maps[0].device).repeat_interleave(
            torch.tensor(counts, device=maps[0].device)
        )
        boxes_N4, stages = torch.cat(proposals), []
        deltas = boxes_N4
        for stage, head in enumerate(self.bbox_head):
            logits, deltas = head(self._roi_align(maps, image_N, boxes_N4, BOX_SIZE))
            stages.append(logits)
            if stage + 1 < len(self.bbox_head):
                boxes_N4 = decode_boxes(boxes_N4, deltas, STAGE_STDS[stage], size)
        scores_NC = torch.stack(stages).mean(dim=0).softmax(dim=1)
        stds = STAGE_STDS[len(self.bbox_head) - 1]
        return [
            _multiclass_nms(boxes, scores, change, stds, size, config)
            for boxes, scores, change in zip(
                torch.split(boxes_N4, counts),
                torch.split(scores_NC, counts),
                torch.split(deltas, counts),
                strict=True,
            )
        ]

    def masks(self, maps: list[Tensor], detections: list[dict[str, Tensor]]) -> list[Tensor]:
        """Return each detection's mask (N, 28, 28) within its box, as probabilities."""
        counts = [len(d["labels"]) for d in detections]
        boxes_N4 = torch.cat([d["boxes"] for d in detections])
        labels_N = torch.cat([d["labels"] for d in detections])
        image_N = torch.cat(
            [torch.full_like(d["labels"], image) for image, d in enumerate(detections)]
        )
        regions_NDss = self._roi_align(maps, image_N, boxes_N4, MASK_SIZE)
        index_N = torch.arange(len(labels_N), device=labels_N.device)
        stages = [head(regions_NDss)[index_N, labels_N].sigmoid() for head in self.mask_head]
        return list(torch.split(torch.stack(stages).mean(dim=0), counts))

    def _roi_align(
        self, maps: list[Tensor], image_N: Tensor, boxes_N4: Tensor, side: int
    ) -> Tensor:
        """Return features (N, D, side, side), each from the map that suits its box's size."""
        from torchvision.ops import roi_align

        rois_N5 = torch.cat([image_N[:, None].to(boxes_N4), boxes_N4], dim=1)
        scale_N = (boxes_N4[:, 2:] - boxes_N4[:, :2]).prod(dim=1).sqrt()
        finest = FINEST_ROI_SCALE * self._strides[0]
        level_N = (scale_N / finest + 1e-6).log2().floor().clamp(0, NUM_ROI_LEVELS - 1)
        regions_NDss = maps[0].new_zeros(len(boxes_N4), maps[0].shape[1], side, side)
        for level, stride in enumerate(self._strides):
            is_level_N = level_N == level
            regions_NDss[is_level_N] = roi_align(
                maps[level], rois_N5[is_level_N], side, 1 / stride, sampling_ratio=0, aligned=True
            )
        return regions_NDss


def paste_masks_in_image(masks_Nss: Tensor, boxes_N4: Tensor, height: int, width: int) -> Tensor:
    """Return masks (N, H, W) uint8 of an image, each stretched over its box and cut at one half."""
    pasted_NHW = masks_Nss.new_zeros(len(masks_Nss), height, width, dtype=torch.uint8)
    for pasted_HW, mask_ss, box in zip(pasted_NHW, masks_Nss, boxes_N4, strict=True):
        x1, y1, x2, y2 = box.tolist()
        left, top = max(int(x1) - 1, 0), max(int(y1) - 1, 0)
        right, bottom = min(int(x2) + 2, width), min(int(y2) + 2, height)
        x_w = (torch.arange(left, right, device=box.device) + 0.5 - x1) / max(x2 - x1, 1e-6)
        y_h = (torch.arange(top, bottom, device=box.device) + 0.5 - y1) / max(y2 - y1, 1e-6)
        grid_hw2 = torch.stack(
            [x_w.expand(len(y_h), -1), y_h[:, None].expand(-1, len(x_w))], dim=-1
        )
        if grid_hw2.numel():
            seen = F.grid_sample(mask_ss[None, None], grid_hw2[None] * 2 - 1, align_corners=False)
            pasted_HW[top:bottom, left:right] = seen[0, 0] >= 0.5
    return pasted_NHW


def _multiclass_nms(
    boxes_N4: Tensor,
    scores_NC: Tensor,
    deltas_N: Tensor,
    stds: tuple[float, ...],
    size: tuple[int, int],
    config: PostprocessConfig,
) -> dict[str, Tensor]:
    """Return an image's detections: NMS within each class, then the best of all."""
    num_classes = scores_NC.shape[1] - 1
    region, label = (scores_NC[:, :num_classes] > config.score).nonzero(as_tuple=True)
    by_class_NK4 = torch.unflatten(deltas_N, 1, (-1, 4))
    own = label if by_class_NK4.shape[1] > 1 else torch.zeros_like(label)
    boxes = decode_boxes(boxes_N4[region], by_class_NK4[region, own], stds, size)
    scores = scores_NC[region, label]
    kept: Any = batched_nms(boxes, scores, label, config.overlap)[: config.detections]
    return {"boxes": boxes[kept], "scores": scores[kept], "labels": label[kept]}
