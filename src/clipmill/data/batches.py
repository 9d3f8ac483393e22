"""One rank's part of any global batch, put together from the shards by its step.

Shapes: B batch (of this rank), H W height and width, T text length, E the teachers' widths
together.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from clipmill.data.order import EpochOrder
from clipmill.data.shard_pool import ShardPool
from clipmill.data.teacher_rows import Lesson, Teaching, draw_lesson
from clipmill.data.view import View
from clipmill.errors import ArtifactError, BadSampleError, ClipmillError

Transform = Callable[[bytes, np.random.Generator], Tensor]
Tokenize = Callable[[list[str]], Tensor]

# Labels that keep the random streams of a sample apart: the choice of a caption must not move
# the crop, or real and synthetic captions would be compared on different pixels.
_AUGMENTATION, _CAPTION, _REPLACEMENT = 0, 1, 2
# Where a replacement is looked for: first among shards that are open anyway, then anywhere.
_TRIES_IN_BLOCK, _TRIES_IN_EPOCH = 8, 56


@dataclass(slots=True)
class PairBatch:
    """This rank's part of a global batch."""

    images_B3HW: Tensor
    real_BT: Tensor | None
    """Tokens of the real captions, if the view has them."""
    synthetic_BT: Tensor | None
    """Tokens of the synthetic captions, if the view has them."""
    uids: tuple[str, ...]
    teacher_image_BE: Tensor | None = None
    """The teachers' embeddings (fp16) of the very augmentation that the batch holds, if asked."""
    teacher_real_BE: Tensor | None = None
    """Those of the real captions, if the batch has them."""
    teacher_synthetic_BE: Tensor | None = None
    """Those of the synthetic captions that were drawn, if the batch has them."""

    def pin_memory(self) -> "PairBatch":
        """Move the tensors to page-locked memory; the DataLoader calls this."""
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                setattr(self, field.name, value.pin_memory())
        return self


@dataclass(frozen=True, slots=True)
class Skipped:
    """A sample that couldn't be used; another one took its place in the batch."""

    shard: str
    row: int
    """Among the rows that the view selects."""
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class _Sample:
    image_3HW: Tensor
    real: str
    synthetic: str
    uid: str
    lesson: Lesson | None


@dataclass
class BatchDataset(torch.utils.data.Dataset[tuple[PairBatch, list[Skipped]] | ClipmillError]):
    """Maps a global step to this rank's part of its batch; every worker has a copy."""

    view: View
    shard_sizes: list[int]
    """Samples of each shard that the view selects."""
    part_size: int
    """Samples of a batch that this rank takes."""
    rank: int
    world_size: int
    seed: int
    shuffle_shards: int
    transform: Transform
    tokenize: Tokenize
    teaching: Teaching | None
    cache: Path
    cache_bytes: int

    def __post_init__(self) -> None:
        self._num_samples = sum(self.shard_sizes)
        self._orders: OrderedDict[int, EpochOrder] = OrderedDict()
        self._pool = ShardPool(
            self.view,
            teacher=self.teaching.layer if self.teaching else "",
            cache=self.cache,
            cache_bytes=self.cache_bytes,
            # A batch may straddle two blocks.
            capacity=2 * self.shuffle_shards,
        )
        self._block = (-1, -1)

    def __getitem__(self, step: int) -> tuple[PairBatch, list[Skipped]] | ClipmillError:
        """Return the batch, or the error: raised here it would lose its type on the way."""
        try:
            return self._batch(step)
        except ClipmillError as error:
            return error

    def close(self) -> None:
        """Close the shards that this process has open."""
        self._pool.close()

    def _batch(self, step: int) -> tuple[PairBatch, list[Skipped]]:
        start = (step * self.world_size + self.rank) * self.part_size
        skipped: list[Skipped] = []
        samples = [
            self._sample(position, skipped) for position in range(start, start + self.part_size)
        ]
        kind = self.view.config.captions
        batch = PairBatch(
            images_B3HW=_stack([sample.image_3HW for sample in samples]),
            real_BT=None if kind == "synthetic" else self.tokenize([s.real for s in samples]),
            synthetic_BT=self.tokenize([s.synthetic for s in samples])
            if kind in {"synthetic", "both"}
            else None,
            uids=tuple(sample.uid for sample in samples),
        )
        lessons = [sample.lesson for sample in samples if sample.lesson]
        if lessons:
            batch.teacher_image_BE = torch.stack([lesson.image_E for lesson in lessons])
            if batch.real_BT is not None:
                batch.teacher_real_BE = torch.stack([lesson.real_E for lesson in lessons])
            if batch.synthetic_BT is not None:
                drawn = [lesson.synthetic_E for lesson in lessons if lesson.synthetic_E is not None]
                batch.teacher_synthetic_BE = torch.stack(drawn)
        return batch, skipped

    def _sample(self, position: int, skipped: list[Skipped]) -> _Sample:
        """The sample at a position of the endless sequence of epochs, or the one in its place.

        Which one that is depends on the position and on what is bad, not on who reads.
        """
        for shard, row in self._places(position):
            try:
                return self._read(position, shard, row)
            except BadSampleError as bad:
                name = self.view.dataset.shards[shard].name
                skipped.append(Skipped(name, row, bad.reason, bad.detail))
        last = skipped[-1]
        raise ArtifactError(
            f"{1 + _TRIES_IN_BLOCK + _TRIES_IN_EPOCH} samples drawn from {self.view.dataset.uri} "
            f"are bad, the last in shard {last.shard}: {last.reason}: {last.detail}",
            expected="a dataset of which most samples are as they were written",
            action="run `clipmill data verify`, and write the shards that it names again",
        )

    def _places(self, position: int) -> Iterator[tuple[int, int]]:
        """The (shard, selected row) at a position, then where to look if that sample is bad."""
        epoch, place = divmod(position, self._num_samples)
        order = self._order(epoch)
        block = order.block_of(place)
        if self._pool.is_remote and self._block != (epoch, block):
            self._block = (epoch, block)
            self._prefetch(epoch, block + 1)
        yield order.locate(place)
        random = self._random(position, _REPLACEMENT)
        for _ in range(_TRIES_IN_BLOCK):
            yield order.locate(int(random.integers(*order.block_range(block))))
        for _ in range(_TRIES_IN_EPOCH):
            yield order.locate(int(random.integers(self._num_samples)))

    def _read(self, position: int, index: int, selected: int) -> _Sample:
        shard = self._pool[index]
        row = int(shard.view.rows[selected])
        synthetic, caption = "", None
        if shard.view.synthetic is not None:
            choices = shard.view.synthetic[row].as_py()
            caption = int(self._random(position, _CAPTION).integers(len(choices)))
            synthetic = choices[caption]
        generator = self._random(position, _AUGMENTATION)
        lesson = None
        if shard.teacher is not None:
            lesson = draw_lesson(shard.teacher, row, caption, generator)
        data = shard.reader.image(row)
        if self.teaching and lesson and lesson.augmentation_K is not None:
            image_3HW = self.teaching.replay(data, lesson.augmentation_K)
        else:
            image_3HW = self.transform(data, generator)
        chosen = shard.view.chosen[row] if shard.view.chosen else None
        real = shard.reader.caption(row) if chosen is None else chosen
        uid = shard.reader.uid(row)
        return _Sample(image_3HW, real, synthetic, uid, lesson)

    def _random(self, position: int, label: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, position, label))

    def _order(self, epoch: int) -> EpochOrder:
        if epoch not in self._orders:
            self._orders[epoch] = EpochOrder(
                self.shard_sizes, seed=self.seed, epoch=epoch, shuffle_shards=self.shuffle_shards
            )
            if len(self._orders) > 2:
                self._orders.popitem(last=False)
        return self._orders[epoch]

    def _prefetch(self, epoch: int, block: int) -> None:
        """Download a block's shards in the background, shared among this rank's workers."""
        if block == self._order(epoch).num_blocks:
            epoch, block = epoch + 1, 0
        worker = torch.utils.data.get_worker_info()
        own, step = (worker.id, worker.num_workers) if worker else (0, 1)
        self._pool.prefetch(self._order(epoch).block_shards(block)[own::step])


def _stack(images: list[Tensor]) -> Tensor:
    """A batch that lies in memory as its images do: channels last, where they have it so."""
    images_BHW3 = torch.stack([image_3HW.permute(1, 2, 0) for image_3HW in images])
    return images_BHW3.permute(0, 3, 1, 2)
