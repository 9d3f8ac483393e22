"""Configs of pretraining: CLIP, CoCa, MAE, supervised, and teacher layers.

They import neither torch nor a sibling, so that recipes and commands can read them quickly.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from clipmill.config import Config, added_field, runtime_field
from clipmill.data.loading.config import DataLoaderConfig
from clipmill.data.loading.mixture import MixtureSource
from clipmill.data.loading.view import ViewConfig
from clipmill.data.transforms.augmentation import RandomResizedCropConfig, StoredAugmentationConfig
from clipmill.engine.config import TrainConfig
from clipmill.errors import ConfigError
from clipmill.models.config import (
    ClipConfig,
    CocaConfig,
    MaeConfig,
    RangeAugmentConfig,
    TowerOptions,
    VisionConfig,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ValidationConfig(Config):
    """Validation of CLIP during training: retrieval and zero-shot classification."""

    RENAMED_FIELDS: ClassVar[Mapping[str, str]] = {
        "every_steps": "every",
        "class_folder": "zero_shot_dataset",
    }

    every: int = 1000
    """Updates between two validations; 0 for none."""
    num_pairs: int = 1000
    """Held-out pairs of the retrieval; 0 for none."""
    zero_shot_dataset: str = ""
    """Local folder with a folder of images per class, named as the class; empty for none."""
    templates: tuple[str, ...] = ("a photo of a {}.",)
    """Sentences whose mean embedding stands for a class."""
    batch_size: int = 64
    """Samples embedded together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillationConfig(Config):
    """Losses on reinforced data: ``contrastive_weight * CLIP + weight * distillation``."""

    layer: str = ""
    """The layer of the teachers' embeddings, such as ``teacher/ensemble-1a2b3c4d``."""
    contrastive_weight: float = 0.0
    """Weight of the contrastive loss of each caption kind (apple/ml-mobileclip: 0 for
    DataCompDR-12M and mobile encoders, 0.25 for ViT-B/16 on DataCompDR-1B)."""
    weight: float = 1.0
    """Weight of the distillation loss of each caption kind."""
    teacher_widths: tuple[int, ...] = (768, 768)
    """Widths of the teachers' embeddings, concatenated in the layer."""
    teacher_scale: float = 100.0
    """Factor of the teachers' similarities (apple/ml-mobileclip)."""

    def __post_init__(self) -> None:
        """Refuse weights that train nothing (ConfigError)."""
        if min(self.contrastive_weight, self.weight) < 0 or self.weight == 0:
            raise ConfigError(
                f"weights were {self.contrastive_weight} and {self.weight}",
                expected="a contrastive_weight of at least 0, and a weight above 0",
                action="leave distillation null to train without teachers",
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainConfig(Config):
    """A CLIP pretraining run.

    Example:
        >>> config = clipmill.get_recipe("clip-vit-b16-12m", clipmill.PretrainConfig)
        >>> config = config.override(["view.captions=both", "view.layer=captions/coca-1a2b3c4d"])
        >>> config.train.batch_size
        8192
    """

    RENAMED_FIELDS: ClassVar[Mapping[str, str]] = {
        "towers": "tower_options",
        "evaluation": "validation",
        "load": "dataloader",
        "crop": "random_resized_crop",
    }

    model: ClipConfig = ClipConfig()
    """The two towers."""
    init: str = ""
    """Address of the initial weights; empty for random ones."""
    tower_options: TowerOptions = TowerOptions()
    """Options of the towers in training."""
    distillation: DistillationConfig | None = None
    """Distillation from a teacher layer; null to learn from captions alone."""
    view: ViewConfig = ViewConfig()
    """Captions and samples."""
    mixture: tuple[MixtureSource, ...] = added_field(())
    """Datasets with weights, instead of one dataset."""
    random_resized_crop: RandomResizedCropConfig = RandomResizedCropConfig()
    """Augmentation; with distillation the layer's own is replayed instead."""
    range_augment: RangeAugmentConfig | None = None
    """Learned photometric augmentation on the device; null for none."""
    dataloader: DataLoaderConfig = DataLoaderConfig()
    """Reading and decoding of samples."""
    validation: ValidationConfig = ValidationConfig(every=0)
    """Validation during training."""
    train: TrainConfig
    """Length, rate, precision."""

    def __post_init__(self) -> None:
        """Refuse losses that don't go together (ConfigError)."""
        if self.distillation is not None and self.model.loss == "sigmoid":
            raise ConfigError(
                "model.loss was 'sigmoid', with distillation",
                expected="softmax: teachers give a distribution over a batch",
                action="set model.loss=softmax, or distillation=null",
            )
        if self.distillation is not None and self.range_augment is not None:
            raise ConfigError(
                "range_augment was given, with distillation",
                expected="null: teacher embeddings were computed for the stored augmentation",
                action="set range_augment=null or distillation=null",
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class CocaTrainConfig(Config):
    """A CoCa training run."""

    RENAMED_FIELDS: ClassVar[Mapping[str, str]] = {
        "load": "dataloader",
        "crop": "random_resized_crop",
    }

    model: CocaConfig = CocaConfig()
    """Towers and decoder."""
    contrastive_weight: float = 1.0
    """Weight of the contrastive loss (open_clip's default)."""
    captioning_weight: float = 2.0
    """Weight of the captioning loss (open_clip's default)."""
    random_resized_crop: RandomResizedCropConfig = RandomResizedCropConfig()
    """Augmentation."""
    dataloader: DataLoaderConfig = DataLoaderConfig()
    """Reading and decoding of samples."""
    train: TrainConfig
    """Length, rate, precision."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MaePretrainConfig(Config):
    """A masked-autoencoder run."""

    RENAMED_FIELDS: ClassVar[Mapping[str, str]] = {
        "load": "dataloader",
        "crop": "random_resized_crop",
    }

    model: MaeConfig = MaeConfig()
    """Encoder and decoder."""
    fraction: float = 1.0
    """Part of the dataset's samples, above 0 and at most 1."""
    random_resized_crop: RandomResizedCropConfig = RandomResizedCropConfig(scale=(0.2, 1.0))
    """Augmentation; images are also mirrored (He et al. 2022)."""
    dataloader: DataLoaderConfig = DataLoaderConfig()
    """Reading and decoding of samples."""
    train: TrainConfig
    """Length, rate, precision."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SupervisedConfig(Config):
    """A supervised run."""

    RENAMED_FIELDS: ClassVar[Mapping[str, str]] = {
        "erased": "random_erasing_prob",
    }

    vision: VisionConfig
    """The image tower: a timm model, whose classifier is trained with it."""
    augmentation: StoredAugmentationConfig = StoredAugmentationConfig()
    """Crop and RandAugment; images are also mirrored."""
    mixup: float = 0.2
    """Alpha of mixup; 0 for none."""
    cutmix: float = 1.0
    """Alpha of CutMix; 0 for none."""
    random_erasing_prob: float = 0.25
    """Probability of random erasing (Zhong et al. 2020)."""
    label_smoothing: float = 0.1
    """Probability that is spread over all classes."""
    drop_path: float = 0.0
    """Highest rate of stochastic depth."""
    num_workers: int = runtime_field(8)
    """Processes of a rank that decode; 0 decodes in the training process."""
    train: TrainConfig
    """Length, rate, precision."""

    def __post_init__(self) -> None:
        """Refuse a tower without a classifier of its own (ConfigError)."""
        if not self.vision.timm_model:
            raise ConfigError(
                "vision.timm_model was empty",
                expected="the name of a timm model",
                action="set vision.timm_model=fastvit_mci0, or vit_base_patch16_224",
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherConfig(Config):
    """An ensemble of teachers, and the augmentations that it embeds."""

    models: tuple[str, ...] = ()
    """Addresses of the teachers, CLIPs with both towers."""
    num_augmentations: int = 30
    """Augmentations stored per sample (DataCompDR-12M)."""
    augmentation: StoredAugmentationConfig = StoredAugmentationConfig()
    """Distribution of the augmentations."""
    seed: int = 0
    """Seed of augmentations, with each sample's uid."""
    batch_size: int = 64
    """Images or texts embedded together."""
