"""Image classification: a linear classifier on any encoder (CLIP-QC, Table 12).

Recipes, servers and reports import this half of the task. Its data and objective are in
:mod:`clipmill.tasks.classification.training`.
"""

from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from clipmill.models.config import EncoderConfig
from clipmill.tasks.base import Metric, OutputSpec, Prediction, Task
from clipmill.tasks.config import ClassificationConfig
from clipmill.tasks.visualization import draw_classes

if TYPE_CHECKING:
    from torch import nn


class ClassificationTask(Task[ClassificationConfig]):
    """Predict class probabilities from ImageFolder's layout; ranked by top-1 accuracy."""

    name = "classification"
    metric = Metric(name="top1", unit="%", higher_is_better=True)
    outputs = (
        OutputSpec(
            name="probabilities", dtype="float32", unit="probability by class id", shape=("C",)
        ),
    )
    config_type = ClassificationConfig

    def build_inference_model(
        self, config: ClassificationConfig, encoder: EncoderConfig, classes: tuple[str, ...]
    ) -> "nn.Module":
        """Build the network that was trained, after a central crop."""
        from clipmill.tasks.classification.model import ClassificationNetwork

        return ClassificationNetwork(config, encoder, len(classes))

    def visualize(
        self, prediction: Prediction, image_HW3: NDArray[Any], classes: tuple[str, ...]
    ) -> NDArray[Any]:
        """Draw a bar with the name of each of the most probable classes, on the image."""
        return draw_classes(prediction["probabilities"], image_HW3, classes)
