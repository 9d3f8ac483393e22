"""COCO's metrics of detection, as pycocotools computes them.

Shapes: N detections, H W image.
"""

import contextlib
import copy
import io
import json
from typing import Any, Final

import numpy as np

from clipmill.data.labeled.coco import CocoFolder
from clipmill.errors import SourceError
from clipmill.tasks.base import Prediction

_NAMES: Final = (
    "mAP", "AP50", "AP75", "mAP_small", "mAP_medium", "mAP_large",
    "AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large",
)  # fmt: skip
"""In pycocotools' order."""


class CocoMetrics:
    """Box and mask metrics of the detections of all images."""

    def __init__(self, truth: CocoFolder) -> None:
        self._truth = truth
        self._detections: list[dict[str, Any]] = []

    def update(self, image_id: int, prediction: Prediction) -> None:
        """Add the detections of an image, in its own pixels."""
        from pycocotools import mask as coco_mask

        for box, score, label, mask_HW in zip(
            *(prediction[name] for name in ("boxes", "scores", "labels", "masks")), strict=True
        ):
            x1, y1, x2, y2 = (float(v) for v in box)
            self._detections.append(
                {
                    "image_id": image_id,
                    "category_id": self._truth.category_ids[int(label)],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "score": float(score),
                    "segmentation": coco_mask.encode(np.asfortranarray(mask_HW, np.uint8)),
                }
            )

    def result(self) -> dict[str, float]:
        """Return ``box_mAP``, ``mask_mAP`` and the rest, percent.

        A metric without objects to compute it from (there is no large one, say) is left out.

        Raises:
            SourceError: no image holds an object that counts.
        """
        metrics = {}
        with contextlib.redirect_stdout(io.StringIO()):
            truth = self._ground_truth()
            for kind, prefix in (("bbox", "box"), ("segm", "mask")):
                for name, value in zip(_NAMES, self._run_cocoeval(truth, kind), strict=True):
                    if value >= 0:
                        metrics[f"{prefix}_{name}"] = 100 * float(value)
        if "box_mAP" not in metrics:
            raise SourceError(
                f"{self._truth.annotations} holds no object that counts",
                expected="objects that aren't crowds, in images to evaluate a model on",
                action="give data with annotations",
            )
        return metrics

    def _ground_truth(self) -> Any:
        from pycocotools.coco import COCO

        content = json.loads(self._truth.annotations.read_bytes())
        for annotation in content["annotations"]:
            annotation.setdefault("iscrowd", 0)
            annotation.setdefault("area", annotation["bbox"][2] * annotation["bbox"][3])
        content["annotations"] = [a for a in content["annotations"] if a.get("segmentation")]
        return _indexed(COCO(), content)

    def _run_cocoeval(self, truth: Any, kind: str) -> Any:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        # pycocotools can't read an empty list of results.
        empty = {**truth.dataset, "annotations": []}
        # It also writes into the list that it's given.
        detections = (
            truth.loadRes(copy.deepcopy(self._detections))
            if self._detections
            else _indexed(COCO(), empty)
        )
        evaluation = COCOeval(truth, detections, kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        return evaluation.stats


def _indexed(coco: Any, content: dict[str, Any]) -> Any:
    coco.dataset = content
    coco.createIndex()
    return coco
