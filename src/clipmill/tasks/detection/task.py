"""Detection with instance masks: Mask R-CNN and its cascade on any encoder (CLIP-QC, Table 13).

Trained with mmdet's heads and losses; served by the same heads in plain PyTorch.
Shapes: B batch, S canvas side, M objects of an image, N detections, H W image.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
import numpy as np
from numpy.typing import NDArray
from clipmill.config import Config
from clipmill.models.config import EncoderConfig
from clipmill.stage_records import Report
from clipmill.tasks.base import (
    EvaluatedSample,
    Evaluation,
    Images,
    Metric,
    OutputSpec,
    Predict,
    Prediction,
    Task,
)
from clipmill.tasks.visualization import draw_detections

if TYPE_CHECKING:
    from torch import Tensor, nn

    from clipmill.tasks.objective import EncoderObjective


@dataclass(frozen=True, kw_only=True, slots=True)
class DetectionConfig(Config):
    """Heads, canvas and augmentation."""

    image_size: int = 1024
    """Side of the training canvas, and the longer side at test, pixels (ViTDet)."""
    scale: tuple[float, float] = (0.1, 2.0)
    """Large-scale jitter: lowest and highest factor, of the picture that fits the canvas."""
    is_frozen: bool = False
    """Whether the encoder stays as it is: a probe of its features."""
    drop_path: float = 0.1
    """Stochastic depth at the encoder's top (swept 0.0 to 0.3; CLIP-QC, Table 13)."""
    neck_channels: int = 256
    """Width of the pyramid's maps, and of the heads' convolutions (mmdet)."""
    hidden_width: int = 1024
    """Width of the box head's layers (mmdet)."""
    num_stages: int = 1
    """Stages that refine boxes: 1 for Mask R-CNN, 3 for Cascade Mask R-CNN."""
    anchor_scale: float = 8.0
    """Side of a square anchor in strides of its map (mmdet)."""
    num_proposals: int = 1000
    """Proposals of an image that are kept at test, of each map and in all; twice as many of each
    map in training, and in all for the cascade (mmdet)."""
    regions_per_image: int = 512
    """Regions that an image trains the heads with, a quarter of them objects (mmdet)."""
    start_std: float = 0.01
    """Standard deviation of the classifiers' start weights, ten times that of the boxes' (mmdet).
    Heads far narrower than mmdet's want larger ones."""
    num_workers: int = 4
    """Processes that load samples; 0 loads in the training process."""


class DetectionTask(Task[DetectionConfig]):
    """COCO's layout in, boxes with masks out, judged by COCO's mAP of boxes."""

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
        """Names of the categories, in the order of COCO's ids."""
        from clipmill.data.labeled.coco import coco_classes

        return coco_classes(folder)

    def sides(self, config: DetectionConfig) -> tuple[int, ...]:
        """The canvas's."""
        return (config.image_size,)

    def objective(
        self, config: DetectionConfig, encoder: EncoderConfig, classes: tuple[str, ...]
    ) -> "EncoderObjective":
        """mmdet's losses of proposals, boxes and masks."""
        from clipmill.tasks.detection.objective import DetectionObjective

        return DetectionObjective(config, encoder, len(classes))

    def batches(
        self,
        config: DetectionConfig,
        folder: Path,
        *,
        batch_size: int,
        seed: int,
        cursor: int,
        rank: int,
        world_size: int,
    ) -> Iterator[dict[str, "Tensor"]]:
        """``images`` (B, S, S, 3) uint8, and objects, filled up to the most that an image has.

        ``boxes`` (B, M, 4), ``labels`` (B, M) with -1 for none, ``is_crowd`` (B, M), and ``masks``
        (B, M, S, S / 8), packed eight pixels to a byte.
        """
        from clipmill.data.transforms.instance import boxes_of, jitter
        from clipmill.data.labeled.coco import CocoFolder, coco_split
        from clipmill.data.labeled.dataloader import sample_batches

        samples = CocoFolder.open(folder, coco_split(folder, "train"))

        def load(index: int, generator: np.random.Generator) -> dict[str, NDArray[Any]]:
            image_HW3, masks_MHW = samples.image_HW3(index), samples.masks_MHW(index)
            image, masks = jitter(image_HW3, masks_MHW, config.image_size, config.scale, generator)
            seen = np.flatnonzero(masks.any(axis=(1, 2)))
            objects = [samples.images[index].instances[n] for n in seen]
            return {
                "images": image,
                "boxes": boxes_of(masks[seen]),
                "labels": np.array([o.label for o in objects], np.int64),
                "is_crowd": np.array([o.is_crowd for o in objects], np.bool_),
                "masks": np.packbits(masks[seen], axis=-1),
            }

        return sample_batches(
            load,
            len(samples),
            batch_size=batch_size,
            seed=seed,
            cursor=cursor,
            num_workers=config.num_workers,
            rank=rank,
            world_size=world_size,
            fills={"boxes": 0, "labels": -1, "is_crowd": 0, "masks": 0},
        )

    def training_images(self, folder: Path) -> Images:
        """The training split's images."""
        from clipmill.data.labeled.coco import CocoFolder, coco_split

        return CocoFolder.open(folder, coco_split(folder, "train"))

    def network(
        self, config: DetectionConfig, encoder: EncoderConfig, classes: tuple[str, ...]
    ) -> "nn.Module":
        """Encoder, pyramid and heads in plain PyTorch."""
        from clipmill.tasks.detection.model import DetectionNetwork

        return DetectionNetwork(config, encoder, len(classes))

    def served_name(self, trained_name: str) -> str | None:
        """mmdet's heads are ours; where it has one stage it doesn't number it."""
        head, dot, rest = trained_name.removeprefix("heads.roi_head.").partition(".")
        if trained_name.startswith("heads.roi_head.") and not rest[0].isdigit():
            return f"heads.roi_head.{head}.0{dot}{rest}"
        return trained_name

    def evaluate(
        self,
        predict: Predict,
        config: DetectionConfig,
        folder: Path,
        *,
        num_samples: int,
        report: Report,
    ) -> Evaluation:
        """COCO's twelve figures of boxes and of masks, by pycocotools, in percent."""
        from clipmill.data.labeled.coco import CocoFolder, coco_split
        from clipmill.tasks.detection.metrics import CocoMetrics

        del config
        data = CocoFolder.open(folder, coco_split(folder, "val"))
        metrics = CocoMetrics(data)
        samples = []
        for index in range(len(data)):
            image_HW3 = data.image_HW3(index)
            found = predict(image_HW3)
            metrics.update(data.images[index].id, found)
            if index < num_samples:
                objects = data.images[index].instances
                truth: Prediction = {
                    "boxes": np.array([o.box for o in objects], np.float32).reshape(-1, 4),
                    "scores": np.ones(len(objects), np.float32),
                    "labels": np.array([o.label for o in objects], np.int64),
                    "masks": data.masks_MHW(index),
                }
                samples.append(EvaluatedSample(image_HW3=image_HW3, truth=truth, prediction=found))
            report(index + 1, len(data), "evaluated")
        return Evaluation(metrics=metrics.result(), samples=tuple(samples))

    def draw(
        self, prediction: Prediction, image_HW3: NDArray[Any], classes: tuple[str, ...]
    ) -> NDArray[Any]:
        """The image with each likely object's mask and box in its class's colour."""
        return draw_detections(prediction, image_HW3, classes)
