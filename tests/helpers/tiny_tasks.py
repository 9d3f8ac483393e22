"""The smallest encoders and tasks."""

from clipmill.models.config import EncoderConfig, VisionConfig
from clipmill.tasks.config import DepthConfig, SegmentationConfig

VIT = EncoderConfig(
    vision=VisionConfig(image_size=32, patch_size=8, width=16, layers=2, head_width=8)
)
CONV = EncoderConfig(vision=VisionConfig(timm_model="test_resnet"))
SEGMENTATION = SegmentationConfig(
    crop_size=32,
    drop_path=0.0,
    pyramid_channels=8,
    head_channels=8,
    auxiliary_channels=8,
    num_workers=0,
)
DEPTH = DepthConfig(crop_size=32, drop_path=0.0, head_channels=8, num_workers=0)
CLASSES = ("floor", "wall", "cube", "ball", "cone")
