"""The dataloader of image-text pairs for a training run."""

from collections.abc import Iterator

from clipmill.data.loading.dataloader import LoaderConfig, PairBatch, PairDataLoader, Tokenize
from clipmill.data.loading.teacher_targets import TeacherLayer
from clipmill.data.loading.view import View
from clipmill.data.transforms.augmentation import CropTransform
from clipmill.engine.config import TrainConfig
from clipmill.engine.distributed import DistributedContext
from clipmill.pretrain.config import DataLoaderConfig


def build_pair_dataloader(
    view: View,
    config: DataLoaderConfig,
    train: TrainConfig,
    *,
    transform: CropTransform,
    tokenizer: Tokenize,
    teaching: TeacherLayer | None = None,
    start_step: int,
    dist: DistributedContext,
) -> Iterator[PairBatch]:
    """Build the iterator over this rank's batches from ``start_step`` on.

    With ``teaching`` the batches have the teachers' embeddings.
    """
    loader_config = LoaderConfig(
        batch_size=train.batch_size,
        seed=train.seed,
        num_workers=config.num_workers,
        prefetch_batches=config.prefetch_batches,
        shuffle_shards=config.shuffle_shards,
    )
    return iter(
        PairDataLoader(
            view,
            loader_config,
            transform=transform,
            tokenize=tokenizer,
            teaching=teaching,
            rank=dist.rank,
            world_size=dist.world_size,
            cursor=start_step,
        )
    )
