"""Training heads and losses of Mask R-CNN and its cascade: mmdet's own, built of plain arguments.

Shapes: B batch, H W image, M objects of an image (the most in the batch), S image side.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from clipmill.models.mask_rcnn import (
    ANCHOR_RATIOS,
    BOX_SIZE,
    FINEST_ROI_SCALE,
    MASK_SIZE,
    NUM_ROI_LEVELS,
    STAGE_STDS,
)
from clipmill.openmmlab.ops import importing_openmmlab

STAGE_OVERLAPS = (0.5, 0.6, 0.7)
"""Overlap with an object from which a cascade stage's regions count as it (Cai and Vasconcelos)."""
STAGE_WEIGHTS = (1.0, 0.5, 0.25)
"""Weights of the stages' losses (mmdet)."""


class MaskRcnnTraining(nn.Module):
    """``rpn_head`` and ``roi_head`` as in mmdet's configs of Mask R-CNN and its cascade."""

    def __init__(
        self,
        width: int,
        hidden: int,
        num_classes: int,
        *,
        num_stages: int,
        strides: Sequence[int],
        anchor_scale: float,
        num_proposals: int = 1000,
        rois_per_image: int = 512,
        init_std: float = 0.01,
        mask_head: bool = True,
    ) -> None:
        super().__init__()
        with importing_openmmlab():
            from mmdet.models.dense_heads import RPNHead
            from mmdet.models.roi_heads import CascadeRoIHead, StandardRoIHead
            from mmengine.config import ConfigDict
        is_cascade = num_stages > 1
        self.rpn_head = RPNHead(
            in_channels=width,
            feat_channels=width,
            anchor_generator={
                "type": "AnchorGenerator",
                "scales": [anchor_scale],
                "ratios": list(ANCHOR_RATIOS),
                "strides": list(strides),
            },
            bbox_coder=_coder((1.0,) * 4),
            loss_cls={"type": "CrossEntropyLoss", "use_sigmoid": True, "loss_weight": 1.0},
            loss_bbox=_smooth(1 / 9) if is_cascade else _l1(),
            train_cfg=ConfigDict(_proposal_training(allowed_border=0 if is_cascade else -1)),
            test_cfg=ConfigDict(_proposals(num_proposals)),
        )
        boxes = [
            _box_head(width, hidden, num_classes, STAGE_STDS[stage], is_cascade=is_cascade)
            for stage in range(num_stages)
        ]
        masks = {
            "type": _partial_mask_head(),
            "num_convs": 4,
            "in_channels": width,
            "conv_out_channels": width,
            "num_classes": num_classes,
            "loss_mask": {"type": "CrossEntropyLoss", "use_mask": True, "loss_weight": 1.0},
        }
        training = [
            _region_training(
                STAGE_OVERLAPS[stage], rois_per_image, match_low_quality=not is_cascade
            )
            for stage in range(num_stages)
        ]
        cascade: dict[str, Any] = (
            {"num_stages": num_stages, "stage_loss_weights": list(STAGE_WEIGHTS[:num_stages])}
            if is_cascade
            else {}
        )
        head_type = CascadeRoIHead if is_cascade else StandardRoIHead
        self.roi_head = head_type(
            bbox_roi_extractor=_extractor(BOX_SIZE, width, strides),
            bbox_head=boxes if is_cascade else boxes[0],
            mask_roi_extractor=_extractor(MASK_SIZE, width, strides) if mask_head else None,
            mask_head=masks if mask_head else None,
            train_cfg=[ConfigDict(t) for t in training] if is_cascade else ConfigDict(training[0]),
            test_cfg=ConfigDict(_region_test()),
            **cascade,
        )
        self._proposals = ConfigDict(
            _proposals(2 * num_proposals if is_cascade else num_proposals, 2 * num_proposals)
        )
        _initialize(self, init_std)

    def loss(
        self,
        maps: list[Tensor],
        *,
        boxes_BM4: Tensor,
        labels_BM: Tensor,
        masks_BMHW: Tensor | None,
        has_mask_BM: Tensor | None,
        is_crowd_BM: Tensor,
        size: tuple[int, int],
    ) -> dict[str, Tensor]:
        """Losses by name, already weighted: their sum is to be minimized.

        ``labels`` are -1 where an image has no more objects. Crowds are left out,
        as in mmdet's configs. Objects without a mask train boxes alone. ``size`` (H, W) is that of
        the images as the maps saw them.
        """
        samples = [
            _sample(
                boxes_BM4[n],
                labels_BM[n],
                None if masks_BMHW is None else masks_BMHW[n],
                None if has_mask_BM is None else has_mask_BM[n],
                is_crowd_BM[n],
                size,
            )
            for n in range(len(boxes_BM4))
        ]
        losses, proposals = self.rpn_head.loss_and_predict(
            maps, [_as_objects(sample) for sample in samples], proposal_cfg=self._proposals
        )
        losses = dict(losses) | self.roi_head.loss(maps, proposals, samples)
        return {
            name: torch.stack(value).sum() if isinstance(value, list) else value.sum()
            for name, value in losses.items()
            if "loss" in name
        }


def _sample(
    boxes_M4: Tensor,
    labels_M: Tensor,
    masks_MHW: Tensor | None,
    has_mask_M: Tensor | None,
    is_crowd_M: Tensor,
    size: tuple[int, int],
) -> Any:
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    real = labels_M >= 0
    objects, crowds = real & ~is_crowd_M, real & is_crowd_M
    sample = DetDataSample(metainfo={"img_shape": size, "pad_shape": size})
    sample.gt_instances = InstanceData(bboxes=boxes_M4[objects], labels=labels_M[objects])
    if masks_MHW is not None and has_mask_M is not None:
        masks: Any = masks_MHW[objects].cpu().numpy().astype(np.uint8)
        sample.gt_instances.masks = BitmapMasks(masks, *masks_MHW.shape[-2:])
        sample.gt_instances.has_mask = has_mask_M[objects]
    sample.ignored_instances = InstanceData(bboxes=boxes_M4[crowds], labels=labels_M[crowds])
    return sample


def _as_objects(sample: Any) -> Any:
    """The sample with one class, as the proposal head wants it; the sample keeps its own."""
    clone = sample.clone()  # shallow: the objects in it are the sample's
    clone.gt_instances = sample.gt_instances.clone()
    clone.gt_instances.labels = torch.zeros_like(sample.gt_instances.labels)
    return clone


@cache
def _partial_mask_head() -> Any:
    """mmdet's FCNMaskHead, whose loss leaves out regions of objects without a mask."""
    with importing_openmmlab():
        from mmdet.models.roi_heads.mask_heads import FCNMaskHead

    class PartialMaskHead(FCNMaskHead):  # type: ignore[misc]  # mmdet has no types
        def loss_and_target(
            self,
            mask_preds: Tensor,
            sampling_results: list[Any],
            batch_gt_instances: list[Any],
            rcnn_train_cfg: Any,
        ) -> dict[str, Any]:
            targets = self.get_targets(sampling_results, batch_gt_instances, rcnn_train_cfg)
            labels = torch.cat([result.pos_gt_labels for result in sampling_results])
            known = torch.cat(
                [
                    objects.has_mask[result.pos_assigned_gt_inds]
                    for objects, result in zip(batch_gt_instances, sampling_results, strict=True)
                ]
            )
            # As mmdet's, the loss of no region is 0, with a gradient.
            loss = (
                self.loss_mask(mask_preds[known], targets[known], labels[known])
                if known.any()
                else mask_preds.sum() * 0
            )
            return {"loss_mask": {"loss_mask": loss}, "mask_targets": targets}

    return PartialMaskHead


def _coder(stds: tuple[float, ...]) -> dict[str, Any]:
    return {
        "type": "DeltaXYWHBBoxCoder",
        "target_means": [0.0] * 4,
        "target_stds": list(stds),
    }


def _l1() -> dict[str, Any]:
    return {"type": "L1Loss", "loss_weight": 1.0}


def _smooth(beta: float) -> dict[str, Any]:
    return {"type": "SmoothL1Loss", "beta": beta, "loss_weight": 1.0}


def _box_head(
    width: int, hidden: int, num_classes: int, stds: tuple[float, ...], *, is_cascade: bool
) -> dict[str, Any]:
    return {
        "type": "Shared2FCBBoxHead",
        "in_channels": width,
        "fc_out_channels": hidden,
        "roi_feat_size": BOX_SIZE,
        "num_classes": num_classes,
        "bbox_coder": _coder(stds),
        "reg_class_agnostic": is_cascade,
        "loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": 1.0},
        "loss_bbox": _smooth(1.0) if is_cascade else _l1(),
    }


def _extractor(side: int, width: int, strides: Sequence[int]) -> dict[str, Any]:
    return {
        "type": "SingleRoIExtractor",
        "roi_layer": {
            "type": "RoIAlign",
            "output_size": side,
            "sampling_ratio": 0,
            "use_torchvision": True,
        },
        "out_channels": width,
        "featmap_strides": list(strides[:NUM_ROI_LEVELS]),
        "finest_scale": FINEST_ROI_SCALE * strides[0],
    }


def _assigner(low: float, high: float, *, match_low_quality: bool) -> dict[str, Any]:
    return {
        "type": "MaxIoUAssigner",
        "pos_iou_thr": high,
        "neg_iou_thr": low,
        "min_pos_iou": low,
        "match_low_quality": match_low_quality,
        "ignore_iof_thr": -1,
    }


def _sampler(number: int, share: float, *, add_truth: bool) -> dict[str, Any]:
    return {
        "type": "RandomSampler",
        "num": number,
        "pos_fraction": share,
        "neg_pos_ub": -1,
        "add_gt_as_proposals": add_truth,
    }


def _proposal_training(*, allowed_border: int) -> dict[str, Any]:
    return {
        "assigner": _assigner(0.3, 0.7, match_low_quality=True),
        "sampler": _sampler(256, 0.5, add_truth=False),
        "allowed_border": allowed_border,
        "pos_weight": -1,
        "debug": False,
    }


def _region_training(overlap: float, number: int, *, match_low_quality: bool) -> dict[str, Any]:
    return {
        "assigner": _assigner(overlap, overlap, match_low_quality=match_low_quality),
        "sampler": _sampler(number, 0.25, add_truth=True),
        "mask_size": 2 * MASK_SIZE,
        "pos_weight": -1,
        "debug": False,
    }


def _proposals(number: int, per_level: int = 0) -> dict[str, Any]:
    nms = {"type": "nms", "iou_threshold": 0.7}
    return {"nms_pre": per_level or number, "max_per_img": number, "nms": nms, "min_bbox_size": 0}


def _region_test() -> dict[str, Any]:
    nms = {"type": "nms", "iou_threshold": 0.5}
    return {"score_thr": 0.05, "nms": nms, "max_per_img": 100, "mask_thr_binary": 0.5}


def _initialize(heads: nn.Module, std: float) -> None:
    """As the heads' init_weights would, which logs each parameter; convolutions are set already."""
    for name, parameter in heads.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif "rpn_head" in name or "fc_cls" in name:
            nn.init.normal_(parameter, std=std)
        elif "fc_reg" in name:
            nn.init.normal_(parameter, std=std / 10)
        elif "shared_fcs" in name:
            nn.init.xavier_uniform_(parameter)
        elif "upsample" in name or "conv_logits" in name:
            nn.init.kaiming_normal_(parameter, mode="fan_out", nonlinearity="relu")
