"""Depth estimation as Xie et al. 2023 do it (CLIP-QC, Table 15).

Recipes, servers and reports import this half of the task. Its data and objective are in
:mod:`clipmill.tasks.depth.training`.
"""

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from clipmill.models.config import EncoderConfig
from clipmill.tasks.base import Metric, OutputSpec, Prediction, Task
from clipmill.tasks.config import MAX_DEPTH_METERS, DepthConfig
from clipmill.tasks.visualization import depth_colors

if TYPE_CHECKING:
    from torch import nn


_PNG_SCALES: Final = (1000, 256, 100, 10)
"""Values of a PNG in a meter, the finest first: millimeters, KITTI's unit, centimeters."""


class DepthTask(Task[DepthConfig]):
    """Predict depth in meters from NYUv2's layout; ranked by RMSE."""

    name = "depth"
    metric = Metric(name="rmse", unit="m", higher_is_better=False)
    outputs = (OutputSpec(name="depth_meters", dtype="float32", unit="meters"),)
    config_type = DepthConfig

    def outputs_of(self, config: DepthConfig) -> tuple[OutputSpec, ...]:
        """Return the output, whose PNGs hold millimeters if 16 bits suffice for the range."""
        largest = np.iinfo(np.uint16).max
        scale = next((s for s in _PNG_SCALES if config.max_depth_meters * s <= largest), 1)
        return tuple(replace(output, png_scale=scale) for output in self.outputs)

    def build_inference_model(
        self, config: DepthConfig, encoder: EncoderConfig, classes: tuple[str, ...]
    ) -> "nn.Module":
        """Build the network that was trained."""
        from clipmill.models.encoders import build_dense
        from clipmill.tasks.depth.model import DepthNetwork

        del classes
        return DepthNetwork(config, build_dense(encoder))

    def visualize(
        self, prediction: Prediction, image_HW3: NDArray[Any], classes: tuple[str, ...]
    ) -> NDArray[Any]:
        """Draw near as bright, far as dark, and unknown as gray."""
        del image_HW3, classes
        return depth_colors(prediction["depth_meters"], MAX_DEPTH_METERS)
