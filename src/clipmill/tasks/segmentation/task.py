"""Semantic segmentation: UPerNet or SemanticFPN on any encoder (CLIP-QC, Table 14).

Recipes, servers and reports import this half of the task. Its data and objective are in
:mod:`clipmill.tasks.segmentation.training`.
"""

from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from clipmill.models.config import EncoderConfig
from clipmill.tasks.base import Metric, OutputSpec, Prediction, Task
from clipmill.tasks.config import SegmentationConfig
from clipmill.tasks.visualization import class_colors

if TYPE_CHECKING:
    from torch import nn


class SegmentationTask(Task[SegmentationConfig]):
    """Predict a class map from ADE20K's layout; ranked by mean IoU."""

    name = "segmentation"
    metric = Metric(name="mIoU", unit="%", higher_is_better=True)
    outputs = (OutputSpec(name="classes", dtype="uint8", unit="class id"),)
    config_type = SegmentationConfig

    def build_inference_model(
        self, config: SegmentationConfig, encoder: EncoderConfig, classes: tuple[str, ...]
    ) -> "nn.Module":
        """Build the network without an auxiliary head."""
        from clipmill.tasks.segmentation.model import SegmentationNetwork

        return SegmentationNetwork(config, encoder, len(classes))

    def visualize(
        self, prediction: Prediction, image_HW3: NDArray[Any], classes: tuple[str, ...]
    ) -> NDArray[Any]:
        """Draw each class in its color."""
        del image_HW3, classes
        return class_colors(prediction["classes"])
