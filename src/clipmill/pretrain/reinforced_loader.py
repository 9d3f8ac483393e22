"""Endless batches of reinforced data, in the order in which a view's pairs come.

The global batch ``k`` is positions ``k * B`` to ``(k + 1) * B`` of the endless sequence of epochs,
whoever reads it. A position draws one of its sample's stored augmentations, and one of its
synthetic captions, each with the teachers' embedding of it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipmill.data.dataset import Dataset, cache_folder
from clipmill.data.images import decode_rgb
from clipmill.data.layers import read_layer
from clipmill.data.order import EpochOrder
from clipmill.data.reader import ShardReader, read_shard
from clipmill.data.samples import StepsFrom
from clipmill.data.stored_augmentation import replay
from clipmill.data.view import View
from clipmill.engine.config import TrainConfig
from clipmill.engine.distributed import Ranks
from clipmill.pretrain.distillation import DistillationConfig
from clipmill.pretrain.pairs import LoadConfig
from clipmill.pretrain.reinforced import ReinforcedBatch

if TYPE_CHECKING:
    from clipmill.data.batches import Tokenize

_AUGMENTATION, _CAPTION = 0, 1


def reinforced_batches(
    view: View,
    distillation: DistillationConfig,
    load: LoadConfig,
    train: TrainConfig,
    *,
    image_size: int,
    tokenizer: "Tokenize",
    here: Ranks,
    cursor: int,
) -> Iterator[ReinforcedBatch]:
    """This rank's batches from update ``cursor`` on."""
    batches = _Batches(
        view=view,
        layer=distillation.layer,
        seed=train.seed,
        batch_size=train.batch_size,
        shuffle_shards=load.shuffle_shards,
        image_size=image_size,
        tokenize=tokenizer,
        rank=here.rank,
        world_size=here.world_size,
    )
    loader: torch.utils.data.DataLoader[Any] = torch.utils.data.DataLoader(
        batches,
        batch_size=None,
        sampler=StepsFrom(cursor),
        num_workers=load.num_workers,
        prefetch_factor=load.prefetch_batches if load.num_workers else None,
        pin_memory=torch.cuda.is_available(),
        # Without one of its own, a DataLoader draws from the training's random stream.
        generator=torch.Generator(),
    )
    try:
        yield from loader
    finally:
        batches.close()


@dataclass(frozen=True, slots=True)
class _Shard:
    reader: ShardReader
    rows: NDArray[np.int64]
    teacher: pa.Table
    captions: pa.ChunkedArray | None


@dataclass
class _Batches(torch.utils.data.Dataset[ReinforcedBatch]):
    view: View
    layer: str
    seed: int
    batch_size: int
    shuffle_shards: int
    image_size: int
    tokenize: "Tokenize"
    rank: int
    world_size: int
    _shards: dict[int, _Shard] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._sizes = self.view.shard_sizes()

    def __getitem__(self, step: int) -> ReinforcedBatch:
        part = self.batch_size // self.world_size
        first = (step * self.world_size + self.rank) * part
        samples = [self._sample(position) for position in range(first, first + part)]
        kind = self.view.config.captions
        has_real, has_synthetic = kind != "synthetic", kind != "real"
        column = {name: [s[name] for s in samples] for name in samples[0]}
        return ReinforcedBatch(
            images_B3HW=torch.stack(column["image"]),
            real_BT=self.tokenize(column["real"]) if has_real else None,
            synthetic_BT=self.tokenize(column["synthetic"]) if has_synthetic else None,
            uids=tuple(column["uid"]),
            teacher_image_BE=torch.stack(column["teacher_image"]),
            teacher_real_BE=torch.stack(column["teacher_real"]) if has_real else None,
            teacher_synthetic_BE=(
                torch.stack(column["teacher_synthetic"]) if has_synthetic else None
            ),
        )

    def close(self) -> None:
        """Close the shards that this process has open."""
        while self._shards:
            self._shards.popitem()[1].reader.close()

    def _sample(self, position: int) -> dict[str, Any]:
        epoch, place = divmod(position, sum(self._sizes))
        index, selected = _order(tuple(self._sizes), self.seed, epoch, self.shuffle_shards).locate(
            place
        )
        shard = self._shard(index)
        row = int(shard.rows[selected])
        numbers = shard.teacher["augmentation"][row].as_py()
        drawn = int(self._random(position, _AUGMENTATION).integers(len(numbers)))
        picture = replay(decode_rgb(shard.reader.image(row)), self.image_size, numbers[drawn])
        texts = shard.teacher["text"][row].values
        found: dict[str, Any] = {
            "image": torch.from_numpy(np.array(picture)).permute(2, 0, 1),
            "uid": shard.reader.uid(row),
            "real": shard.reader.caption(row),
            "teacher_image": _embedding(shard.teacher["image"][row].values[drawn]),
            "teacher_real": _embedding(texts[0]),
        }
        if shard.captions is not None:
            choices = shard.captions[row].as_py()
            chosen = int(self._random(position, _CAPTION).integers(len(choices)))
            found["synthetic"] = choices[chosen]
            found["teacher_synthetic"] = _embedding(texts[1 + chosen])
        else:
            found |= {"synthetic": "", "teacher_synthetic": None}
        return found

    def _random(self, position: int, label: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, position, label))

    def _shard(self, index: int) -> _Shard:
        if index not in self._shards:
            self._shards[index] = _open(self.view.dataset, self.view, self.layer, index)
            # A batch may straddle two blocks.
            if len(self._shards) > 2 * self.shuffle_shards:
                self._shards.pop(next(iter(self._shards))).reader.close()
        return self._shards[index]


def _open(dataset: Dataset, view: View, layer: str, index: int) -> _Shard:
    cache = cache_folder()
    reader = read_shard(dataset, index, cache)
    captions = None
    if view.config.layer:
        captions = read_layer(dataset, view.config.layer, index, cache)["captions"]
    teacher = read_layer(dataset, layer, index, cache)
    return _Shard(reader, view.select(reader.uids), teacher, captions)


@lru_cache(2)
def _order(sizes: tuple[int, ...], seed: int, epoch: int, shuffle_shards: int) -> EpochOrder:
    return EpochOrder(list(sizes), seed=seed, epoch=epoch, shuffle_shards=shuffle_shards)


def _embedding(value: pa.Scalar) -> Tensor:
    return torch.from_numpy(value.values.to_numpy(zero_copy_only=False).copy())
