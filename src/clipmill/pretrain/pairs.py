"""Batches of image-text pairs for a training run."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from clipmill.config import Config
from clipmill.data.augmentation import CropTransform
from clipmill.data.view import View
from clipmill.engine.config import TrainConfig

if TYPE_CHECKING:
    from clipmill.data.batches import PairBatch, Tokenize
    from clipmill.data.teacher_rows import Teaching
    from clipmill.engine.distributed import Ranks


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadConfig(Config):
    """How samples are read and decoded."""

    num_workers: int = 8
    """Processes of a rank that decode; 0 decodes in the training process."""
    prefetch_batches: int = 2
    """Batches that each worker prepares ahead."""
    shuffle_shards: int = 32
    """Shards whose samples are shuffled together."""


def pair_batches(
    view: View,
    load: LoadConfig,
    train: TrainConfig,
    *,
    crop: CropTransform,
    tokenizer: "Tokenize",
    teaching: "Teaching | None" = None,
    here: "Ranks",
    cursor: int,
) -> Iterator["PairBatch"]:
    """This rank's batches from update ``cursor`` on, with teachers' embeddings if asked."""
    from clipmill.data.loader import LoaderConfig, PairLoader

    config = LoaderConfig(
        batch_size=train.batch_size,
        seed=train.seed,
        num_workers=load.num_workers,
        prefetch_batches=load.prefetch_batches,
        shuffle_shards=load.shuffle_shards,
    )
    return iter(
        PairLoader(
            view,
            config,
            transform=crop,
            tokenize=tokenizer,
            teaching=teaching,
            rank=here.rank,
            world_size=here.world_size,
            cursor=cursor,
        )
    )
