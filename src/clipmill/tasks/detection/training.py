"""Training and evaluation of detection on COCO's layout, with pycocotools' metrics.

Trained with mmdet's heads and losses.
Shapes: B batch, S canvas side, M objects of an image, N detections, H W image.
"""

import contextlib
import copy
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from clipmill.data.labeled.coco import CocoFolder
from clipmill.errors import SourceError
from clipmill.models.config import EncoderConfig
from clipmill.tasks.base import Prediction
from clipmill.tasks.config import DetectionConfig
from clipmill.tasks.detection.task import DetectionTask
from clipmill.tasks.training import Images, TestSplit, TrainingSamples, TrainingTask

_NAMES: Final = (
    "mAP", "AP50", "AP75", "mAP_small", "mAP_medium", "mAP_large",
    "AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large",
)  # fmt: skip
"""In pycocotools' order."""


class DetectionTraining(DetectionTask, TrainingTask[DetectionConfig]):
    """COCO's layout, mmdet's heads and losses, COCO's metrics."""

    def classes(self, folder: Path) -> tuple[str, ...]:
        """Return the categories' names in the order of COCO's ids."""
        from clipmill.data.labeled.coco import coco_classes

        return coco_classes(folder)

    def input_sizes(self, config: DetectionConfig) -> tuple[int, ...]:
        """Return the canvas's side."""
        return (config.image_size,)

    def build_objective(
        self, config: DetectionConfig, encoder: EncoderConfig, classes: tuple[str, ...]
    ) -> "EncoderObjective[DenseEncoder]":
        """Build mmdet's losses of proposals, boxes and masks."""
        from clipmill.tasks.detection.objective import DetectionObjective

        return DetectionObjective(config, encoder, len(classes))

    def training_samples(self, config: DetectionConfig, folder: Path) -> TrainingSamples:
        """Return ``images`` (S, S, 3) uint8 and objects, padded to the most that an image has.

        ``boxes`` (M, 4), ``labels`` (M,) with -1 for none, ``is_crowd`` (M,), and ``masks``
        (M, S, S / 8), packed eight pixels to a byte.
        """
        from clipmill.data.labeled.coco import CocoFolder, coco_split
        from clipmill.data.transforms.dense import boxes_of, large_scale_jitter

        samples = CocoFolder.open(folder, coco_split(folder, "train"))

        def load(index: int, generator: np.random.Generator) -> dict[str, NDArray[Any]]:
            image_HW3, masks_MHW = samples.image_HW3(index), samples.masks_MHW(index)
            image, masks = large_scale_jitter(
                image_HW3, masks_MHW, config.image_size, config.scale, generator
            )
            visible = np.flatnonzero(masks.any(axis=(1, 2)))
            objects = [samples.images[index].instances[n] for n in visible]
            return {
                "images": image,
                "boxes": boxes_of(masks[visible]),
                "labels": np.array([o.label for o in objects], np.int64),
                "is_crowd": np.array([o.is_crowd for o in objects], np.bool_),
                "masks": np.packbits(masks[visible], axis=-1),
            }

        return TrainingSamples(
            load=load,
            num_samples=len(samples),
            num_workers=config.num_workers,
            fills={"boxes": 0, "labels": -1, "is_crowd": 0, "masks": 0},
        )

    def training_images(self, folder: Path) -> Images:
        """Return the training split's images."""
        from clipmill.data.labeled.coco import CocoFolder, coco_split

        return CocoFolder.open(folder, coco_split(folder, "train"))

    def inference_key(self, training_key: str) -> str | None:
        """Add the stage's number, which mmdet leaves out where there is one stage."""
        head, dot, rest = training_key.removeprefix("heads.roi_head.").partition(".")
        if training_key.startswith("heads.roi_head.") and not rest[0].isdigit():
            return f"heads.roi_head.{head}.0{dot}{rest}"
        return training_key

    def test_split(self, config: DetectionConfig, folder: Path) -> "DetectionTestSplit":
        """Open the validation split."""
        del config
        return DetectionTestSplit(folder)


class DetectionTestSplit(TestSplit):
    """Validation images with COCO's twelve metrics of boxes and of masks, percent."""

    def __init__(self, folder: Path) -> None:
        from clipmill.data.labeled.coco import CocoFolder, coco_split

        self._data = CocoFolder.open(folder, coco_split(folder, "val"))
        self._metrics = CocoMetrics(self._data)

    def __len__(self) -> int:
        return len(self._data)

    def image_HW3(self, index: int) -> NDArray[Any]:
        """Return an image, RGB, uint8."""
        return self._data.image_HW3(index)

    def truth(self, index: int) -> Prediction:
        """Return an image's objects, with scores of 1."""
        objects = self._data.images[index].instances
        return {
            "boxes": np.array([o.box for o in objects], np.float32).reshape(-1, 4),
            "scores": np.ones(len(objects), np.float32),
            "labels": np.array([o.label for o in objects], np.int64),
            "masks": self._data.masks_MHW(index),
        }

    def update(self, index: int, truth: Prediction, prediction: Prediction) -> None:
        """Add an image's detections."""
        del truth
        self._metrics.update(self._data.images[index].id, prediction)

    def compute(self) -> dict[str, float]:
        """Return the metrics by pycocotools."""
        return self._metrics.result()


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


if TYPE_CHECKING:
    from clipmill.models.encoders import DenseEncoder
    from clipmill.tasks.objective import EncoderObjective
