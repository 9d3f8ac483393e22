"""The contract that every task fulfils: data, training objective, network, metrics, drawing.

Shapes: B batch, H W image height and width, C classes.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from numpy.typing import NDArray

from clipmill.config import Config
from clipmill.stages import Report

if TYPE_CHECKING:
    from torch import nn

    from clipmill.models.encoders import EncoderConfig
    from clipmill.tasks.dense_objective import DenseObjective

TaskConfigT = TypeVar("TaskConfigT", bound=Config)


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
    """One array of a prediction, the size of its image."""

    name: str
    """Key in the prediction."""
    dtype: str
    """NumPy name of its type."""
    unit: str
    """Unit of a value, or what it indexes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What an evaluation found."""

    metrics: dict[str, float]
    """Figures by name."""
    samples: tuple["EvaluatedSample", ...]
    """The first few samples, for the report."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluatedSample:
    """A test image with its truth and what the model said."""

    image_HW3: NDArray[Any]
    """RGB, uint8."""
    truth_HW: NDArray[Any]
    """The label, as the task's output holds it."""
    prediction_HW: NDArray[Any]
    """The model's output."""


class Task(ABC, Generic[TaskConfigT]):
    """A dense task: how its data is read, a model trained, run, judged and drawn."""

    name: ClassVar[str]
    metric: ClassVar[Metric]
    output: ClassVar[OutputSpec]
    config_type: type[TaskConfigT]

    @abstractmethod
    def classes(self, folder: Path) -> tuple[str, ...]:
        """Names of the data's classes, in the order of their ids; empty where there are none."""

    @abstractmethod
    def objective(
        self, config: TaskConfigT, encoder: "EncoderConfig", classes: tuple[str, ...]
    ) -> "DenseObjective":
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
    def network(
        self, config: TaskConfigT, encoder: "EncoderConfig", classes: tuple[str, ...]
    ) -> "nn.Module":
        """The network to serve, with fresh weights and without any training library.

        Its forward takes images (B, 3, H, W) in 0..1 and gives outputs (B, H, W).
        """

    @abstractmethod
    def served_name(self, trained_name: str) -> str | None:
        """The network's name of a tensor of the objective; None for what only training needs."""

    @abstractmethod
    def evaluate(
        self,
        predict: Callable[[NDArray[Any]], NDArray[Any]],
        config: TaskConfigT,
        folder: Path,
        *,
        num_samples: int,
        report: Report,
    ) -> Evaluation:
        """Metrics over the folder's test split, and its first ``num_samples`` samples.

        ``predict`` takes an image (H, W, 3) uint8 and gives the output (H, W).
        """

    @abstractmethod
    def draw(self, output_HW: NDArray[Any]) -> NDArray[Any]:
        """A picture (H, W, 3) uint8 of a label or prediction."""
