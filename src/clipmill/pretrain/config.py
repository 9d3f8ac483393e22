"""TODO."""
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING
from clipmill.config import Config
from clipmill.data.transforms.augmentation import CropTransform, RandomResizedCropConfig
from clipmill.data.dataset import Dataset
from clipmill.data.transforms.augmentation import ReplayTransform
from clipmill.data.loading.view import View, ViewConfig
from clipmill.config import digest_json
from clipmill.engine.config import TrainConfig
from clipmill.engine.result import result_uri, save_result
from clipmill.errors import ConfigError
from clipmill.models.checkpoint import CheckpointMetadata, has_checkpoint, save_checkpoint
from clipmill.models.config import RangeAugmentConfig
from clipmill.models.config import ClipConfig, TowerOptions
from clipmill.pretrain.teacher import teacher_parent
from clipmill.pretrain.validation import clip_evaluations
from clipmill.pretrain.dataloader import pair_batches
from clipmill.pretrain.init_weights import find_start
from clipmill.stage_records import Report
from clipmill.storage import join
from collections.abc import Sequence
import torch
from torch import Tensor
from clipmill.data.loading.dataloader import PairBatch
from clipmill.engine.distributed import Ranks
from clipmill.engine.objective import Forward, Objective, synchronizing
from clipmill.models.encoders import Normalize
from clipmill.models.range_augment import RangeAugment
from clipmill.models.towers import MAX_LOGIT_SCALE, build_clip
from clipmill.models.config import ClipConfig, TowerOptions
from clipmill.pretrain.contrastive import CaptionLosses
import contextlib
from torch import Tensor, nn
import logging
from collections.abc import Iterator, Mapping
import numpy as np
from PIL import Image
from clipmill.data.dataset import cache_folder
from clipmill.data.shards.read import read_shard
from clipmill.data.loading.view import View
from clipmill.errors import BadSampleError
from clipmill.images import decode_rgb
from clipmill.models.clip import ClipEmbedder
from clipmill.models.embedding_stats import EmbeddingStatistics, evenly_spaced_indices, statistics_of
from clipmill.models.config import ClipConfig
from dataclasses import dataclass
from clipmill.config import Config
from clipmill.data.layers import LAYER_MANIFEST
from clipmill.data.loading.view import View
from clipmill.errors import ConfigError
from clipmill.storage import join, read_json
from clipmill.lineage import Parent
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING
from clipmill.config import Config
from clipmill.data.transforms.augmentation import CropTransform
from clipmill.data.loading.view import View
from clipmill.engine.config import TrainConfig
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from clipmill.config import Config
from clipmill.data.dataset import cache_folder
from clipmill.data.shards.read import read_shard
from clipmill.data.loading.view import View, in_fraction
from clipmill.errors import BadSampleError, ConfigError
from clipmill.images import decode_rgb
from clipmill.models.preprocess import tower_image
from clipmill.models.retrieval import pair_accuracy, recall
from clipmill.models.tokenizer import Tokenizer
from clipmill.models.config import VisionConfig
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from clipmill.config import Config
from clipmill.data.transforms.augmentation import CropTransform, RandomResizedCropConfig
from clipmill.data.dataset import Dataset
from clipmill.data.loading.view import View, ViewConfig
from clipmill.engine.config import TrainConfig
from clipmill.engine.result import result_uri, save_result
from clipmill.models.checkpoint import CheckpointMetadata, has_checkpoint
from clipmill.models.config import MaeConfig
from clipmill.pretrain.dataloader import pair_batches
from clipmill.stage_records import Report
import torch
from torch import Tensor
from clipmill.data.loading.dataloader import PairBatch
from clipmill.engine.distributed import Ranks
from clipmill.engine.objective import Objective
from clipmill.models.mae import MaskedAutoencoder
from clipmill.models.encoders import Normalize
from dataclasses import dataclass
from clipmill.config import Config
from clipmill.data.transforms.augmentation import CropTransform, RandomResizedCropConfig
from clipmill.data.dataset import Dataset
from clipmill.data.loading.view import View, ViewConfig
from clipmill.engine.config import TrainConfig
from clipmill.engine.result import result_uri, save_result
from clipmill.models.checkpoint import CheckpointMetadata, has_checkpoint
from clipmill.models.config import CocaConfig
from clipmill.pretrain.dataloader import pair_batches
from clipmill.stage_records import Report
import torch
from torch import Tensor
from torch.nn import functional as F
from clipmill.data.loading.dataloader import PairBatch
from clipmill.engine.distributed import Ranks
from clipmill.engine.objective import Objective
from clipmill.models.coca import coca_forward
from clipmill.models.encoders import Normalize
from clipmill.models.towers import MAX_LOGIT_SCALE
from clipmill.models.coca import build_coca
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
import numpy as np
from numpy.typing import NDArray
from clipmill.config import Config
from clipmill.data.labeled.image_folder import ClassFolder
from clipmill.data.labeled.folder import open_folder
from clipmill.data.transforms.augmentation import StoredAugmentationConfig, draw_augmentation, replay
from clipmill.engine.config import TrainConfig
from clipmill.engine.result import result_uri, save_result
from clipmill.errors import ConfigError
from clipmill.models.checkpoint import CheckpointMetadata, has_checkpoint
from clipmill.models.config import VisionConfig
from clipmill.stage_records import Report
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from clipmill.engine.distributed import Ranks
from clipmill.engine.objective import Objective
from clipmill.models.encoders import Normalize
from clipmill.data.transforms.mixup import erase, mix
import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image
from clipmill.config import Config
from clipmill.data.dataset import Dataset, cache_folder
from clipmill.data.layers import commit_layer, has_layer_shard, read_layer, write_layer_shard
from clipmill.data.shards.read import read_shard
from clipmill.data.transforms.augmentation import StoredAugmentationConfig, draw_augmentation, replay
from clipmill.config import digest_json
from clipmill.errors import ConfigError
from clipmill.images import decode_rgb
from clipmill.models.clip import clip_parent
from clipmill.stage_records import Report
from clipmill.lineage import Parent
from collections.abc import Callable, Sequence
from typing import Any
import torch
from torch import Tensor
from clipmill.models.clip import load_clip
from clipmill.models.encoders import Normalize


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainConfig(Config):
    """A CLIP pretraining run."""

    model: ClipConfig = ClipConfig()
    """The two towers."""
    init: str = ""
    """Address of the weights to start from; empty for random ones."""
    towers: TowerOptions = TowerOptions()
    """How the towers are run."""
    distillation: DistillationConfig | None = None
    """Learning from a teacher layer; null to learn from captions alone."""
    view: ViewConfig = ViewConfig()
    """Which captions of which samples."""
    crop: RandomResizedCropConfig = RandomResizedCropConfig()
    """Augmentation; with distillation the layer's own is replayed instead."""
    range_augment: RangeAugmentConfig | None = None
    """Learnt photometric augmentation on the device; null for none."""
    load: LoadConfig = LoadConfig()
    """Where samples are read and decoded."""
    evaluation: InTrainingConfig = InTrainingConfig(every_steps=0)
    """What is judged while it trains."""
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
                expected="null: teachers speak of the stored augmentation, not of a changed one",
                action="set range_augment=null, or distillation=null",
            )


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
    """Widths of the teachers' embeddings, which lie side by side in the layer."""
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
class LoadConfig(Config):
    """How samples are read and decoded."""

    num_workers: int = 8
    """Processes of a rank that decode; 0 decodes in the training process."""
    prefetch_batches: int = 2
    """Batches that each worker prepares ahead."""
    shuffle_shards: int = 32
    """Shards whose samples are shuffled together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InTrainingConfig(Config):
    """What is judged, and how often."""

    every_steps: int = 1000
    """Updates between two judgements; 0 for none."""
    num_pairs: int = 1000
    """Held-out pairs of the retrieval; 0 for none."""
    class_folder: str = ""
    """Local folder with a folder of pictures a class, named as the class; empty for none."""
    templates: tuple[str, ...] = ("a photo of a {}.",)
    """Sentences whose mean embedding stands for a class."""
    batch_size: int = 64
    """Samples embedded together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MaePretrainConfig(Config):
    """A masked-autoencoder run."""

    model: MaeConfig = MaeConfig()
    """Encoder and decoder."""
    fraction: float = 1.0
    """Part of the dataset's samples, above 0 and at most 1."""
    crop: RandomResizedCropConfig = RandomResizedCropConfig(scale=(0.2, 1.0))
    """Augmentation; pictures are mirrored besides (He et al. 2022)."""
    load: LoadConfig = LoadConfig()
    """Where samples are read and decoded."""
    train: TrainConfig
    """Length, rate, precision."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionerConfig(Config):
    """A CoCa training run."""

    model: CocaConfig = CocaConfig()
    """Towers and decoder."""
    contrastive_weight: float = 1.0
    """Weight of the contrastive loss (open_clip's default)."""
    captioning_weight: float = 2.0
    """Weight of the captioning loss (open_clip's default)."""
    crop: RandomResizedCropConfig = RandomResizedCropConfig()
    """Augmentation."""
    load: LoadConfig = LoadConfig()
    """How samples are read and decoded."""
    train: TrainConfig
    """Length, rate, precision."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SupervisedConfig(Config):
    """A supervised run."""

    vision: VisionConfig
    """The image tower: a timm model, whose classifier is trained with it."""
    augmentation: StoredAugmentationConfig = StoredAugmentationConfig()
    """Crop and RandAugment; pictures are mirrored besides."""
    mixup: float = 0.2
    """Alpha of mixup; 0 for none."""
    cutmix: float = 1.0
    """Alpha of CutMix; 0 for none."""
    random_erasing_prob: float = 0.25
    """Share of pictures that lose a rectangle."""
    label_smoothing: float = 0.1
    """Probability that is spread over all classes."""
    drop_path: float = 0.0
    """Highest rate of stochastic depth."""
    num_workers: int = 8
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
    """An ensemble, and what it looks at."""

    models: tuple[str, ...] = ()
    """Addresses of the teachers, CLIPs with both towers."""
    num_augmentations: int = 30
    """Augmentations stored a sample (DataCompDR-12M)."""
    augmentation: StoredAugmentationConfig = StoredAugmentationConfig()
    """What they are drawn from."""
    seed: int = 0
    """Seed of augmentations, with each sample's uid."""
    batch_size: int = 64
    """Pictures or texts embedded together."""
