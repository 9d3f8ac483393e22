"""The contract that every task fulfils: data, training objective, network, metrics, drawing.

Shapes: B batch, H W image height and width, C classes, N things found in an image.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar
from numpy.typing import NDArray
from clipmill.config import Config
from clipmill.stage_records import Report

if TYPE_CHECKING:
    from torch import nn

    from clipmill.models.config import EncoderConfig
    from clipmill.tasks.objective import EncoderObjective

TaskConfigT = TypeVar("TaskConfigT", bound=Config)

Prediction = Mapping[str, NDArray[Any]]
"""What a model says of one image, or the truth in the same form: an array for each output."""

Predict = Callable[[NDArray[Any]], Prediction]
"""An image (H, W, 3) uint8 to its prediction."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """The figure by which models of a task are compared."""

    name: str
    """Key in the evaluation's metrics."""
    unit: str
    """Unit that follows the figure, or ``""``."""
    higher_is_better: bool
    """Direction of better."""

    def gain(self, value: float, over: float) -> float:
        """How much better ``value`` is than ``over``; negative when it is worse."""
        return value - over if self.higher_is_better else over - value


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputSpec:
    """One array of a prediction."""

    name: str
    """Key in the prediction."""
    dtype: str
    """NumPy name of its type."""
    unit: str
    """Unit of a value, or what it indexes."""
    shape: tuple[str | int, ...] = ("H", "W")
    """Its axes: ``H`` and ``W`` are the image's, ``C`` the number of classes; of any other letter
    (``N``) each image has as many as it has, the same in all outputs; a number is itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What an evaluation found."""

    metrics: dict[str, float]
    """Figures by name."""
    samples: tuple["EvaluatedSample", ...]
    """The first few samples, for the report."""
    per_image: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """What :meth:`Task.figure` makes the task's metric of, a row an image; empty where a task has
    no such rows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluatedSample:
    """A test image with its truth and what the model said."""

    image_HW3: NDArray[Any]
    """RGB, uint8."""
    truth: Prediction
    """The label, in a prediction's form."""
    prediction: Prediction
    """What the model said."""


class Images(Protocol):
    """Images that are read one by one."""

    def __len__(self) -> int: ...

    def image_HW3(self, index: int) -> NDArray[Any]:
        """RGB, uint8; SourceError if it can't be decoded."""


class Task(ABC, Generic[TaskConfigT]):
    """A task: how its data is read, a model trained, run, judged and drawn."""

    name: ClassVar[str]
    metric: ClassVar[Metric]
    outputs: ClassVar[tuple[OutputSpec, ...]]
    config_type: type[TaskConfigT]

    @abstractmethod
    def classes(self, folder: Path) -> tuple[str, ...]:
        """Names of the data's classes, in the order of their ids; empty where there are none."""

    @abstractmethod
    def sides(self, config: TaskConfigT) -> tuple[int, ...]:
        """Sides of the square images that the encoder sees, in training or at test, pixels."""

    @abstractmethod
    def objective(
        self, config: TaskConfigT, encoder: "EncoderConfig", classes: tuple[str, ...]
    ) -> "EncoderObjective":
        """The module that the loop trains; its encoder is ``encoder``."""

    @abstractmethod
    def batches(
        self,
        config: TaskConfigT,
        folder: Path,
        *,
        batch_size: int,
        seed: int,
        cursor: int,
        rank: int,
        world_size: int,
    ) -> Iterator[Any]:
        """This rank's endless training batches from step ``cursor`` on.

        ``batch_size`` counts all ranks. Batch k is the same wherever reading began.
        """

    @abstractmethod
    def training_images(self, folder: Path) -> Images:
        """The training split's images as they are, in any size."""

    @abstractmethod
    def network(
        self, config: TaskConfigT, encoder: "EncoderConfig", classes: tuple[str, ...]
    ) -> "nn.Module":
        """The network to serve, with fresh weights and without any training library.

        It holds its encoder as ``encoder``.
        Its forward takes images (B, 3, H, W) in 0..1, and gives the output (B, ...) where the task
        has but one, else a list with a dict of outputs for each image.
        """

    @abstractmethod
    def served_name(self, trained_name: str) -> str | None:
        """The network's name of a tensor of the objective; None for what only training needs."""

    @abstractmethod
    def evaluate(
        self,
        predict: Predict,
        config: TaskConfigT,
        folder: Path,
        *,
        num_samples: int,
        report: Report,
    ) -> Evaluation:
        """Metrics over the folder's test split, and its first ``num_samples`` samples."""

    def figure(self, per_image: Mapping[str, NDArray[Any]]) -> float:
        """The metric over rows of an evaluation's ``per_image``, any of them, in any number."""
        raise NotImplementedError(f"{self.name} has no figures by image")

    def trivial_answers(self, folder: Path) -> Mapping[str, Predict]:
        """Answers that see no image, by name, made of the training split: what is to be beaten."""
        del folder
        return {}

    @abstractmethod
    def draw(
        self, prediction: Prediction, image_HW3: NDArray[Any], classes: tuple[str, ...]
    ) -> NDArray[Any]:
        """A picture (H, W, 3) uint8 of a label or prediction, on or instead of its image.

        It may be larger than the image, by a whole factor.
        """
