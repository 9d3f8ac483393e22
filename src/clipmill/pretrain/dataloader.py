"""Batches of image-text pairs for a training run."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING
from clipmill.config import Config
from clipmill.data.transforms.augmentation import CropTransform
from clipmill.data.loading.view import View
from clipmill.engine.config import TrainConfig
from clipmill.pretrain.config import LoadConfig

if TYPE_CHECKING:
    from clipmill.data.loading.dataloader import PairBatch, Tokenize
    from clipmill.data.loading.teacher_targets import Teaching
    from clipmill.engine.distributed import Ranks


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
    from clipmill.data.loading.dataloader import LoaderConfig, PairLoader

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
