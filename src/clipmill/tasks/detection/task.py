"""Detection with instance masks: Mask R-CNN and its cascade on any encoder (CLIP-QC, Table 13).

Trained with mmdet's heads and losses; inference uses the same heads in plain PyTorch.
Shapes: B batch, S canvas side, M objects of an image, N detections, H W image.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clipmill.models.config import EncoderConfig
from clipmill.tasks.base import (
    Images,
    Metric,
    OutputSpec,
    Prediction,
    Task,
    TestSplit,
    TrainingSamples,
)
from clipmill.tasks.detection.config import DetectionConfig
from clipmill.tasks.visualization import draw_detections

if TYPE_CHECKING:
    from torch import nn

    from clipmill.models.encoders import DenseEncoder
    from clipmill.tasks.objective import EncoderObjective


class DetectionTask(Task[DetectionConfig]):
    """Predict boxes with masks from COCO's layout; ranked by COCO's box mAP."""

    name = "detection"
    metric = Metric(name="box_mAP", unit="%", higher_is_better=True)
    outputs = (
        OutputSpec(name="boxes", dtype="float32", unit="pixels, x1 y1 x2 y2", shape=("N", 4)),
        OutputSpec(name="scores", dtype="float32", unit="probability", shape=("N",)),
        OutputSpec(name="labels", dtype="int64", unit="class id", shape=("N",)),
        OutputSpec(name="masks", dtype="uint8", unit="0 or 1", shape=("N", "H", "W")),
    )
    config_type = DetectionConfig

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
        from clipmill.data.transforms.instance import boxes_of, large_scale_jitter

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

    def build_inference_model(
        self, config: DetectionConfig, encoder: EncoderConfig, classes: tuple[str, ...]
    ) -> "nn.Module":
        """Build encoder, pyramid and heads in plain PyTorch."""
        from clipmill.tasks.detection.model import DetectionNetwork

        return DetectionNetwork(config, encoder, len(classes))

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

    def visualize(
        self, prediction: Prediction, image_HW3: NDArray[Any], classes: tuple[str, ...]
    ) -> NDArray[Any]:
        """Draw each likely object's mask and box in its class's color, on the image."""
        return draw_detections(prediction, image_HW3, classes)


class DetectionTestSplit(TestSplit):
    """Validation images with COCO's twelve metrics of boxes and of masks, percent."""

    def __init__(self, folder: Path) -> None:
        from clipmill.data.labeled.coco import CocoFolder, coco_split
        from clipmill.tasks.detection.metrics import CocoMetrics

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
