"""Training and evaluation of segmentation on masks of classes.

Trained with mmseg's heads and losses. Shapes: B batch, H W image, C classes.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clipmill.errors import SourceError
from clipmill.models.config import EncoderConfig
from clipmill.tasks.base import Prediction
from clipmill.tasks.config import SegmentationConfig
from clipmill.tasks.segmentation.task import SegmentationTask
from clipmill.tasks.training import (
    Images,
    Predict,
    TestSplit,
    TrainingSamples,
    TrainingTask,
    class_labels,
)

if TYPE_CHECKING:
    from clipmill.tasks.objective import DenseObjective


class SegmentationTraining(SegmentationTask, TrainingTask[SegmentationConfig]):
    """Masks of classes, mmseg's heads and losses, mean IoU."""

    def classes(self, folder: Path) -> tuple[str, ...]:
        """Return the names of the folder's classes."""
        from clipmill.data.labeled.dense import segmentation_classes

        return segmentation_classes(folder)

    def input_sizes(self, config: SegmentationConfig) -> tuple[int, ...]:
        """Return the sides of the crop and of the shorter side at test."""
        return tuple({config.crop_size, config.test_side})

    def build_objective(
        self, config: SegmentationConfig, encoder: EncoderConfig, classes: tuple[str, ...]
    ) -> "DenseObjective":
        """Build the cross-entropy of the head and of the auxiliary head."""
        from clipmill.tasks.segmentation.objective import SegmentationObjective

        return SegmentationObjective(config, encoder, len(classes))

    def training_samples(self, config: SegmentationConfig, folder: Path) -> TrainingSamples:
        """Return ``images`` (H, W, 3) uint8 and ``labels`` (H, W) uint8; ``keys`` if cached."""
        from clipmill.data.labeled.dataloader import cached_in_memory
        from clipmill.data.labeled.dense import IGNORED, SegmentationFolder
        from clipmill.data.transforms import dense

        samples = SegmentationFolder.open(folder, "train")
        photometric = asdict(config.photometric)

        @cached_in_memory
        def resized(index: int) -> dict[str, NDArray[Any]]:
            image, label = dense.center_crop_pair(*samples.pair(index), config.crop_size)
            return {"images": image, "labels": label}

        def load(index: int, generator: np.random.Generator) -> dict[str, NDArray[Any]]:
            if config.cache_features:
                return resized(index) | {"keys": np.asarray(index)}
            image, label = samples.pair(index)
            factor = generator.uniform(*config.scale)
            if config.scale_of == "test":
                factor *= dense.factor_at_test(label.shape, config.test_side)
            image, label = dense.resize_pair(image, label, factor)
            image, label = dense.crop_pair(
                image,
                label,
                config.crop_size,
                generator,
                fill=IGNORED,
                cat_max_ratio=config.cat_max_ratio,
            )
            image, label = dense.flip_pair(image, label, generator)
            image = dense.photometric_distortion(image, generator, **photometric)
            return {"images": image, "labels": label}

        return TrainingSamples(load=load, num_samples=len(samples), num_workers=config.num_workers)

    def training_images(self, folder: Path) -> Images:
        """Return the training split's images."""
        from clipmill.data.labeled.dense import SegmentationFolder

        return SegmentationFolder.open(folder, "train")

    def inference_key(self, training_key: str) -> str | None:
        """Map mmseg's neck and decode head to the head; drop the auxiliary head.

        Raises:
            KeyError: another module of mmseg's has weights, which the served model would lack.
        """
        if not training_key.startswith("heads."):
            return training_key
        module, _, rest = training_key.removeprefix("heads.").partition(".")
        keys = {
            "decode_head": f"head.{rest}",
            "neck": f"head.neck.{rest}",
            "auxiliary_head": None,
        }
        return keys[module]

    def test_split(
        self,
        config: SegmentationConfig,
        folder: Path,
        classes: tuple[str, ...] = (),
        split: str = "",
    ) -> "SegmentationTestSplit":
        """Open the validation split, or the one that ``split`` names."""
        del config
        return SegmentationTestSplit(folder, classes or self.classes(folder), split or "val")

    def metric_from_rows(self, per_image: Mapping[str, NDArray[Any]]) -> float:
        """Compute mIoU of summed intersections and unions (images, classes), as mmseg does."""
        intersection_C, union_C = (per_image[k].sum(0) for k in ("intersection", "union"))
        is_present_C = union_C > 0
        return float(100 * (intersection_C[is_present_C] / union_C[is_present_C]).mean())

    def trivial_predictors(self, folder: Path) -> Mapping[str, Predict]:
        """Return ``chance``, a random class for each pixel, and ``constant``, the commonest."""
        from clipmill.data.labeled.dense import SegmentationFolder

        num_classes = len(self.classes(folder))
        labels = SegmentationFolder.open(folder, "train")
        counts = sum(
            np.bincount(labels.classes_HW(index).reshape(-1), minlength=256)
            for index in range(len(labels))
        )
        commonest = int(np.argmax(np.asarray(counts)[:num_classes]))
        generator = np.random.default_rng(0)
        return {
            "chance": lambda image_HW3: {
                "classes": generator.integers(num_classes, size=image_HW3.shape[:2], dtype=np.uint8)
            },
            "constant": lambda image_HW3: {
                "classes": np.full(image_HW3.shape[:2], commonest, np.uint8)
            },
        }


class SegmentationTestSplit(TestSplit):
    """Validation images with mIoU, mAcc and aAcc by mmseg's computation, percent.

    Metrics include ``IoU.CLASS`` and ``Acc.CLASS`` for each class in the ground truth.
    """

    def __init__(self, folder: Path, classes: tuple[str, ...], split: str) -> None:
        from clipmill.data.labeled.dense import SegmentationFolder
        from clipmill.openmmlab.segmentation import MeanIoU

        self._data = SegmentationFolder.open(folder, split, classes)
        self._classes = classes
        self._mean_iou = MeanIoU(num_classes=len(classes))
        self._areas: list[Any] = []

    def __len__(self) -> int:
        return len(self._data)

    def image_HW3(self, index: int) -> NDArray[Any]:
        """Return an image, RGB, uint8."""
        return self._data.image_HW3(index)

    def truth(self, index: int) -> Prediction:
        """Return an image's class map, of the image's size."""
        return {"classes": self._data.pair(index)[1]}

    def update(self, index: int, truth: Prediction, prediction: Prediction) -> None:
        """Add an image's areas of intersection and union."""
        del index
        self._areas.append(self._mean_iou.update(prediction["classes"], truth["classes"]))

    def compute(self) -> dict[str, float]:
        """Return the metrics over all images.

        Raises:
            SourceError: no pixel of any mask has a class.
        """
        metrics: dict[str, float] = self._mean_iou.result()
        if math.isnan(metrics["aAcc"]):
            raise SourceError(
                "no pixel of the masks has a class: all are ignored",
                expected="masks with at least one pixel of a class",
                action="correct the masks, or their numbering in segmentation.json",
            )
        return metrics | self._metrics_by_class()

    def per_image(self) -> dict[str, NDArray[Any]]:
        """Return ``intersection`` and ``union`` (images, classes)."""
        rows = zip(("intersection", "union"), zip(*self._areas, strict=True), strict=True)
        return {name: np.stack([np.asarray(row) for row in areas]) for name, areas in rows}

    def _metrics_by_class(self) -> dict[str, float]:
        metrics: dict[str, float] = {}
        labels = class_labels(self._classes)
        for number, (iou, accuracy) in self._mean_iou.per_class().items():
            name = labels[number]
            # A class that isn't in the truth has no accuracy, and its IoU means nothing.
            if not math.isnan(accuracy):
                metrics |= {f"IoU.{name}": iou, f"Acc.{name}": accuracy}
        return metrics
