"""Training half of a task: data, objective and test split, and the loops that all tasks share.

Serving imports none of it. Shapes: B batch, H W image height and width.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from clipmill.models.embedding_stats import evenly_spaced_indices
from clipmill.stage_records import ProgressCallback
from clipmill.tasks.base import Prediction, Task, TaskConfigT

if TYPE_CHECKING:
    from torch import Tensor

    from clipmill.models.config import EncoderConfig
    from clipmill.tasks.objective import EncoderObjective

Predict = Callable[[NDArray[Any]], Prediction]
"""Function from an image (H, W, 3) uint8 to its prediction."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluatedSample:
    """A test image with its ground truth and the model's prediction."""

    image_HW3: NDArray[Any]
    """RGB, uint8."""
    truth: Prediction
    """Ground truth in a prediction's form."""
    prediction: Prediction
    """Output of the model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationOutput:
    """Metrics of a model on a test split, with a few samples."""

    metrics: dict[str, float]
    """Metric values by name."""
    samples: tuple[EvaluatedSample, ...]
    """Samples of the split, evenly spaced, for the report."""
    per_image: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """Statistics that :meth:`TrainingTask.metric_from_rows` aggregates, one row an image; empty
    for a task whose metric doesn't decompose."""
    tables: Mapping[str, str] = field(default_factory=dict)
    """CSV files by name, such as a confusion matrix."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingSamples:
    """Augmented training samples of a task, loaded one at a time."""

    load: Callable[[int, np.random.Generator], dict[str, NDArray[Any]]]
    """Function from a sample's index and a random generator to arrays by name."""
    num_samples: int
    """Samples of the split."""
    num_workers: int = 0
    """Loader processes; 0 loads in the training process."""
    fills: Mapping[str, float] = field(default_factory=dict)
    """Padding value of each array whose first axis differs by sample."""


class Images(Protocol):
    """Images that are read one by one."""

    def __len__(self) -> int: ...

    def image_HW3(self, index: int) -> NDArray[Any]:
        """Return an image, RGB, uint8.

        Raises:
            SourceError: the file can't be decoded.
        """


def class_labels(classes: Sequence[str]) -> list[str]:
    """Return names of classes for metrics, repeated ones with their numbers."""
    counts = Counter(classes)
    return [f"{c} ({i})" if counts[c] > 1 else c for i, c in enumerate(classes)]


class TestSplit(ABC):
    """Labeled test images, and the metrics of the predictions for them."""

    __test__ = False  # not a pytest class

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def image_HW3(self, index: int) -> NDArray[Any]:
        """Return an image, RGB, uint8."""

    @abstractmethod
    def truth(self, index: int) -> Prediction:
        """Return an image's ground truth in a prediction's form."""

    @abstractmethod
    def update(self, index: int, truth: Prediction, prediction: Prediction) -> None:
        """Add an image's prediction to the metrics."""

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """Return the metrics by name.

        Raises:
            SourceError: the split has nothing to evaluate.
        """

    def per_image(self) -> Mapping[str, NDArray[Any]]:
        """Return the rows of :attr:`EvaluationOutput.per_image` after the last update."""
        return {}

    def tables(self) -> Mapping[str, str]:
        """Return :attr:`EvaluationOutput.tables` after the last update."""
        return {}


class TrainingTask(Task[TaskConfigT]):
    """A task with its labeled data, training objective and test split."""

    test_split_name: ClassVar[str] = "val"
    """Name of the split that is evaluated by default."""

    @abstractmethod
    def classes(self, folder: Path) -> tuple[str, ...]:
        """Return the names of the data's classes by id; empty for a task without classes."""

    @abstractmethod
    def input_sizes(self, config: TaskConfigT) -> tuple[int, ...]:
        """Return the sides of the encoder's square inputs in training and test, pixels."""

    @abstractmethod
    def build_objective(
        self, config: TaskConfigT, encoder: "EncoderConfig", classes: tuple[str, ...]
    ) -> "EncoderObjective[Any]":
        """Build the module to train; its attribute ``encoder`` is the encoder."""

    @abstractmethod
    def training_samples(self, config: TaskConfigT, folder: Path) -> TrainingSamples:
        """Return the training split's samples, augmented."""

    @abstractmethod
    def training_images(self, folder: Path) -> Images:
        """Return the training split's images without augmentation."""

    @abstractmethod
    def inference_key(self, training_key: str) -> str | None:
        """Map a key of the objective's state dict to the inference model's.

        Returns None for a tensor that only training needs.
        """

    @abstractmethod
    def test_split(
        self, config: TaskConfigT, folder: Path, classes: tuple[str, ...] = (), split: str = ""
    ) -> TestSplit:
        """Open a split for evaluation: the task's usual one where ``split`` is empty.

        Labels are numbered by ``classes``, the model's, matched by name; by the data's own where
        it is empty.

        Raises:
            SourceError: a class of the data isn't among ``classes``.
        """

    def metric_from_rows(self, per_image: Mapping[str, NDArray[Any]]) -> float:
        """Compute the metric from any rows of an evaluation's ``per_image``."""
        raise NotImplementedError(f"{self.name} has no metric by image")

    def trivial_predictors(self, folder: Path) -> Mapping[str, Predict]:
        """Return predictors that see no image, fitted to the training split, by name."""
        del folder
        return {}

    def train_dataloader(
        self,
        config: TaskConfigT,
        folder: Path,
        *,
        batch_size: int,
        seed: int,
        start_step: int,
        rank: int,
        world_size: int,
    ) -> "Iterator[dict[str, Tensor]]":
        """Return this rank's endless training batches from step ``start_step`` on.

        ``batch_size`` counts all ranks. A batch is a function of the seed and its step alone.
        """
        from clipmill.data.labeled.dataloader import build_labeled_dataloader

        samples = self.training_samples(config, folder)
        return build_labeled_dataloader(
            samples.load,
            samples.num_samples,
            batch_size=batch_size,
            seed=seed,
            start_step=start_step,
            num_workers=samples.num_workers,
            rank=rank,
            world_size=world_size,
            fills=samples.fills,
        )

    def evaluate(
        self,
        predict: Predict,
        config: TaskConfigT,
        folder: Path,
        *,
        num_samples: int,
        report: ProgressCallback,
        classes: tuple[str, ...] = (),
        split: str = "",
    ) -> EvaluationOutput:
        """Evaluate ``predict`` on a split (:meth:`test_split`), and keep a few samples."""
        data, samples = self.test_split(config, folder, classes, split), []
        kept = set(evenly_spaced_indices(len(data), num_samples))
        for index in range(len(data)):
            image_HW3, truth = data.image_HW3(index), data.truth(index)
            prediction = predict(image_HW3)
            data.update(index, truth, prediction)
            if index in kept:
                samples.append(
                    EvaluatedSample(image_HW3=image_HW3, truth=truth, prediction=prediction)
                )
            report(index + 1, len(data), "evaluated")
        return EvaluationOutput(
            metrics=data.compute(),
            samples=tuple(samples),
            per_image=data.per_image(),
            tables=data.tables(),
        )
