"""Training and evaluation of classification on labeled image folders.

Shapes: B batch, S image side, C classes.
"""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clipmill.errors import SourceError
from clipmill.models.config import EncoderConfig
from clipmill.tasks.base import Prediction
from clipmill.tasks.classification.task import ClassificationTask
from clipmill.tasks.config import ClassificationConfig
from clipmill.tasks.training import (
    Images,
    TestSplit,
    TrainingSamples,
    TrainingTask,
    class_labels,
)

if TYPE_CHECKING:
    from clipmill.tasks.classification.objective import ClassificationObjective


class ClassificationTraining(ClassificationTask, TrainingTask[ClassificationConfig]):
    """Labeled image folders, the objective and top-k accuracy."""

    def classes(self, folder: Path) -> tuple[str, ...]:
        """Return the options' classes, or ``train``'s; ``val``'s where there is no ``train``."""
        from clipmill.data.labeled.folder import ImageFolder

        try:
            return ImageFolder.open(folder, "train").classes
        except SourceError:
            return ImageFolder.open(folder, "val").classes

    def input_sizes(self, config: ClassificationConfig) -> tuple[int, ...]:
        """Return the sides of the training crop and of the test image."""
        return (config.image_size, config.test_size)

    def build_objective(
        self, config: ClassificationConfig, encoder: EncoderConfig, classes: tuple[str, ...]
    ) -> "ClassificationObjective":
        """Build the cross-entropy with smooth labels."""
        from clipmill.tasks.classification.objective import ClassificationObjective

        return ClassificationObjective(config, encoder, len(classes))

    def training_samples(self, config: ClassificationConfig, folder: Path) -> TrainingSamples:
        """Return ``images`` (S, S, 3) uint8 and ``labels`` ()."""
        from PIL import Image

        from clipmill.data.labeled.folder import ImageFolder
        from clipmill.data.transforms.augmentation import RandomResizedCropConfig, draw_crop

        samples = ImageFolder.open(folder, "train")
        crop = RandomResizedCropConfig(scale=config.scale)
        size = (config.image_size, config.image_size)

        def load(index: int, generator: np.random.Generator) -> dict[str, NDArray[Any]]:
            image = samples.image(index)
            box = draw_crop(image.width, image.height, crop, generator)
            edges = (box.left, box.top, box.left + box.width, box.top + box.height)
            image_SS3 = np.asarray(image.resize(size, Image.Resampling.BICUBIC, box=edges))
            if generator.random() < 0.5:
                image_SS3 = image_SS3[:, ::-1]
            return {"images": image_SS3, "labels": np.array(samples.labels[index])}

        return TrainingSamples(load=load, num_samples=len(samples), num_workers=config.num_workers)

    def training_images(self, folder: Path) -> Images:
        """Return the training split's images."""
        from clipmill.data.labeled.folder import ImageFolder

        return ImageFolder.open(folder, "train")

    def inference_key(self, training_key: str) -> str | None:
        """Return the key unchanged: training and inference share the network."""
        return training_key

    def test_split(
        self,
        config: ClassificationConfig,
        folder: Path,
        classes: tuple[str, ...] = (),
        split: str = "",
    ) -> "ClassificationTestSplit":
        """Open the ``val`` split, or the one that ``split`` names."""
        del config
        return ClassificationTestSplit(folder, classes or self.classes(folder), split or "val")


class ClassificationTestSplit(TestSplit):
    """Images of a split with ``top1`` and ``top5`` accuracy, percent."""

    def __init__(self, folder: Path, classes: tuple[str, ...], split: str) -> None:
        from clipmill.data.labeled.folder import ImageFolder

        self._data = ImageFolder.open(folder, split, classes)
        self._metrics = TopKAccuracy((1, 5))
        number = len(self._data.classes)
        self._confusion_CC = np.zeros((number, number), np.int64)

    def __len__(self) -> int:
        return len(self._data)

    def image_HW3(self, index: int) -> NDArray[Any]:
        """Return an image, RGB, uint8."""
        return self._data.image_HW3(index)

    def truth(self, index: int) -> Prediction:
        """Return a one-hot vector of the image's class."""
        label = self._data.labels[index]
        return {"probabilities": np.eye(len(self._data.classes), dtype=np.float32)[label]}

    def update(self, index: int, truth: Prediction, prediction: Prediction) -> None:
        """Add an image's rank of the true class."""
        del truth
        label = self._data.labels[index]
        self._metrics.update(prediction["probabilities"], label)
        self._confusion_CC[label, int(prediction["probabilities"].argmax())] += 1

    def compute(self) -> dict[str, float]:
        """Return the accuracies, and those of each class that occurs."""
        metrics = self._metrics.compute()
        totals_C = self._confusion_CC.sum(axis=1)
        for number, name in enumerate(class_labels(self._data.classes)):
            if totals_C[number]:
                hits = self._confusion_CC[number, number]
                metrics[f"Acc.{name}"] = float(100 * hits / totals_C[number])
        return metrics

    def tables(self) -> dict[str, str]:
        """Return the confusion matrix: a row for each true class, a column for each predicted."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["true class", *self._data.classes])
        for name, row_C in zip(self._data.classes, self._confusion_CC.tolist(), strict=True):
            writer.writerow([name, *row_C])
        return {"confusion_matrix.csv": file.getvalue()}


class TopKAccuracy:
    """Share of images whose class is among the k most probable, for several k."""

    def __init__(self, ks: Sequence[int]) -> None:
        self._hits = dict.fromkeys(ks, 0)
        self._total = 0

    def update(self, probabilities_C: NDArray[Any], label: int) -> None:
        """Add an image; of equally probable classes the first ranks first."""
        order = np.argsort(-probabilities_C, kind="stable")
        rank = int(np.flatnonzero(order == label)[0])
        self._total += 1
        for k in self._hits:
            self._hits[k] += rank < k

    def compute(self) -> dict[str, float]:
        """Return ``top1`` and so on, percent.

        Raises:
            SourceError: no image was added.
        """
        if not self._total:
            raise SourceError(
                "there was no image to evaluate",
                expected="at least one image of a known class",
                action="give data with images",
            )
        return {f"top{k}": 100 * hits / self._total for k, hits in self._hits.items()}
