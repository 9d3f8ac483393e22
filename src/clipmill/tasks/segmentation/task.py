"""Semantic segmentation: UperNet or SemanticFPN on any encoder (CLIP-QC, Table 14).

Trained with mmseg's heads and losses; served by the same head in plain PyTorch.
Shapes: B batch, H W image, C classes.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
import numpy as np
from numpy.typing import NDArray
from clipmill.config import Config
from clipmill.data.transforms.dense import PhotometricConfig
from clipmill.errors import ConfigError
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
from clipmill.tasks.visualization import class_colours

if TYPE_CHECKING:
    from torch import Tensor, nn

    from clipmill.openmmlab.segmentation import MeanIoU
    from clipmill.tasks.objective import DenseObjective


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentationConfig(Config):
    """Head, crop, augmentation and test."""

    head: Literal["upernet", "semantic-fpn", "linear"] = "upernet"
    """UPerNet for ViTs, SemanticFPN for mobile encoders (CLIP-QC, Table 14); ``linear`` is a
    probe of the encoder's maps (:mod:`clipmill.models.linear_head`)."""
    crop_size: int = 512
    """Side of the training crop, and the shorter side at test, pixels (CLIP-QC, Table 14)."""
    scale: tuple[float, float] = (0.5, 2.0)
    """Random resize before the crop, lowest and highest factor (mmseg's ADE20K pipeline)."""
    photometric: PhotometricConfig = PhotometricConfig()
    """Changes of colour."""
    is_frozen: bool = False
    """Whether the encoder stays as it is: a probe of its features."""
    cache_features: bool = False
    """Whether a frozen encoder's maps are computed once for each image. Images are then seen whole,
    at the crop's size, without augmentation."""
    drop_path: float = 0.1
    """Stochastic depth at the encoder's top (swept 0.0 to 0.2; CLIP-QC, Table 14)."""
    pyramid_channels: int = 256
    """Width of the simple feature pyramid's maps (ViTDet), and of SemanticFPN's."""
    head_channels: int = 512
    """Width of the head (mmseg: 512 of UPerHead, 128 of FPNHead)."""
    auxiliary_channels: int = 256
    """Width of UPerNet's auxiliary FCN head (mmseg); its loss weighs 0.4."""
    classifier_std: float = 0.01
    """Standard deviation of the last layer's start weights (mmseg). A head far narrower than
    mmseg's wants larger ones, or it long finds nothing but the commonest classes."""
    test: Literal["whole", "slide"] = "whole"
    """How an image is seen at test: whole, or through windows of the crop's size (mmseg)."""
    test_stride: int = 341
    """Pixels from one window to the next (mmseg: two thirds of 512)."""
    num_workers: int = 4
    """Processes that load samples; 0 loads in the training process."""

    def __post_init__(self) -> None:
        """Refuse to cache what training changes (ConfigError)."""
        if self.cache_features and not self.is_frozen:
            raise ConfigError(
                "cache_features was true, with an encoder that is trained",
                expected="is_frozen=true: only a frozen encoder's features stay the same",
                action="set is_frozen=true, or cache_features=false",
            )


class SegmentationTask(Task[SegmentationConfig]):
    """ADE20K's layout in, class maps out, judged by mean IoU."""

    name = "segmentation"
    metric = Metric(name="mIoU", unit="%", higher_is_better=True)
    outputs = (OutputSpec(name="classes", dtype="uint8", unit="class id"),)
    config_type = SegmentationConfig

    def classes(self, folder: Path) -> tuple[str, ...]:
        """Names of the folder's classes."""
        from clipmill.data.labeled.dense import ade20k_classes

        return ade20k_classes(folder)

    def sides(self, config: SegmentationConfig) -> tuple[int, ...]:
        """The crop's."""
        return (config.crop_size,)

    def objective(
        self, config: SegmentationConfig, encoder: EncoderConfig, classes: tuple[str, ...]
    ) -> "DenseObjective":
        """The head's and the auxiliary head's cross-entropy."""
        from clipmill.tasks.segmentation.objective import SegmentationObjective

        return SegmentationObjective(config, encoder, len(classes))

    def batches(
        self,
        config: SegmentationConfig,
        folder: Path,
        *,
        batch_size: int,
        seed: int,
        cursor: int,
        rank: int,
        world_size: int,
    ) -> Iterator[dict[str, "Tensor"]]:
        """``images`` (B, H, W, 3) uint8, ``labels`` (B, H, W) uint8; ``keys`` (B,) if cached."""
        from clipmill.data import dense_augmentation as augment
        from clipmill.data.labeled.dense import IGNORED, Ade20kFolder
        from clipmill.data.labeled.dataloader import kept_in_memory, sample_batches

        samples = Ade20kFolder.open(folder, "training")

        @kept_in_memory
        def whole(index: int) -> dict[str, NDArray[Any]]:
            pair = samples.image_HW3(index), samples.classes_HW(index)
            return dict(
                zip(("images", "labels"), augment.whole_pair(*pair, config.crop_size), strict=True)
            )

        def load(index: int, generator: np.random.Generator) -> dict[str, NDArray[Any]]:
            if config.cache_features:
                return whole(index) | {"keys": np.asarray(index)}
            image, label = samples.image_HW3(index), samples.classes_HW(index)
            image, label = augment.resize_pair(image, label, generator.uniform(*config.scale))
            image, label = augment.crop_pair(
                image, label, config.crop_size, generator, fill=IGNORED
            )
            image, label = augment.flip_pair(image, label, generator)
            image = augment.change_colours(image, config.photometric, generator)
            return {"images": image, "labels": label}

        return sample_batches(
            load,
            len(samples),
            batch_size=batch_size,
            seed=seed,
            cursor=cursor,
            num_workers=config.num_workers,
            rank=rank,
            world_size=world_size,
        )

    def training_images(self, folder: Path) -> Images:
        """The training split's images."""
        from clipmill.data.labeled.dense import Ade20kFolder

        return Ade20kFolder.open(folder, "training")

    def network(
        self, config: SegmentationConfig, encoder: EncoderConfig, classes: tuple[str, ...]
    ) -> "nn.Module":
        """The network without an auxiliary head."""
        from clipmill.tasks.segmentation.model import SegmentationNetwork

        return SegmentationNetwork(config, encoder, len(classes))

    def served_name(self, trained_name: str) -> str | None:
        """mmseg's neck and decode head are our head; the auxiliary head stays behind."""
        if trained_name.startswith("heads."):
            head, _, rest = trained_name.removeprefix("heads.").partition(".")
            return {"decode_head": f"head.{rest}", "neck": f"head.neck.{rest}"}.get(head)
        return trained_name

    def evaluate(
        self,
        predict: Predict,
        config: SegmentationConfig,
        folder: Path,
        *,
        num_samples: int,
        report: Report,
    ) -> Evaluation:
        """mIoU, mAcc and aAcc over the validation split, by mmseg's computation, percent.

        ``IoU.CLASS`` and ``Acc.CLASS`` for each class that is in the truth.
        """
        from clipmill.data.labeled.dense import Ade20kFolder
        from clipmill.openmmlab.segmentation import MeanIoU

        del config
        data = Ade20kFolder.open(folder, "validation")
        classes = self.classes(folder)
        mean_iou = MeanIoU(num_classes=len(classes))
        samples, areas = [], []
        for index in range(len(data)):
            image, truth = data.image_HW3(index), data.classes_HW(index)
            found = predict(image)["classes"]
            areas.append(mean_iou.update(found, truth))
            if index < num_samples:
                samples.append(
                    EvaluatedSample(
                        image_HW3=image, truth={"classes": truth}, prediction={"classes": found}
                    )
                )
            report(index + 1, len(data), "evaluated")
        metrics = mean_iou.result() | _by_class(mean_iou, classes)
        rows = zip(("intersection", "union"), zip(*areas, strict=True), strict=True)
        per_image = {name: np.stack([np.asarray(row) for row in found]) for name, found in rows}
        return Evaluation(metrics=metrics, samples=tuple(samples), per_image=per_image)

    def figure(self, per_image: Mapping[str, NDArray[Any]]) -> float:
        """mIoU over the images: intersections and unions (images, classes) summed, as mmseg's."""
        intersection_C, union_C = (per_image[k].sum(0) for k in ("intersection", "union"))
        is_seen_C = union_C > 0
        return float(100 * (intersection_C[is_seen_C] / union_C[is_seen_C]).mean())

    def trivial_answers(self, folder: Path) -> Mapping[str, Predict]:
        """``chance``, a random class for each pixel, and ``constant``, the commonest class."""
        from clipmill.data.labeled.dense import Ade20kFolder

        num_classes = len(self.classes(folder))
        labels = Ade20kFolder.open(folder, "training")
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

    def draw(
        self, prediction: Prediction, image_HW3: NDArray[Any], classes: tuple[str, ...]
    ) -> NDArray[Any]:
        """Each class in its colour."""
        del image_HW3, classes
        return class_colours(prediction["classes"])


def _by_class(mean_iou: "MeanIoU", classes: tuple[str, ...]) -> dict[str, float]:
    """A row of the per-class table a class; two of one name are told apart by their ids."""
    found: dict[str, float] = {}
    for number, (iou, accuracy) in mean_iou.per_class().items():
        name = classes[number]
        if classes.count(name) > 1:
            name = f"{name} ({number})"
        # A class that isn't in the truth has no accuracy, and its IoU says nothing of it.
        if not math.isnan(accuracy):
            found |= {f"IoU.{name}": iou, f"Acc.{name}": accuracy}
    return found
