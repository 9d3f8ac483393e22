"""Mean intersection over union, as mmseg computes it.

Shapes: H W image height and width, C classes.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipmill.errors import ConfigError
from clipmill.openmmlab.ops import importing_openmmlab

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
