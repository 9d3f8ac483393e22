"""A torch dataset whose items are batches of image-caption pairs, for training loops of one's own.

Shapes: B batch (of this rank), S image side, T text length.
"""

import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from clipmill.data.dataset import Dataset, cache_folder
from clipmill.data.loading.dataloader import (
    DEFAULT_CACHE_BYTES,
    BatchDataset,
    PairBatch,
    Tokenize,
)
from clipmill.data.loading.mixture import Mixture
from clipmill.data.loading.sampler import validate_world_size
from clipmill.data.loading.view import View, ViewConfig
from clipmill.data.transforms.augmentation import CropTransform, RandomResizedCropConfig
from clipmill.errors import ClipmillError
from clipmill.models.config import TextConfig
from clipmill.models.tokenizer import Tokenizer


class PairDataset(torch.utils.data.Dataset[PairBatch]):
    """A ``torch`` dataset of batches: item ``k`` is the batch of global step ``k``.

    A batch has ``images_B3HW`` (B, 3, S, S) uint8, randomly cropped, ``real_BT`` and
    ``synthetic_BT`` token ids (B, T) or None, as the view's captions are, and ``uids``. It follows
    from dataset, view, seed and step alone. ``len`` is the number of batches in an epoch; later
    steps continue with the next epoch. A bad sample is replaced by another one.

    Worker processes: ``torch.utils.data.DataLoader(pairs, batch_size=None, num_workers=8)``.

    Example:
        >>> uri = clipmill.write_dataset(clipmill.ShardConfig(), "photos", "out")
        >>> pairs = clipmill.PairDataset(uri, clipmill.ViewConfig(), image_size=32, batch_size=8)
        >>> batch = pairs[0]
        >>> batch.images_B3HW.shape, batch.real_BT.shape[0], len(batch.uids)
        (torch.Size([8, 3, 32, 32]), 8, 8)
    """

    def __init__(
        self,
        dataset: Dataset | str,
        view: ViewConfig = ViewConfig(),  # noqa: B008  # frozen
        *,
        image_size: int = 224,
        batch_size: int = 64,
        seed: int = 0,
        random_resized_crop: RandomResizedCropConfig = RandomResizedCropConfig(),  # noqa: B008
        tokenize: Tokenize | None = None,
        rank: int = 0,
        world_size: int = 1,
        shuffle_shards: int = 32,
        cache: Path | None = None,
    ) -> None:
        """Open a dataset, given as such or by its URI.

        Args:
            dataset: The dataset.
            view: Captions and samples.
            image_size: Side S, pixels.
            batch_size: Samples per batch, over all ranks.
            seed: Seed of order, captions and crops.
            random_resized_crop: The augmentation.
            tokenize: Turns B texts into ids (B, T); CLIP's own tokenizer by default.
            rank: This process's rank of ``world_size``.
            world_size: Number of processes that share each batch.
            shuffle_shards: Shards whose samples are shuffled together.
            cache: Folder of copies of remote shards.

        Raises:
            ConfigError: the batch can't be divided among the ranks, the view is empty, or one of
                its layers doesn't exist.
            ArtifactError: there is no dataset.
        """
        validate_world_size(batch_size, world_size)
        opened = Dataset.open(dataset) if isinstance(dataset, str) else dataset
        chosen = View(opened, view)
        self._batch_size = batch_size
        self._batches = BatchDataset(
            mixture=Mixture.of_view(chosen),
            shard_sizes=[chosen.shard_sizes(cache)],
            part_size=batch_size // world_size,
            rank=rank,
            world_size=world_size,
            seed=seed,
            shuffle_shards=shuffle_shards,
            transform=CropTransform(image_size, random_resized_crop),
            tokenize=tokenize or Tokenizer.from_config(TextConfig()),
            teachers=[None],
            cache=cache or cache_folder(),
            cache_bytes=DEFAULT_CACHE_BYTES,
        )
        weakref.finalize(self, self._batches.close)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for a worker process, which opens shards of its own."""
        return {**self.__dict__, "_batches": replace(self._batches)}

    def __len__(self) -> int:
        """Return the number of batches in an epoch, at least 1."""
        return max(self._batches.num_samples // self._batch_size, 1)

    def __getitem__(self, step: int) -> PairBatch:
        """Return this rank's part of the batch of a global step, from 0 on without end."""
        batch = self._batches[step]
        if isinstance(batch, ClipmillError):
            raise batch
        return batch[0]

    def __iter__(self) -> Iterator[PairBatch]:
        """Yield the batches of the first epoch."""
        return (self[step] for step in range(len(self)))
