"""Training and evaluation of detection, with pycocotools' metrics.

Trained with mmdet's heads and losses.
Shapes: B batch, S canvas side, M objects of an image, N detections, H W image.
"""

import contextlib
import copy
import io
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
from clipmill.tasks.training import (
    Images,
    TestSplit,
    TrainingSamples,
    TrainingTask,
    class_labels,
)

_NAMES: Final = (
    "mAP", "AP50", "AP75", "mAP_small", "mAP_medium", "mAP_large",
    "AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large",
)  # fmt: skip
"""In pycocotools' order."""


class DetectionTraining(DetectionTask, TrainingTask[DetectionConfig]):
    """Objects of images, mmdet's heads and losses, COCO's metrics."""

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

        ``boxes`` (M, 4), ``labels`` (M,) with -1 for none, ``is_crowd`` (M,); for a mask head also
        ``has_mask`` (M,) and ``masks`` (M, S, S / 8), packed eight pixels to a byte. As in mmdet,
        the box of an object with a mask is that of what the crop leaves of the mask.

        Raises:
            SourceError: there is a mask head, and no object has a mask.
        """
        from clipmill.data.labeled.coco import CocoFolder
        from clipmill.data.transforms.dense import boxes_of, large_scale_jitter

        samples = CocoFolder.open(folder, "train", self.classes(folder))
        if config.mask_head and samples.num_objects and not samples.num_masks:
            raise SourceError(
                f"none of the {samples.num_objects} objects of {samples.annotations} has a mask",
                expected="masks to train a mask head",
                action="set model.mask_head=false to train boxes alone",
            )

        def load(index: int, generator: np.random.Generator) -> dict[str, NDArray[Any]]:
            image_HW3, objects = samples.image_HW3(index), samples.images[index].instances
            has_mask = np.array([o.segmentation is not None for o in objects], np.bool_)
            masks_MHW = np.zeros((0, *image_HW3.shape[:2]), np.uint8)
            if config.mask_head:
                masks_MHW = samples.masks_MHW(index)
            image, masks, boxes = large_scale_jitter(
                image_HW3,
                masks_MHW,
                np.array([o.box for o in objects]),
                config.image_size,
                config.scale,
                generator,
            )
            if config.mask_head:
                boxes[has_mask] = boxes_of(masks[has_mask])
            visible = np.flatnonzero(boxes.any(axis=1))
            sample = {
                "images": image,
                "boxes": boxes[visible],
                "labels": np.array([objects[n].label for n in visible], np.int64),
                "is_crowd": np.array([objects[n].is_crowd for n in visible], np.bool_),
            }
            if config.mask_head:
                sample["has_mask"] = has_mask[visible]
                sample["masks"] = np.packbits(masks[visible], axis=-1)
            return sample

        fills = {"boxes": 0.0, "labels": -1.0, "is_crowd": 0.0}
        return TrainingSamples(
            load=load,
            num_samples=len(samples),
            num_workers=config.num_workers,
            fills=fills | ({"has_mask": 0.0, "masks": 0.0} if config.mask_head else {}),
        )

    def training_images(self, folder: Path) -> Images:
        """Return the training split's images."""
        from clipmill.data.labeled.coco import CocoFolder

        return CocoFolder.open(folder, "train")

    def inference_key(self, training_key: str) -> str | None:
        """Add the stage's number, which mmdet leaves out where there is one stage."""
        head, dot, rest = training_key.removeprefix("heads.roi_head.").partition(".")
        if training_key.startswith("heads.roi_head.") and not rest[0].isdigit():
            return f"heads.roi_head.{head}.0{dot}{rest}"
        return training_key

    def test_split(
        self,
        config: DetectionConfig,
        folder: Path,
        classes: tuple[str, ...] = (),
        split: str = "",
    ) -> "DetectionTestSplit":
        """Open the validation split, or the one that ``split`` names."""
        return DetectionTestSplit(
            folder, classes or self.classes(folder), split or "val", has_masks=config.mask_head
        )


class DetectionTestSplit(TestSplit):
    """Validation images with COCO's twelve metrics of boxes and of masks, percent."""

    def __init__(
        self, folder: Path, classes: tuple[str, ...], split: str, *, has_masks: bool
    ) -> None:
        from clipmill.data.labeled.coco import CocoFolder

        self._data = CocoFolder.open(folder, split, classes)
        self._metrics = CocoMetrics(self._data, has_masks=has_masks)
        self._has_masks = has_masks

    def __len__(self) -> int:
        return len(self._data)

    def image_HW3(self, index: int) -> NDArray[Any]:
        """Return an image, RGB, uint8."""
        return self._data.image_HW3(index)

    def truth(self, index: int) -> Prediction:
        """Return an image's objects, with scores of 1."""
        objects = self._data.images[index].instances
        truth: dict[str, NDArray[Any]] = {
            "boxes": np.array([o.box for o in objects], np.float32).reshape(-1, 4),
            "scores": np.ones(len(objects), np.float32),
            "labels": np.array([o.label for o in objects], np.int64),
        }
        if self._has_masks:
            truth["masks"] = self._data.masks_MHW(index)
        return truth

    def update(self, index: int, truth: Prediction, prediction: Prediction) -> None:
        """Add an image's detections."""
        del truth
        self._metrics.update(self._data.images[index].id, prediction)

    def compute(self) -> dict[str, float]:
        """Return the metrics by pycocotools."""
        return self._metrics.result()


class CocoMetrics:
    """Box and mask metrics of the detections of all images.

    All boxes count for box metrics, and objects with a mask for mask metrics.
    """

    def __init__(self, truth: CocoFolder, *, has_masks: bool = True) -> None:
        self._truth = truth
        self._has_masks = has_masks
        self._detections: list[dict[str, Any]] = []

    def update(self, image_id: int, prediction: Prediction) -> None:
        """Add the detections of an image, in its own pixels."""
        from pycocotools import mask as coco_mask

        arrays = (prediction[name] for name in ("boxes", "scores", "labels"))
        for number, (box, score, label) in enumerate(zip(*arrays, strict=True)):
            x1, y1, x2, y2 = (float(v) for v in box)
            detection = {
                "image_id": image_id,
                "category_id": self._truth.category_ids[int(label)],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": float(score),
            }
            if self._has_masks:
                mask_HW = np.asfortranarray(prediction["masks"][number], np.uint8)
                detection["segmentation"] = coco_mask.encode(mask_HW)
            self._detections.append(detection)

    def result(self) -> dict[str, float]:
        """Return ``box_mAP``, ``mask_mAP`` and the rest, and ``box_AP.CLASS``, percent.

        A metric without objects to compute it from (there is no large one, say) is left out.

        Raises:
            SourceError: no image holds an object that counts.
        """
        metrics: dict[str, float] = {}
        by_class: dict[str, float] = {}
        with contextlib.redirect_stdout(io.StringIO()):
            kinds = (("bbox", "box"), ("segm", "mask"))[: 1 + self._has_masks]
            for kind, prefix in kinds:
                truth = self._ground_truth(masks_only=kind == "segm")
                evaluation = self._run_cocoeval(truth, kind)
                for name, value in zip(_NAMES, evaluation.stats, strict=True):
                    if value >= 0:
                        metrics[f"{prefix}_{name}"] = 100 * float(value)
                # Thresholds, recalls, classes, areas (0: all), numbers of detections (last: most).
                precision_TRC = evaluation.eval["precision"][..., 0, -1]
                order = list(evaluation.params.catIds)
                labels = class_labels(self._truth.classes)
                for category, name in zip(self._truth.category_ids, labels, strict=True):
                    value = precision_TRC[..., order.index(category)].mean()
                    if value >= 0:  # -1 where the truth has none
                        by_class[f"{prefix}_AP.{name}"] = 100 * float(value)
        if "box_mAP" not in metrics:
            raise SourceError(
                f"{self._truth.annotations} holds no object that counts",
                expected="objects that aren't crowds, in images to evaluate a model on",
                action="give data with annotations",
            )
        return metrics | by_class

    def _ground_truth(self, *, masks_only: bool) -> Any:
        from pycocotools.coco import COCO

        truth = self._truth
        annotations = [dict(a) for a in truth.truth if a["segmentation"] or not masks_only]
        names = zip(truth.category_ids, truth.classes, strict=True)
        content = {
            "images": [{"id": i.id, "height": i.height, "width": i.width} for i in truth.images],
            "categories": [{"id": number, "name": name} for number, name in names],
            "annotations": annotations,
        }
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
        return evaluation


def _indexed(coco: Any, content: dict[str, Any]) -> Any:
    coco.dataset = content
    coco.createIndex()
    return coco


if TYPE_CHECKING:
    from clipmill.models.encoders import DenseEncoder
    from clipmill.tasks.objective import EncoderObjective
