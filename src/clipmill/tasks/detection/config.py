"""Configuration of object detection."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from clipmill.config import Config


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
