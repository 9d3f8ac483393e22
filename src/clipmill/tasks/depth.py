"""Depth estimation as Xie et al. 2023 do it (CLIP-QC, Table 15).

Shapes: B batch, H W image. Depth is along the optical axis, in metres.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clipmill.config import Config
from clipmill.data.dense_augmentation import PhotometricConfig
from clipmill.models.encoders import EncoderConfig
from clipmill.stages import Report
from clipmill.tasks.contract import (
    EvaluatedSample,
    Evaluation,
    Images,
    Metric,
    OutputSpec,
    Predict,
    Prediction,
    Task,
)
from clipmill.tasks.depth_metrics import DepthMetrics
from clipmill.tasks.palette import depth_colours

if TYPE_CHECKING:
    from torch import Tensor, nn

    from clipmill.tasks.dense_objective import DenseObjective

MAX_DEPTH_METRES = 10.0
"""NYUv2's range, and the sigmoid's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DepthConfig(Config):
    """Decoder, crop and augmentation."""

    crop_size: int = 480
    """Side of the training crop, and the shorter side at test, pixels (CLIP-QC, Table 15)."""
    photometric: PhotometricConfig = PhotometricConfig()
    """Changes of colour."""
    is_frozen: bool = False
    """Whether the encoder stays as it is: a probe of its features."""
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
        from clipmill.tasks.depth_objective import DepthObjective

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
        """``images`` (B, H, W, 3) uint8 and ``depth`` (B, H, W) float32, 0 where unknown."""
        from clipmill.data import dense_augmentation as augment
        from clipmill.data.labelled import NyuFolder
        from clipmill.data.samples import sample_batches

        samples = NyuFolder.open(folder, "train")

        def load(index: int, generator: np.random.Generator) -> dict[str, NDArray[Any]]:
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
        from clipmill.data.labelled import NyuFolder

        return NyuFolder.open(folder, "train")

    def network(
        self, config: DepthConfig, encoder: EncoderConfig, classes: tuple[str, ...]
    ) -> "nn.Module":
        """The network that was trained."""
        from clipmill.models.dense import build_dense
        from clipmill.tasks.depth_network import DepthNetwork

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
        from clipmill.data.labelled import NyuFolder

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
        return Evaluation(metrics=metrics.result() | cropped, samples=tuple(samples))

    def draw(
        self, prediction: Prediction, image_HW3: NDArray[Any], classes: tuple[str, ...]
    ) -> NDArray[Any]:
        """Near is bright, far is dark; what isn't known is grey."""
        del image_HW3, classes
        return depth_colours(prediction["depth_metres"], MAX_DEPTH_METRES)
