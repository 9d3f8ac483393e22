"""Training heads, losses and mean IoU of segmentation: mmseg's own, built of plain arguments.

Shapes: B batch, H W height and width of labels, C classes.
"""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from clipmill.errors import ConfigError
from clipmill.openmmlab.ops import importing_openmmlab

AUXILIARY_WEIGHT = 0.4
"""Weight of the auxiliary head's loss (mmseg's UPerNet configs)."""

# Said on building a head: both settings are meant.
_NOTICES = ("Default ``avg_non_ignore`` is False", "For binary segmentation, we suggest")


class UperNetTraining(nn.Module):
    """UPerNet (Xiao et al. 2018) on four maps, with an FCN head on the third to help it train.

    ``decode_head``'s state dict is that of :class:`clipmill.models.heads.UperNetHead`.
    """

    def __init__(
        self,
        in_channels: tuple[int, ...],
        channels: int,
        num_classes: int,
        *,
        aux_channels: int = 256,
        dropout: float = 0.1,
        classifier_std: float = 0.01,
    ) -> None:
        super().__init__()
        with importing_openmmlab():
            from mmseg.models.decode_heads.fcn_head import FCNHead
            from mmseg.models.decode_heads.uper_head import UPerHead
        common = _common(num_classes, dropout)
        with _building():
            self.decode_head = UPerHead(
                in_channels=list(in_channels),
                in_index=[0, 1, 2, 3],
                channels=channels,
                pool_scales=(1, 2, 3, 6),
                loss_decode=_cross_entropy(1.0),
                **common,
            )
            self.auxiliary_head = FCNHead(
                in_channels=in_channels[2],
                in_index=2,
                channels=aux_channels,
                num_convs=1,
                concat_input=False,
                loss_decode=_cross_entropy(AUXILIARY_WEIGHT),
                **common,
            )
        for head in (self.decode_head, self.auxiliary_head):
            # As the heads' init_weights would, which logs each parameter; the rest is set already.
            nn.init.normal_(head.conv_seg.weight, std=classifier_std)
            nn.init.zeros_(head.conv_seg.bias)

    def loss(self, maps: list[Tensor], labels_BHW: Tensor) -> dict[str, Tensor]:
        """Losses ``decode`` and ``auxiliary``, already weighted: their sum is to be minimized.

        Labels are int64, 255 where unknown. As in mmseg's configs, cross-entropy is divided by all
        pixels, unknown ones too: an image of which little is known counts for little. While
        training a batch needs two images or more, for batch norm sees one value of each at the
        coarsest pooling.
        """
        samples = _data_samples(labels_BHW)
        return {
            "decode": _loss(self.decode_head, maps, samples),
            "auxiliary": _loss(self.auxiliary_head, maps, samples),
        }


class SemanticFpnTraining(nn.Module):
    """SemanticFPN (Kirillov et al. 2019) on maps of the given strides.

    ``neck`` and ``decode_head`` have the names of
    :class:`clipmill.models.heads.SemanticFpnHead`.
    """

    def __init__(
        self,
        in_channels: tuple[int, ...],
        strides: tuple[int, ...],
        width: int,
        channels: int,
        num_classes: int,
        *,
        dropout: float = 0.1,
        classifier_std: float = 0.01,
    ) -> None:
        super().__init__()
        with importing_openmmlab():
            from mmseg.models.decode_heads.fpn_head import FPNHead
            from mmseg.models.necks.fpn import FPN
        with _building():
            self.neck = FPN(list(in_channels), width, num_outs=len(in_channels))
            self.decode_head = FPNHead(
                feature_strides=[stride // strides[0] for stride in strides],
                in_channels=[width] * len(in_channels),
                in_index=list(range(len(in_channels))),
                channels=channels,
                loss_decode=_cross_entropy(1.0),
                **_common(num_classes, dropout),
            )
        # As init_weights would have it: Xavier's in the neck, a small classifier.
        for module in self.neck.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.decode_head.conv_seg.weight, std=classifier_std)
        nn.init.zeros_(self.decode_head.conv_seg.bias)

    def loss(self, maps: list[Tensor], labels_BHW: Tensor) -> dict[str, Tensor]:
        """Loss ``decode``; labels are int64, 255 where unknown (see :class:`UperNetTraining`)."""
        return {"decode": _loss(self.decode_head, self.neck(maps), _data_samples(labels_BHW))}


@contextlib.contextmanager
def _building() -> Iterator[None]:
    with warnings.catch_warnings():
        for notice in _NOTICES:
            warnings.filterwarnings("ignore", notice, UserWarning)
        yield


def _common(num_classes: int, dropout: float) -> dict[str, Any]:
    return {
        "num_classes": num_classes,
        "dropout_ratio": dropout,
        "norm_cfg": {"type": "SyncBN" if _on_several_gpus() else "BN", "requires_grad": True},
        "align_corners": False,
        "ignore_index": IGNORE_INDEX,
    }


def _cross_entropy(weight: float) -> dict[str, Any]:
    return {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": weight}


def _on_several_gpus() -> bool:
    """Return whether to synchronize batch statistics: torch's SyncBatchNorm works on GPUs only."""
    distributed = torch.distributed
    return distributed.is_initialized() and distributed.get_backend() == "nccl"


def _data_samples(labels_BHW: Tensor) -> list[Any]:
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    samples = []
    for labels_HW in labels_BHW:
        sample = SegDataSample()
        sample.gt_sem_seg = PixelData(data=labels_HW[None])
        samples.append(sample)
    return samples


def _loss(head: Any, maps: list[Tensor], samples: list[Any]) -> Tensor:
    loss: Tensor = head.loss_by_feat(head(maps), samples)["loss_ce"]
    return loss


IGNORE_INDEX = 255
"""Label of a pixel that neither trains nor counts."""

LabelMap = NDArray[np.integer[Any]] | Tensor
"""Class ids (H, W), of any integer type."""


class MeanIoU:
    """Gathers per-class areas, image by image.

    Areas are summed in float64: float32, which mmseg keeps, drops pixels past 2^24 of a class.
    """

    def __init__(self, num_classes: int) -> None:
        if not 2 <= num_classes <= IGNORE_INDEX:
            raise ConfigError(
                f"labels of {num_classes} classes",
                expected=f"2 to {IGNORE_INDEX} classes: {IGNORE_INDEX} marks ignored pixels",
                action="correct the number of classes",
            )
        with importing_openmmlab():
            from mmseg.evaluation.metrics.iou_metric import IoUMetric
        self.num_classes = num_classes
        self._metric = IoUMetric
        # Intersection, union, predicted and true area.
        self._areas_4C = torch.zeros(4, num_classes, dtype=torch.float64)

    def update(self, prediction_HW: LabelMap, truth_HW: LabelMap) -> tuple[Tensor, Tensor]:
        """Add one image; the truth is 255 where it's unknown.

        Returns the image's intersection and union (C,) in pixels.
        """
        assert prediction_HW.shape == truth_HW.shape
        prediction = _as_tensor(prediction_HW)
        truth = _as_tensor(truth_HW).to(prediction.device)
        areas = self._metric.intersect_and_union(prediction, truth, self.num_classes, IGNORE_INDEX)
        self._areas_4C += torch.stack(areas)
        return areas[0], areas[1]

    def result(self) -> dict[str, float]:
        """``mIoU``, ``mAcc`` (mean recall over classes) and ``aAcc`` (of pixels), in percent.

        A class is left out of mIoU where it's neither in truth nor predicted, and out of mAcc
        where it isn't in truth. All are NaN before the first pixel that counts.
        """
        by_class = self._by_class()
        return {
            "mIoU": _mean_percent(by_class["IoU"]),
            "mAcc": _mean_percent(by_class["Acc"]),
            "aAcc": _mean_percent(by_class["aAcc"]),
        }

    def per_class(self) -> dict[int, tuple[float, float]]:
        """IoU and accuracy (recall) of each class in percent.

        NaN of a class that's neither in truth nor predicted, and the accuracy of one that isn't in
        truth.
        """
        metrics = self._by_class()
        pairs = zip(metrics["IoU"], metrics["Acc"], strict=True)
        return {c: (100 * float(iou), 100 * float(acc)) for c, (iou, acc) in enumerate(pairs)}

    def _by_class(self) -> dict[str, NDArray[np.float64]]:
        metrics: dict[str, NDArray[np.float64]] = self._metric.total_area_to_metrics(
            *self._areas_4C
        )
        return metrics


def _as_tensor(labels_HW: LabelMap) -> Tensor:
    if isinstance(labels_HW, Tensor):
        return labels_HW.long()
    return torch.from_numpy(labels_HW.astype(np.int64))


def _mean_percent(values: NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return 100 * float(known.mean()) if known.size else float("nan")
