"""Image classification: a linear classifier on any encoder (CLIP-QC, Table 12).

Shapes: B batch, S image side, C classes.
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
from collections.abc import Sequence
from typing import Any
from clipmill.errors import SourceError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from clipmill.tasks.objective import EncoderObjective


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassificationConfig(Config):
    """Classifier, crop and regularisation."""

    image_size: int = 224
    """Side of the training crop, pixels (CLIP-QC, Table 12)."""
    test_size: int = 224
    """Side at test, pixels; positions are interpolated where it differs from pretraining's."""
    test_crop: float = 0.875
    """Share of the shorter side that the central crop shows at test (ImageNet's usual 224 / 256).
    """
    scale: tuple[float, float] = (0.08, 1.0)
    """Share of the picture's area that a training crop shows (torchvision's default)."""
    is_frozen: bool = False
    """Whether the encoder stays as it is: a linear probe."""
    drop_path: float = 0.1
    """Stochastic depth at the encoder's top (CLIP-QC, Table 12)."""
    label_smoothing: float = 0.1
    """Probability that is spread over all classes (CLIP-QC, Table 12)."""
    mixup: float = 0.0
    """Alpha of mixup; 0 for none (CLIP-QC, Table 12)."""
    cutmix: float = 0.0
    """Alpha of CutMix; 0 for none (CLIP-QC, Table 12)."""
    erased: float = 0.0
    """Share of pictures that lose a rectangle (CLIP-QC, Table 12)."""
    num_workers: int = 8
    """Processes that load samples; 0 loads in the training process."""


class ClassificationTask(Task[ClassificationConfig]):
    """ImageFolder's layout in, probabilities of the classes out, judged by top-1 accuracy."""

    name = "classification"
    metric = Metric(name="top1", unit="%", higher_is_better=True)
    outputs = (
        OutputSpec(
            name="probabilities", dtype="float32", unit="probability by class id", shape=("C",)
        ),
    )
    config_type = ClassificationConfig

    def classes(self, folder: Path) -> tuple[str, ...]:
        """Names of the folders of the training split, or of ``val`` where that is all there is."""
        from clipmill.data.labeled.image_folder import ClassFolder

        split = "train" if (folder / "train").is_dir() else "val"
        return ClassFolder.open(folder, split).classes

    def sides(self, config: ClassificationConfig) -> tuple[int, ...]:
        """The training crop's and the test's."""
        return (config.image_size, config.test_size)

    def objective(
        self, config: ClassificationConfig, encoder: EncoderConfig, classes: tuple[str, ...]
    ) -> "EncoderObjective":
        """Cross-entropy with smooth labels."""
        from clipmill.tasks.classification.objective import ClassificationObjective

        return ClassificationObjective(config, encoder, len(classes))

    def batches(
        self,
        config: ClassificationConfig,
        folder: Path,
        *,
        batch_size: int,
        seed: int,
        cursor: int,
        rank: int,
        world_size: int,
    ) -> Iterator[dict[str, "Tensor"]]:
        """``images`` (B, S, S, 3) uint8 and ``labels`` (B,)."""
        from clipmill.data.transforms.augmentation import RandomResizedCropConfig, draw_crop
        from clipmill.data.labeled.image_folder import ClassFolder
        from clipmill.data.labeled.dataloader import sample_batches

        samples = ClassFolder.open(folder, "train")
        crop = RandomResizedCropConfig(scale=config.scale)
        size = (config.image_size, config.image_size)

        def load(index: int, generator: np.random.Generator) -> dict[str, NDArray[Any]]:
            from PIL import Image

            image = samples.image(index)
            box = draw_crop(image.width, image.height, crop, generator)
            edges = (box.left, box.top, box.left + box.width, box.top + box.height)
            image_SS3 = np.asarray(image.resize(size, Image.Resampling.BICUBIC, box=edges))
            if generator.random() < 0.5:
                image_SS3 = image_SS3[:, ::-1]
            return {"images": image_SS3, "labels": np.array(samples.labels[index])}

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
        from clipmill.data.labeled.image_folder import ClassFolder

        return ClassFolder.open(folder, "train")

    def network(
        self, config: ClassificationConfig, encoder: EncoderConfig, classes: tuple[str, ...]
    ) -> "nn.Module":
        """The network that was trained, behind a central crop."""
        from clipmill.tasks.classification.model import ClassificationNetwork

        return ClassificationNetwork(config, encoder, len(classes))

    def served_name(self, trained_name: str) -> str | None:
        """Training holds the very network."""
        return trained_name

    def evaluate(
        self,
        predict: Predict,
        config: ClassificationConfig,
        folder: Path,
        *,
        num_samples: int,
        report: Report,
    ) -> Evaluation:
        """``top1`` and ``top5`` over the ``val`` split, in percent."""
        from clipmill.data.labeled.image_folder import ClassFolder

        del config
        data = ClassFolder.open(folder, "val")
        metrics, samples = TopK((1, 5)), []
        for index in range(len(data)):
            image_HW3, label = data.image_HW3(index), data.labels[index]
            found = predict(image_HW3)
            metrics.update(found["probabilities"], label)
            if index < num_samples:
                truth_C = np.eye(len(data.classes), dtype=np.float32)[label]
                samples.append(
                    EvaluatedSample(
                        image_HW3=image_HW3, truth={"probabilities": truth_C}, prediction=found
                    )
                )
            report(index + 1, len(data), "evaluated")
        return Evaluation(metrics=metrics.result(), samples=tuple(samples))

    def draw(
        self, prediction: Prediction, image_HW3: NDArray[Any], classes: tuple[str, ...]
    ) -> NDArray[Any]:
        """The image over a bar for each of the likeliest classes, with its name."""
        from clipmill.tasks.visualization import draw_classes

        return draw_classes(prediction["probabilities"], image_HW3, classes)



class TopK:
    """Counts, image by image, whether the truth is among the k likeliest classes."""

    def __init__(self, ks: Sequence[int]) -> None:
        self._hits = dict.fromkeys(ks, 0)
        self._total = 0

    def update(self, probabilities_C: NDArray[Any], label: int) -> None:
        """Add an image; of classes that are equally likely the first comes first."""
        order = np.argsort(-probabilities_C, kind="stable")
        rank = int(np.flatnonzero(order == label)[0])
        self._total += 1
        for k in self._hits:
            self._hits[k] += rank < k

    def result(self) -> dict[str, float]:
        """``top1`` and so on, in percent; SourceError without a single image."""
        if not self._total:
            raise SourceError(
                "there was no image to judge",
                expected="at least one image of a known class",
                action="give data with images",
            )
        return {f"top{k}": 100 * hits / self._total for k, hits in self._hits.items()}
