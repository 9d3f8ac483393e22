"""Task interface: what recipes, servers and reports know of a task.

Shapes: B batch, H W image height and width, C classes, N objects in an image.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from numpy.typing import NDArray

from clipmill.config import Config

if TYPE_CHECKING:
    from torch import nn

    from clipmill.models.config import EncoderConfig

TaskConfigT = TypeVar("TaskConfigT", bound=Config)

Prediction = Mapping[str, NDArray[Any]]
"""Outputs for one image, or its ground truth in the same form: an array by output name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """Metric that ranks models of a task."""

    name: str
    """Key in the evaluation's metrics."""
    unit: str
    """Unit that follows the value, or ``""``."""
    higher_is_better: bool
    """Direction of improvement."""

    def improvement(self, value: float, baseline: float) -> float:
        """Return how much better ``value`` is than ``baseline``; negative when it is worse."""
        return value - baseline if self.higher_is_better else baseline - value


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputSpec:
    """Name, type and shape of one array of a prediction."""

    name: str
    """Key in the prediction."""
    dtype: str
    """NumPy name of its type."""
    unit: str
    """Unit of a value, or the meaning of an index."""
    shape: tuple[str | int, ...] = ("H", "W")
    """Axes: ``H`` and ``W`` are the image's, ``C`` the number of classes, a number is itself. Any
    other letter (``N``) is a length that differs by image and is the same in all outputs."""
    png_scale: int = 1000
    """Values of a 16-bit PNG in a unit, of floating-point maps (H, W)."""


class Task(ABC, Generic[TaskConfigT]):
    """A downstream task: config, metric, outputs, inference model and drawings."""

    name: ClassVar[str]
    metric: ClassVar[Metric]
    outputs: ClassVar[tuple[OutputSpec, ...]]
    config_type: type[TaskConfigT]

    def outputs_of(self, config: TaskConfigT) -> tuple[OutputSpec, ...]:
        """Return the arrays that a model of this config predicts: all of ``outputs``, or fewer."""
        del config
        return self.outputs

    @abstractmethod
    def build_inference_model(
        self, config: TaskConfigT, encoder: "EncoderConfig", classes: tuple[str, ...]
    ) -> "nn.Module":
        """Build the model for inference, with fresh weights and no training library.

        Its attribute ``encoder`` is the encoder. Its forward takes images (B, 3, H, W) in 0..1 and
        returns the output (B, ...) of a task with one output, else a list with a dict of outputs
        for each image.
        """

    @abstractmethod
    def visualize(
        self, prediction: Prediction, image_HW3: NDArray[Any], classes: tuple[str, ...]
    ) -> NDArray[Any]:
        """Draw a label or prediction, on or instead of its image.

        Returns RGB (H, W, 3) uint8, which may be larger than the image by a whole factor.
        """
