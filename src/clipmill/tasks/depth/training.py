"""Training and evaluation of depth, with the metrics of Eigen et al. 2014.

Shapes: B batch, H W image. Depth is along the optical axis, in meters.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clipmill.errors import SourceError
from clipmill.models.config import EncoderConfig
from clipmill.tasks.base import Prediction
from clipmill.tasks.config import DepthConfig
from clipmill.tasks.depth.task import DepthTask
from clipmill.tasks.training import Images, Predict, TestSplit, TrainingSamples, TrainingTask

_MIN_DEPTH_METERS = 1e-3

EIGEN_SIZE = (480, 640)
EIGEN_CROP = (slice(45, 471), slice(41, 601))
"""Rows and columns of NYUv2's images that are evaluated (Eigen et al. 2014). GLPDepth evaluates
NYUv2 within them whatever its options say, and Xie et al. 2023 took its evaluation over."""


class DepthTraining(DepthTask, TrainingTask[DepthConfig]):
    """Depth maps, Xie et al.'s loss and augmentation, the usual nine metrics."""

    test_split_name = "test"

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
        from clipmill.data.labeled.dense import DepthFolder
        from clipmill.data.transforms import dense

        samples = DepthFolder.open(folder, "train")

        photometric = asdict(config.photometric)

        @cached_in_memory
        def resized(index: int) -> dict[str, NDArray[Any]]:
            image, depth = dense.center_crop_pair(*samples.pair(index), config.crop_size)
            return {"images": image, "depth": depth}

        def load(index: int, generator: np.random.Generator) -> dict[str, NDArray[Any]]:
            if config.cache_features:
                return resized(index) | {"keys": np.asarray(index)}
            image, depth = samples.pair(index)
            depth = np.where(depth <= config.max_depth_meters, depth, 0)
            if config.cutdepth_period and generator.integers(config.cutdepth_period) == 0:
                image = dense.cutdepth(image, depth, config.max_depth_meters, generator)
            image, depth = dense.flip_pair(image, depth, generator)
            image, depth = dense.crop_pair(image, depth, config.crop_size, generator, fill=0)
            image = dense.photometric_distortion(image, generator, **photometric)
            return {"images": image, "depth": depth}

        return TrainingSamples(load=load, num_samples=len(samples), num_workers=config.num_workers)

    def training_images(self, folder: Path) -> Images:
        """Return the training split's images."""
        from clipmill.data.labeled.dense import DepthFolder

        return DepthFolder.open(folder, "train")

    def inference_key(self, training_key: str) -> str | None:
        """Return the key unchanged: training and inference share the network."""
        return training_key

    def test_split(
        self, config: DepthConfig, folder: Path, classes: tuple[str, ...] = (), split: str = ""
    ) -> "DepthTestSplit":
        """Open the test list, or the split that ``split`` names."""
        del classes
        return DepthTestSplit(
            folder,
            split or self.test_split_name,
            eigen_crop=config.eigen_crop,
            max_depth_meters=config.max_depth_meters,
        )

    def metric_from_rows(self, per_image: Mapping[str, NDArray[Any]]) -> float:
        """Compute the mean of the images' RMSE."""
        return float(per_image["rmse"].mean())

    def trivial_predictors(self, folder: Path) -> Mapping[str, Predict]:
        """Return ``chance`` (another image's depth), ``constant`` (mean) and ``mean map``."""
        from PIL import Image

        from clipmill.data.labeled.dense import DepthFolder

        train = DepthFolder.open(folder, "train")
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
            return {"depth_meters": resized(filled_HW, image_HW3.shape)}

        return {
            "chance": chance,
            "constant": lambda image_HW3: {
                "depth_meters": np.full(image_HW3.shape[:2], mean, np.float32)
            },
            "mean map": lambda image_HW3: {"depth_meters": resized(mean_HW, image_HW3.shape)},
        }


class DepthTestSplit(TestSplit):
    """Test images with the usual nine metrics, computed per image and averaged.

    Metrics include ``num_eigen_cropped``, the images evaluated within Eigen et al.'s crop.
    """

    def __init__(
        self, folder: Path, split: str, *, eigen_crop: bool, max_depth_meters: float
    ) -> None:
        from clipmill.data.labeled.dense import DepthFolder

        self._data = DepthFolder.open(folder, split)
        self._metrics = DepthMetrics(max_depth_meters=max_depth_meters, eigen_crop=eigen_crop)

    def __len__(self) -> int:
        return len(self._data)

    def image_HW3(self, index: int) -> NDArray[Any]:
        """Return an image, RGB, uint8."""
        return self._data.image_HW3(index)

    def truth(self, index: int) -> Prediction:
        """Return an image's depth, meters."""
        return {"depth_meters": self._data.pair(index)[1]}

    def update(self, index: int, truth: Prediction, prediction: Prediction) -> None:
        """Add an image's errors."""
        del index
        self._metrics.update(prediction["depth_meters"], truth["depth_meters"])

    def compute(self) -> dict[str, float]:
        """Return the means over images."""
        cropped = {"num_eigen_cropped": float(self._metrics.num_cropped)}
        return self._metrics.result() | cropped

    def per_image(self) -> dict[str, NDArray[Any]]:
        """Return ``rmse`` (images,), meters."""
        return {"rmse": self._metrics.per_image["rmse"]}


class DepthMetrics:
    """Mean errors over images; pixels whose truth lies outside the range don't count.

    With ``eigen_crop``, nor do those of a 480x640 image outside Eigen et al.'s crop. The crop is
    defined for that size alone; all of any other image is evaluated.
    """

    def __init__(self, *, max_depth_meters: float, eigen_crop: bool = False) -> None:
        self._max = max_depth_meters
        self._eigen_crop = eigen_crop
        self._images: list[dict[str, float]] = []
        self.num_cropped = 0
        """Images that were evaluated within Eigen et al.'s crop."""

    def update(self, prediction_HW: NDArray[Any], truth_HW: NDArray[Any]) -> None:
        """Add an image; one without any valid pixel is left out."""
        assert prediction_HW.shape == truth_HW.shape
        is_cropped = self._eigen_crop and truth_HW.shape == EIGEN_SIZE
        if is_cropped:
            prediction_HW, truth_HW = prediction_HW[EIGEN_CROP], truth_HW[EIGEN_CROP]
        valid = (truth_HW > _MIN_DEPTH_METERS) & (truth_HW < self._max)
        if not valid.any():
            return
        self.num_cropped += is_cropped
        truth = truth_HW[valid].astype(np.float64)
        # As in GLPDepth: NaN is nearest, infinity is farthest.
        predicted = np.nan_to_num(
            prediction_HW[valid].astype(np.float64), nan=_MIN_DEPTH_METERS, posinf=self._max
        )
        predicted = np.clip(predicted, _MIN_DEPTH_METERS, self._max)
        ratio = np.maximum(truth / predicted, predicted / truth)
        log_difference = np.log(predicted) - np.log(truth)
        difference = predicted - truth
        self._images.append(
            {
                "d1": float((ratio < 1.25).mean()),
                "d2": float((ratio < 1.25**2).mean()),
                "d3": float((ratio < 1.25**3).mean()),
                "abs_rel": float((np.abs(difference) / truth).mean()),
                "sq_rel": float((difference**2 / truth).mean()),
                "rmse": float(np.sqrt((difference**2).mean())),
                "rmse_log": float(np.sqrt((log_difference**2).mean())),
                "log10": float(np.abs(np.log10(predicted) - np.log10(truth)).mean()),
                "silog": float(
                    np.sqrt((log_difference**2).mean() - 0.5 * log_difference.mean() ** 2)
                ),
            }
        )

    @property
    def per_image(self) -> dict[str, NDArray[np.float64]]:
        """Each metric of the images that have a valid pixel, in their order."""
        names = self._images[0] if self._images else ()
        return {name: np.array([image[name] for image in self._images]) for name in names}

    def result(self) -> dict[str, float]:
        """Return each metric's mean over images: d1, d2, d3 are fractions, rmse is in meters.

        Raises:
            SourceError: no image has a valid pixel.
        """
        if not self._images:
            raise SourceError(
                "no test image has a pixel of known depth",
                expected=f"depths above {_MIN_DEPTH_METERS} and below {self._max} meters",
                action="check the unit of the depth files (NYU's PNGs hold millimeters; the option "
                "values_per_meter in depth.json), and model.max_depth_meters",
            )
        names = self._images[0]
        return {name: float(np.mean([image[name] for image in self._images])) for name in names}


if TYPE_CHECKING:
    from clipmill.tasks.objective import DenseObjective
