"""Detection with instance masks: Mask R-CNN and its cascade on any encoder (CLIP-QC, Table 13).

Recipes, servers and reports import this half of the task. Its data and objective are in
:mod:`clipmill.tasks.detection.training`.
"""

from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from clipmill.models.config import EncoderConfig
from clipmill.tasks.base import Metric, OutputSpec, Prediction, Task
from clipmill.tasks.config import DetectionConfig
from clipmill.tasks.visualization import draw_detections

if TYPE_CHECKING:
    from torch import nn


class DetectionTask(Task[DetectionConfig]):
    """Predict boxes with masks from COCO's layout; ranked by COCO's box mAP."""

    name = "detection"
    metric = Metric(name="box_mAP", unit="%", higher_is_better=True)
    outputs = (
        OutputSpec(name="boxes", dtype="float32", unit="pixels, x1 y1 x2 y2", shape=("N", 4)),
        OutputSpec(name="scores", dtype="float32", unit="probability", shape=("N",)),
        OutputSpec(name="labels", dtype="int64", unit="class id", shape=("N",)),
        OutputSpec(name="masks", dtype="uint8", unit="0 or 1", shape=("N", "H", "W")),
    )
    config_type = DetectionConfig

    def outputs_of(self, config: DetectionConfig) -> tuple[OutputSpec, ...]:
        """Return all arrays, or those without masks for a model without a mask head."""
        return tuple(o for o in self.outputs if config.mask_head or o.name != "masks")

    def build_inference_model(
        self, config: DetectionConfig, encoder: EncoderConfig, classes: tuple[str, ...]
    ) -> "nn.Module":
        """Build encoder, pyramid and heads in plain PyTorch."""
        from clipmill.tasks.detection.model import DetectionNetwork

        return DetectionNetwork(config, encoder, len(classes))

    def visualize(
        self, prediction: Prediction, image_HW3: NDArray[Any], classes: tuple[str, ...]
    ) -> NDArray[Any]:
        """Draw each likely object's box, and its mask if there is one, in its class's color."""
        return draw_detections(prediction, image_HW3, classes)
