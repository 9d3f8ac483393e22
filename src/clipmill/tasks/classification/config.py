"""Configuration of image classification."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from clipmill.config import Config


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
