"""Configuration of semantic segmentation."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from clipmill.config import Config
from clipmill.data.transforms.dense import PhotometricConfig
from clipmill.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentationConfig(Config):
    """Head, training crop, augmentation and test mode."""

    RENAMED_FIELDS: ClassVar[Mapping[str, str]] = {
        "is_frozen": "freeze_encoder",
        "test": "test_mode",
    }

    head: Literal["upernet", "semantic-fpn", "linear"] = "upernet"
    """UPerNet for ViTs, SemanticFPN for mobile encoders (CLIP-QC, Table 14); ``linear`` is a
    probe of the encoder's feature maps (:mod:`clipmill.models.linear_head`)."""
    crop_size: int = 512
    """Side of the training crop, and the shorter side at test, pixels (CLIP-QC, Table 14)."""
    scale: tuple[float, float] = (0.5, 2.0)
    """Random resize before the crop, lowest and highest factor (mmseg's ADE20K pipeline)."""
    photometric: PhotometricConfig = PhotometricConfig()
    """Photometric distortion."""
    freeze_encoder: bool = False
    """Train the head alone."""
    cache_features: bool = False
    """Compute a frozen encoder's feature maps once for each image. Images are then resized to the
    crop's size without augmentation."""
    drop_path: float = 0.1
    """Stochastic depth at the encoder's top (swept 0.0 to 0.2; CLIP-QC, Table 14)."""
    pyramid_channels: int = 256
    """Width of the simple feature pyramid's maps (ViTDet), and of SemanticFPN's."""
    head_channels: int = 512
    """Width of the head (mmseg: 512 of UPerHead, 128 of FPNHead)."""
    auxiliary_channels: int = 256
    """Width of UPerNet's auxiliary FCN head (mmseg); its loss weighs 0.4."""
    classifier_std: float = 0.01
    """Standard deviation of the last layer's initial weights (mmseg). A head far narrower than
    mmseg's needs larger ones, or it long predicts only the most frequent classes."""
    test_mode: Literal["whole", "slide"] = "whole"
    """Whole image, or sliding windows of the crop's size, at test (mmseg)."""
    test_stride: int = 341
    """Stride of the sliding window, pixels (mmseg: two thirds of 512)."""
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
