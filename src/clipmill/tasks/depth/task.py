"""Depth estimation as Xie et al. 2023 do it (CLIP-QC, Table 15).

Shapes: B batch, H W image. Depth is along the optical axis, in metres.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
import numpy as np
from numpy.typing import NDArray
from clipmill.config import Config
from clipmill.data.transforms.dense import PhotometricConfig
from clipmill.errors import ConfigError
from clipmill.models.config import EncoderConfig
from clipmill.stage_records import Report
from clipmill.tasks.base import (
    EvaluatedSample,
    Evaluation,
    Images,
    Metric,
    OutputSpec,
    Predict,
    Prediction,
    Task,
)
from clipmill.tasks.depth.metrics import DepthMetrics
from clipmill.tasks.visualization import depth_colours

if TYPE_CHECKING:
    from torch import Tensor, nn

    from clipmill.tasks.objective import DenseObjective

MAX_DEPTH_METRES = 10.0
"""NYUv2's range, and the sigmoid's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DepthConfig(Config):
    """Decoder, crop and augmentation."""

    head: Literal["deconvolution", "linear"] = "deconvolution"
    """Xie et al.'s decoder of the last map; ``linear`` is a probe of all of the encoder's maps
    (:mod:`clipmill.models.linear_head`)."""
    position_side: int = 16
    """Places along each side of the linear head's bias by position."""
    crop_size: int = 480
    """Side of the training crop, and the shorter side at test, pixels (CLIP-QC, Table 15)."""
    photometric: PhotometricConfig = PhotometricConfig()
    """Changes of colour."""
    is_frozen: bool = False
    """Whether the encoder stays as it is: a probe of its features."""
    cache_features: bool = False
    """Whether a frozen encoder's maps are computed once for each image. Images are then seen whole,
    at the crop's size, without augmentation."""
    drop_path: float = 0.1
    """Stochastic depth at the encoder's top (swept 0.0 to 0.2; CLIP-QC, Table 15)."""
    head_channels: int = 0
    """Width of the head; 0 takes the encoder's (Xie et al. 2023)."""
    start_std: float = 0.001
    """Standard deviation of the head's start weights (Xie et al. 2023). A head far narrower than
    theirs wants larger ones, or it long finds nothing but the mean."""
    silog_lambda: float = 0.5
    """Share of the mean's square that the loss forgives (Xie et al. 2023)."""
    cut_depth_every: int = 4
    """CutDepth touches one sample in this many (Xie et al. 2023)."""
    flip_test: bool = True
    """Average with the mirrored image's prediction at test (Xie et al. 2023)."""
    num_windows: int = 2
    """Squares that an image longer than high is seen as at test, spread evenly, overlaps averaged
    (Xie et al. 2023); 1 sees it whole."""
    eigen_crop: bool = True
    """Judge NYUv2's images within Eigen et al.'s crop, as Xie et al. 2023 do."""
    num_workers: int = 4
    """Processes that load samples; 0 loads in the training process."""

    def __post_init__(self) -> None:
        """Refuse to cache what training changes (ConfigError)."""
        if self.cache_features and not self.is_frozen:
            raise ConfigError(
                "cache_features was true, with an encoder that is trained",
                expected="is_frozen=true: only a frozen encoder's features stay the same",
                action="set is_frozen=true, or cache_features=false",
            )


class DepthTask(Task[DepthConfig]):
    """NYUv2's layout in, metres out, judged by RMSE."""

    name = "depth"
    metric = Metric(name="rmse", unit="m", higher_is_better=False)
    outputs = (OutputSpec(name="depth_metres", dtype="float32", unit="metres"),)
    config_type = DepthConfig

    def classes(self, folder: Path) -> tuple[str, ...]:
        """Depth has no classes."""
        del folder
        return ()

    def sides(self, config: DepthConfig) -> tuple[int, ...]:
        """The crop's."""
        return (config.crop_size,)

    def objective(
        self, config: DepthConfig, encoder: EncoderConfig, classes: tuple[str, ...]
    ) -> "DenseObjective":
        """The scale-invariant logarithmic loss."""
        from clipmill.tasks.depth.objective import DepthObjective

        del classes
        return DepthObjective(config, encoder)

    def batches(
        self,
        config: DepthConfig,
        folder: Path,
        *,
        batch_size: int,
        seed: int,
        cursor: int,
        rank: int,
        world_size: int,
    ) -> Iterator[dict[str, "Tensor"]]:
        """``images`` (B, H, W, 3) uint8, ``depth`` (B, H, W) float32, 0 where unknown.

        ``keys`` (B,) if cached.
        """
        from clipmill.data import dense_augmentation as augment
        from clipmill.data.labeled.dense import NyuFolder
        from clipmill.data.labeled.dataloader import kept_in_memory, sample_batches

        samples = NyuFolder.open(folder, "train")

        @kept_in_memory
        def whole(index: int) -> dict[str, NDArray[Any]]:
            pair = samples.image_HW3(index), samples.depth_HW(index)
            return dict(
                zip(("images", "depth"), augment.whole_pair(*pair, config.crop_size), strict=True)
            )

        def load(index: int, generator: np.random.Generator) -> dict[str, NDArray[Any]]:
            if config.cache_features:
                return whole(index) | {"keys": np.asarray(index)}
            image, depth = samples.image_HW3(index), samples.depth_HW(index)
            if generator.integers(config.cut_depth_every) == 0:
                image = augment.cut_depth(image, depth, MAX_DEPTH_METRES, generator)
            image, depth = augment.flip_pair(image, depth, generator)
            image, depth = augment.crop_pair(image, depth, config.crop_size, generator, fill=0)
            image = augment.change_colours(image, config.photometric, generator)
            return {"images": image, "depth": depth}

        return sample_batches(
            load,
            len(samples),
            batch_size=batch_size,
            seed=seed,
            cursor=cursor,
            num_workers=config.num_workers,
            rank=rank,
            world_size=world_size,
        )

    def training_images(self, folder: Path) -> Images:
        """The training split's images."""
        from clipmill.data.labeled.dense import NyuFolder

        return NyuFolder.open(folder, "train")

    def network(
        self, config: DepthConfig, encoder: EncoderConfig, classes: tuple[str, ...]
    ) -> "nn.Module":
        """The network that was trained."""
        from clipmill.models.dense import build_dense
        from clipmill.tasks.depth.model import DepthNetwork

        del classes
        return DepthNetwork(config, build_dense(encoder))

    def served_name(self, trained_name: str) -> str | None:
        """Training holds the very network, with its encoder under its own name."""
        return trained_name

    def evaluate(
        self,
        predict: Predict,
        config: DepthConfig,
        folder: Path,
        *,
        num_samples: int,
        report: Report,
    ) -> Evaluation:
        """The usual nine figures, each computed per image and averaged over the test list.

        ``num_eigen_cropped`` says how many images were judged within Eigen et al.'s crop.
        """
        from clipmill.data.labeled.dense import NyuFolder

        data = NyuFolder.open(folder, "test")
        metrics = DepthMetrics(max_depth_metres=MAX_DEPTH_METRES, eigen_crop=config.eigen_crop)
        samples = []
        for index in range(len(data)):
            image, truth = data.image_HW3(index), data.depth_HW(index)
            found = predict(image)["depth_metres"]
            metrics.update(found, truth)
            if index < num_samples:
                samples.append(
                    EvaluatedSample(
                        image_HW3=image,
                        truth={"depth_metres": truth},
                        prediction={"depth_metres": found},
                    )
                )
            report(index + 1, len(data), "evaluated")
        cropped = {"num_eigen_cropped": float(metrics.num_cropped)}
        return Evaluation(
            metrics=metrics.result() | cropped,
            samples=tuple(samples),
            per_image={"rmse": metrics.per_image["rmse"]},
        )

    def figure(self, per_image: Mapping[str, NDArray[Any]]) -> float:
        """The mean of the images' RMSE."""
        return float(per_image["rmse"].mean())

    def trivial_answers(self, folder: Path) -> Mapping[str, Predict]:
        """``chance``, another image's depth; ``constant``, the mean; ``mean map``, by place."""
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

        def other(image_HW3: NDArray[Any]) -> Prediction:
            found = train.depth_HW(int(generator.integers(len(train))))
            return {"depth_metres": resized(np.where(found > 0, found, mean), image_HW3.shape)}

        return {
            "chance": other,
            "constant": lambda image_HW3: {
                "depth_metres": np.full(image_HW3.shape[:2], mean, np.float32)
            },
            "mean map": lambda image_HW3: {"depth_metres": resized(mean_HW, image_HW3.shape)},
        }

    def draw(
        self, prediction: Prediction, image_HW3: NDArray[Any], classes: tuple[str, ...]
    ) -> NDArray[Any]:
        """Near is bright, far is dark; what isn't known is grey."""
        del image_HW3, classes
        return depth_colours(prediction["depth_metres"], MAX_DEPTH_METRES)
