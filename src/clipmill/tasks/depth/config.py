"""Configuration of depth estimation."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from clipmill.config import Config
from clipmill.data.transforms.dense import PhotometricConfig
from clipmill.errors import ConfigError

MAX_DEPTH_METRES = 10.0
"""NYUv2's range, and the sigmoid's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DepthConfig(Config):
    """Decoder, training crop, augmentation and test-time averaging."""

    RENAMED_FIELDS: ClassVar[Mapping[str, str]] = {
        "is_frozen": "freeze_encoder",
        "start_std": "init_std",
        "cut_depth_every": "cutdepth_period",
        "flip_test": "flip_augment_test",
        "num_windows": "num_test_windows",
    }

    head: Literal["deconvolution", "linear"] = "deconvolution"
    """Xie et al.'s decoder of the last feature map; ``linear`` is a probe of all of the encoder's
    maps (:mod:`clipmill.models.linear_head`)."""
    position_side: int = 16
    """Grid positions along each side of the linear head's bias by position."""
    crop_size: int = 480
    """Side of the training crop, and the shorter side at test, pixels (CLIP-QC, Table 15)."""
    photometric: PhotometricConfig = PhotometricConfig()
    """Photometric distortion."""
    freeze_encoder: bool = False
    """Train the head alone."""
    cache_features: bool = False
    """Compute a frozen encoder's feature maps once for each image. Images are then resized to the
    crop's size without augmentation."""
    drop_path: float = 0.1
    """Stochastic depth at the encoder's top (swept 0.0 to 0.2; CLIP-QC, Table 15)."""
    head_channels: int = 0
    """Width of the head; 0 takes the encoder's (Xie et al. 2023)."""
    init_std: float = 0.001
    """Standard deviation of the head's initial weights (Xie et al. 2023). A head far narrower than
    theirs needs larger ones, or it long predicts only the mean."""
    silog_lambda: float = 0.5
    """Weight of the squared mean in the SiLog loss (Xie et al. 2023)."""
    cutdepth_period: int = 4
    """Apply CutDepth to one sample in this many (Xie et al. 2023)."""
    flip_augment_test: bool = True
    """Average with the mirrored image's prediction at test (Xie et al. 2023)."""
    num_test_windows: int = 2
    """Square windows along an image's longer side at test, evenly spaced, overlaps averaged (Xie
    et al. 2023); 1 uses the whole image."""
    eigen_crop: bool = True
    """Evaluate NYUv2's images within Eigen et al.'s crop, as Xie et al. 2023 do."""
    num_workers: int = 4
    """Loader processes; 0 loads in the training process."""

    def __post_init__(self) -> None:
        """Refuse to cache the features of an encoder that is trained (ConfigError)."""
        if self.cache_features and not self.freeze_encoder:
            raise ConfigError(
                "cache_features was true, with an encoder that is trained",
                expected="freeze_encoder=true: only a frozen encoder's features stay the same",
                action="set freeze_encoder=true, or cache_features=false",
            )
