"""Depth estimation as Xie et al. 2023 do it (CLIP-QC, Table 15).

Shapes: B batch, H W image. Depth is along the optical axis, in metres.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clipmill.models.config import EncoderConfig
from clipmill.tasks.base import (
    Images,
    Metric,
    OutputSpec,
    Predict,
    Prediction,
    Task,
    TestSplit,
    TrainingSamples,
)
from clipmill.tasks.depth.config import MAX_DEPTH_METRES, DepthConfig
from clipmill.tasks.depth.metrics import DepthMetrics
from clipmill.tasks.visualization import depth_colors

if TYPE_CHECKING:
    from torch import nn

    from clipmill.tasks.objective import DenseObjective


class DepthTask(Task[DepthConfig]):
    """Predict depth in metres from NYUv2's layout; ranked by RMSE."""

    name = "depth"
    metric = Metric(name="rmse", unit="m", higher_is_better=False)
    outputs = (OutputSpec(name="depth_metres", dtype="float32", unit="metres"),)
    config_type = DepthConfig

    def classes(self, folder: Path) -> tuple[str, ...]:
        """Return no names: depth has no classes."""
        del folder
        return ()

    def input_sizes(self, config: DepthConfig) -> tuple[int, ...]:
        """Return the crop's side."""
        return (config.crop_size,)

    def build_objective(
        self, config: DepthConfig, encoder: EncoderConfig, classes: tuple[str, ...]
    ) -> "DenseObjective":
        """Build the scale-invariant logarithmic loss."""
        from clipmill.tasks.depth.objective import DepthObjective

        del classes
        return DepthObjective(config, encoder)

    def training_samples(self, config: DepthConfig, folder: Path) -> TrainingSamples:
        """Return ``images`` (H, W, 3) uint8 and ``depth`` (H, W) float32, 0 where unknown.

        ``keys`` if cached.
        """
        from clipmill.data.labeled.dataloader import cached_in_memory
        from clipmill.data.labeled.dense import NyuFolder
        from clipmill.data.transforms import dense

        samples = NyuFolder.open(folder, "train")

        @cached_in_memory
        def resized(index: int) -> dict[str, NDArray[Any]]:
            pair = samples.image_HW3(index), samples.depth_HW(index)
            image, depth = dense.center_crop_pair(*pair, config.crop_size)
            return {"images": image, "depth": depth}

        def load(index: int, generator: np.random.Generator) -> dict[str, NDArray[Any]]:
            if config.cache_features:
                return resized(index) | {"keys": np.asarray(index)}
            image, depth = samples.image_HW3(index), samples.depth_HW(index)
            if generator.integers(config.cutdepth_period) == 0:
                image = dense.cutdepth(image, depth, MAX_DEPTH_METRES, generator)
            image, depth = dense.flip_pair(image, depth, generator)
            image, depth = dense.crop_pair(image, depth, config.crop_size, generator, fill=0)
            image = dense.photometric_distortion(image, config.photometric, generator)
            return {"images": image, "depth": depth}

        return TrainingSamples(load=load, num_samples=len(samples), num_workers=config.num_workers)

    def training_images(self, folder: Path) -> Images:
        """Return the training split's images."""
        from clipmill.data.labeled.dense import NyuFolder

        return NyuFolder.open(folder, "train")

    def build_inference_model(
        self, config: DepthConfig, encoder: EncoderConfig, classes: tuple[str, ...]
    ) -> "nn.Module":
        """Build the network that was trained."""
        from clipmill.models.encoders import build_dense
        from clipmill.tasks.depth.model import DepthNetwork

        del classes
        return DepthNetwork(config, build_dense(encoder))

    def inference_key(self, training_key: str) -> str | None:
        """Return the key unchanged: training and inference share the network."""
        return training_key

    def test_split(self, config: DepthConfig, folder: Path) -> "DepthTestSplit":
        """Open the test list."""
        return DepthTestSplit(folder, eigen_crop=config.eigen_crop)

    def metric_from_rows(self, per_image: Mapping[str, NDArray[Any]]) -> float:
        """Compute the mean of the images' RMSE."""
        return float(per_image["rmse"].mean())

    def trivial_predictors(self, folder: Path) -> Mapping[str, Predict]:
        """Return ``chance`` (another image's depth), ``constant`` (mean) and ``mean map``."""
        from PIL import Image

        from clipmill.data.labeled.dense import NyuFolder

        train = NyuFolder.open(folder, "train")
        height, width = train.depth_HW(0).shape
        generator = np.random.default_rng(0)

        def resized(depth_HW: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.float32]:
            image = Image.fromarray(depth_HW.astype(np.float32))
            return np.asarray(image.resize((shape[1], shape[0]), Image.Resampling.NEAREST))

        total_HW, known_HW = np.zeros((height, width)), np.zeros((height, width))
        for index in range(len(train)):
            depth_HW = resized(train.depth_HW(index), (height, width))
            total_HW += depth_HW
            known_HW += depth_HW > 0
        mean = total_HW.sum() / max(known_HW.sum(), 1)
        mean_HW = np.where(known_HW > 0, total_HW / np.maximum(known_HW, 1), mean)

        def chance(image_HW3: NDArray[Any]) -> Prediction:
            depth_HW = train.depth_HW(int(generator.integers(len(train))))
            filled_HW = np.where(depth_HW > 0, depth_HW, mean)
            return {"depth_metres": resized(filled_HW, image_HW3.shape)}

        return {
            "chance": chance,
            "constant": lambda image_HW3: {
                "depth_metres": np.full(image_HW3.shape[:2], mean, np.float32)
            },
            "mean map": lambda image_HW3: {"depth_metres": resized(mean_HW, image_HW3.shape)},
        }

    def visualize(
        self, prediction: Prediction, image_HW3: NDArray[Any], classes: tuple[str, ...]
    ) -> NDArray[Any]:
        """Draw near as bright, far as dark, and unknown as gray."""
        del image_HW3, classes
        return depth_colors(prediction["depth_metres"], MAX_DEPTH_METRES)


class DepthTestSplit(TestSplit):
    """Test images with the usual nine metrics, computed per image and averaged.

    Metrics include ``num_eigen_cropped``, the images evaluated within Eigen et al.'s crop.
    """

    def __init__(self, folder: Path, *, eigen_crop: bool) -> None:
        from clipmill.data.labeled.dense import NyuFolder

        self._data = NyuFolder.open(folder, "test")
        self._metrics = DepthMetrics(max_depth_metres=MAX_DEPTH_METRES, eigen_crop=eigen_crop)

    def __len__(self) -> int:
        return len(self._data)

    def image_HW3(self, index: int) -> NDArray[Any]:
        """Return an image, RGB, uint8."""
        return self._data.image_HW3(index)

    def truth(self, index: int) -> Prediction:
        """Return an image's depth, metres."""
        return {"depth_metres": self._data.depth_HW(index)}

    def update(self, index: int, truth: Prediction, prediction: Prediction) -> None:
        """Add an image's errors."""
        del index
        self._metrics.update(prediction["depth_metres"], truth["depth_metres"])

    def compute(self) -> dict[str, float]:
        """Return the means over images."""
        cropped = {"num_eigen_cropped": float(self._metrics.num_cropped)}
        return self._metrics.result() | cropped

    def per_image(self) -> dict[str, NDArray[Any]]:
        """Return ``rmse`` (images,), metres."""
        return {"rmse": self._metrics.per_image["rmse"]}
