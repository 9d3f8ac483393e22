"""Configuration of each task: head, input sizes, augmentation and test mode.

Recipes and servers import it; it imports neither torch nor a dataset.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from clipmill.config import Config
from clipmill.errors import ConfigError

MAX_DEPTH_METERS = 10.0
"""NYUv2's range, and the sigmoid's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PhotometricConfig(Config):
    """Photometric distortion (:func:`clipmill.data.transforms.dense.photometric_distortion`).

    Each of its three changes has probability ``probability`` (albumentations' defaults).
    """

    probability: float = 0.5
    """Chance of each of the three changes."""
    brightness_contrast: float = 0.2
    """Largest change of brightness and of contrast, as a share."""
    gamma: tuple[float, float] = (0.8, 1.2)
    """Lowest and highest exponent."""
    hue: float = 20 / 180
    """Largest turn of hue, as a share of the circle."""
    saturation: float = 30 / 255
    """Largest change of saturation, as a share of its range."""
    value: float = 20 / 255
    """Largest change of value, as a share of its range."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentationConfig(Config):
    """Head, training crop, augmentation and test mode."""

    RENAMED_FIELDS: ClassVar[Mapping[str, str]] = {
        "is_frozen": "freeze_encoder",
        "test": "test_mode",
    }

    head: Literal["upernet", "semantic-fpn", "linear"] = "upernet"
    """UPerNet for ViTs, SemanticFPN for mobile encoders (CLIP-QC, Table 14); ``linear`` is a
    probe of the encoder's feature maps (:mod:`clipmill.models.heads`)."""
    crop_size: int = 512
    """Side of the training crop, pixels (CLIP-QC, Table 14)."""
    test_size: int = 0
    """Shorter side of an image at test, pixels; 0 takes the crop's."""
    scale: tuple[float, float] = (0.5, 2.0)
    """Random resize before the crop, lowest and highest factor (mmseg's ADE20K pipeline)."""
    scale_of: Literal["test", "image"] = "test"
    """Image that the factor resizes: as it is resized at test (mmseg's RandomResize), or as it is
    stored."""
    cat_max_ratio: float = 0.75
    """Largest share of a crop's labeled pixels in one class; up to ten crops are drawn for less
    (mmseg). 1 takes the first."""
    photometric: PhotometricConfig = PhotometricConfig()
    """Photometric distortion."""
    freeze_encoder: bool = False
    """Train the head alone."""
    cache_features: bool = False
    """Compute a frozen encoder's feature maps once for each image. Images are then resized to the
    crop's size without augmentation."""
    drop_path: float = 0.1
    """Stochastic depth at the encoder's top (swept 0.0 to 0.2; CLIP-QC, Table 14)."""
    linear_dropout: float = 0.0
    """Probability that the linear head's training drops a channel of an image's maps."""
    linear_loss: Literal["map", "image"] = "map"
    """Resolution of the linear head's loss: the feature map's, or the image's after upsampling."""
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
        """Refuse values out of range, and cached features of a trained encoder (ConfigError)."""
        _validate_fraction("drop_path", self.drop_path)
        _validate_factors("scale", self.scale)
        _validate_fraction("linear_dropout", self.linear_dropout)
        _validate_sides(crop_size=self.crop_size)
        _validate_cache(cache_features=self.cache_features, freeze_encoder=self.freeze_encoder)

    @property
    def test_side(self) -> int:
        """Shorter side of an image at test, pixels."""
        return self.test_size or self.crop_size


@dataclass(frozen=True, kw_only=True, slots=True)
class DepthConfig(Config):
    """Decoder, training crop, augmentation and test-time averaging."""

    RENAMED_FIELDS: ClassVar[Mapping[str, str]] = {
        "is_frozen": "freeze_encoder",
        "start_std": "init_std",
        "cut_depth_every": "cutdepth_period",
        "flip_test": "flip_augment_test",
        "num_windows": "num_test_windows",
        "max_depth_metres": "max_depth_meters",
    }

    head: Literal["deconvolution", "linear"] = "deconvolution"
    """Xie et al.'s decoder of the last feature map; ``linear`` is a probe of all of the encoder's
    maps (:mod:`clipmill.models.heads`)."""
    position_side: int = 16
    """Grid positions along each side of the linear head's bias by position; 0 for no bias."""
    num_bins: int = 1
    """Outputs of the linear head: 1 for a sigmoid of the range, more for the mean of as many evenly
    spaced depths, weighted by the outputs (AdaBins, in DINOv2's form)."""
    linear_dropout: float = 0.0
    """Probability that the linear head's training drops a channel of an image's maps."""
    linear_loss: Literal["map", "image"] = "map"
    """Resolution of the linear head's loss: the feature map's, or the image's after upsampling."""
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
    """Apply CutDepth to one sample in this many (Xie et al. 2023); 0 for none."""
    max_depth_meters: float = MAX_DEPTH_METERS
    """Farthest depth that is predicted and evaluated: 10 for NYUv2, 80 for KITTI."""
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
        """Refuse values out of range, and cached features of a trained encoder (ConfigError)."""
        _validate_fraction("drop_path", self.drop_path)
        _validate_fraction("linear_dropout", self.linear_dropout)
        _validate_sides(crop_size=self.crop_size, num_bins=self.num_bins)
        if not self.max_depth_meters > 0:
            raise ConfigError(
                f"max_depth_meters was {self.max_depth_meters}",
                expected="a number above 0",
                action="set model.max_depth_meters to the farthest depth, such as 10 or 80",
            )
        _validate_cache(cache_features=self.cache_features, freeze_encoder=self.freeze_encoder)


@dataclass(frozen=True, kw_only=True, slots=True)
class DetectionConfig(Config):
    """Heads, training canvas and augmentation."""

    RENAMED_FIELDS: ClassVar[Mapping[str, str]] = {
        "is_frozen": "freeze_encoder",
        "hidden_width": "roi_hidden_dim",
        "regions_per_image": "rois_per_image",
        "start_std": "init_std",
    }

    image_size: int = 1024
    """Side of the training canvas, and the longer side at test, pixels (ViTDet)."""
    scale: tuple[float, float] = (0.1, 2.0)
    """Large-scale jitter: lowest and highest factor, relative to the image that fits the canvas."""
    freeze_encoder: bool = False
    """Train the heads alone."""
    drop_path: float = 0.1
    """Stochastic depth at the encoder's top (swept 0.0 to 0.3; CLIP-QC, Table 13)."""
    neck_channels: int = 256
    """Width of the pyramid's maps, and of the heads' convolutions (mmdet)."""
    roi_hidden_dim: int = 1024
    """Width of the box head's layers (mmdet)."""
    num_stages: int = 1
    """Box refinement stages: 1 for Mask R-CNN, 3 for Cascade Mask R-CNN."""
    mask_head: bool = True
    """Predict masks too; false for data with boxes only."""
    anchor_scale: float = 8.0
    """Side of a square anchor in strides of its map (mmdet)."""
    num_proposals: int = 1000
    """Proposals of an image that are kept at test, of each map and in all; twice as many of each
    map in training, and in all for the cascade (mmdet)."""
    rois_per_image: int = 512
    """Regions that train the heads, of each image, a quarter of them objects (mmdet)."""
    init_std: float = 0.01
    """Standard deviation of the classifiers' initial weights, ten times the box regressors'
    (mmdet). Heads far narrower than mmdet's need larger ones."""
    num_workers: int = 4
    """Loader processes; 0 loads in the training process."""

    def __post_init__(self) -> None:
        """Refuse values out of range (ConfigError)."""
        _validate_fraction("drop_path", self.drop_path)
        _validate_factors("scale", self.scale)
        _validate_sides(image_size=self.image_size)


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassificationConfig(Config):
    """Input sizes, augmentation and regularization."""

    RENAMED_FIELDS: ClassVar[Mapping[str, str]] = {
        "is_frozen": "freeze_encoder",
        "erased": "random_erasing_prob",
    }

    image_size: int = 224
    """Side of the training crop, pixels (CLIP-QC, Table 12)."""
    test_size: int = 224
    """Side at test, pixels; position embeddings are interpolated to it."""
    test_crop: float = 0.875
    """Share of the shorter side in the central crop at test (ImageNet's usual 224 / 256)."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Share of the image's area in a training crop (torchvision's default)."""
    freeze_encoder: bool = False
    """Train the head alone: a linear probe."""
    drop_path: float = 0.1
    """Stochastic depth at the encoder's top (CLIP-QC, Table 12)."""
    label_smoothing: float = 0.1
    """Probability that is spread over all classes (CLIP-QC, Table 12)."""
    mixup: float = 0.0
    """Alpha of mixup; 0 for none (CLIP-QC, Table 12)."""
    cutmix: float = 0.0
    """Alpha of CutMix; 0 for none (CLIP-QC, Table 12)."""
    random_erasing_prob: float = 0.0
    """Probability of random erasing (CLIP-QC, Table 12)."""
    num_workers: int = 8
    """Loader processes; 0 loads in the training process."""

    def __post_init__(self) -> None:
        """Refuse values out of range (ConfigError)."""
        _validate_fraction("drop_path", self.drop_path)
        _validate_factors("scale", self.scale)
        _validate_sides(image_size=self.image_size, test_size=self.test_size)


def _validate_cache(*, cache_features: bool, freeze_encoder: bool) -> None:
    if cache_features and not freeze_encoder:
        raise ConfigError(
            "cache_features was true, with an encoder that is trained",
            expected="freeze_encoder=true: only a frozen encoder's features stay the same",
            action="set freeze_encoder=true, or cache_features=false",
        )


def _validate_fraction(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ConfigError(
            f"{name} was {value}",
            expected="a share from 0 to below 1",
            action=f"set model.{name} to such as 0.1",
        )


def _validate_factors(name: str, values: tuple[float, float]) -> None:
    lowest, highest = values
    if not 0 < lowest <= highest:
        raise ConfigError(
            f"{name} was [{lowest}, {highest}]",
            expected="the lowest and the highest factor, above 0",
            action=f"set model.{name} to such as [0.5, 2.0]",
        )


def _validate_sides(**sides: int) -> None:
    for name, side in sides.items():
        if side < 1:
            raise ConfigError(
                f"{name} was {side}",
                expected="a number of at least 1",
                action=f"set model.{name} to such a number, or leave it at its default",
            )
