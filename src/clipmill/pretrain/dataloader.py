"""The dataloader of image-text pairs for a training run."""

from collections.abc import Iterator

from clipmill.data.loading.config import DataLoaderConfig
from clipmill.data.loading.dataloader import PairBatch, PairDataLoader, Tokenize
from clipmill.data.loading.teacher_targets import TeacherLayer
from clipmill.data.loading.view import View
from clipmill.data.transforms.augmentation import CropTransform
from clipmill.engine.config import TrainConfig
from clipmill.engine.distributed import DistributedContext


def build_pair_dataloader(
    view: View,
    config: DataLoaderConfig,
    train: TrainConfig,
    *,
    transform: CropTransform,
    tokenizer: Tokenize,
    teacher: TeacherLayer | None = None,
    start_step: int,
    dist: DistributedContext,
) -> Iterator[PairBatch]:
    """Build the iterator over this rank's batches from ``start_step`` on.

    With ``teacher`` the batches have the teachers' embeddings.
    """
    return iter(
        PairDataLoader(
            view,
            config,
            batch_size=train.batch_size,
            seed=train.seed,
            transform=transform,
            tokenize=tokenizer,
            teacher=teacher,
            rank=dist.rank,
            world_size=dist.world_size,
            start_step=start_step,
        )
    )
