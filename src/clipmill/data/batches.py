"""One rank's part of any global batch, put together from the shards by its step.

Shapes: B batch (of this rank), H W height and width, T text length.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clipmill.data.cache import is_remote, trim
from clipmill.data.images import decode_rgb
from clipmill.data.order import EpochOrder
from clipmill.data.reader import ShardReader, read_shard
from clipmill.data.view import ShardView, View
from clipmill.errors import ClipmillError

Transform = Callable[[Image.Image, np.random.Generator], Tensor]
Tokenize = Callable[[list[str]], Tensor]

# Labels that keep the random streams of a sample apart: the choice of a caption must not move
# the crop, or real and synthetic captions would be compared on different pixels.
_AUGMENTATION, _CAPTION = 0, 1


@dataclass(slots=True)
class PairBatch:
    """This rank's part of a global batch."""

    images_B3HW: Tensor
    real_BT: Tensor | None
    """Tokens of the real captions, or of those that a select layer chose, if the view has them."""
    synthetic_BT: Tensor | None
    """Tokens of the synthetic captions, if the view has them."""
    uids: tuple[str, ...]

    def pin_memory(self) -> "PairBatch":
        """Move the tensors to page-locked memory; the DataLoader calls this."""
        self.images_B3HW = self.images_B3HW.pin_memory()
        self.real_BT = None if self.real_BT is None else self.real_BT.pin_memory()
        self.synthetic_BT = None if self.synthetic_BT is None else self.synthetic_BT.pin_memory()
        return self


@dataclass(frozen=True, slots=True)
class _OpenShard:
    """What a worker keeps of a shard while it reads there."""

    reader: ShardReader
    view: ShardView
    """The rows that the view selects, and their captions."""


@dataclass
class BatchDataset(torch.utils.data.Dataset[PairBatch | ClipmillError]):
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
    cache: Path
    cache_bytes: int

    def __post_init__(self) -> None:
        self._num_samples = sum(self.shard_sizes)
        self._is_remote = is_remote(self.view.dataset.uri)
        self._orders: OrderedDict[int, EpochOrder] = OrderedDict()
        self._shards: OrderedDict[int, _OpenShard] = OrderedDict()
        self._block = (-1, -1)

    def __getitem__(self, step: int) -> PairBatch | ClipmillError:
        """Return the batch, or the error: raised here it would lose its type on the way."""
        try:
            return self._batch(step)
        except ClipmillError as error:
            return error

    def close(self) -> None:
        """Close the shards that this process has open."""
        while self._shards:
            self._shards.popitem()[1].reader.close()

    def _batch(self, step: int) -> PairBatch:
        start = (step * self.world_size + self.rank) * self.part_size
        images, real, synthetic, uids = [], [], [], []
        for position in range(start, start + self.part_size):
            shard, row = self._find(position)
            image = decode_rgb(shard.reader.image(row))
            images.append(self.transform(image, self._random(position, _AUGMENTATION)))
            chosen = shard.view.chosen[row] if shard.view.chosen else None
            real.append(shard.reader.caption(row) if chosen is None else chosen)
            uids.append(shard.reader.uid(row))
            if shard.view.synthetic is not None:
                choices = shard.view.synthetic[row].as_py()
                drawn = self._random(position, _CAPTION).integers(len(choices))
                synthetic.append(choices[drawn])
        kind = self.view.config.captions
        return PairBatch(
            images_B3HW=torch.stack(images),
            real_BT=None if kind == "synthetic" else self.tokenize(real),
            synthetic_BT=self.tokenize(synthetic) if kind in {"synthetic", "both"} else None,
            uids=tuple(uids),
        )

    def _random(self, position: int, label: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, position, label))

    def _find(self, position: int) -> tuple[_OpenShard, int]:
        """The shard and row at a position of the endless sequence of epochs."""
        epoch, place = divmod(position, self._num_samples)
        order = self._order(epoch)
        block = order.block_of(place)
        if self._is_remote and self._block != (epoch, block):
            self._block = (epoch, block)
            self._prefetch(epoch, block + 1)
        index, selected = order.locate(place)
        shard = self._shard(index)
        return shard, int(shard.view.rows[selected])

    def _order(self, epoch: int) -> EpochOrder:
        if epoch not in self._orders:
            self._orders[epoch] = EpochOrder(
                self.shard_sizes, seed=self.seed, epoch=epoch, shuffle_shards=self.shuffle_shards
            )
            if len(self._orders) > 2:
                self._orders.popitem(last=False)
        return self._orders[epoch]

    def _shard(self, index: int) -> _OpenShard:
        if index not in self._shards:
            self._shards[index] = self._open(index)
            if self._is_remote:
                trim(self.cache, self.cache_bytes)
            if len(self._shards) > 2 * self.shuffle_shards:
                self._shards.popitem(last=False)[1].reader.close()
        self._shards.move_to_end(index)
        return self._shards[index]

    def _open(self, index: int) -> _OpenShard:
        reader = read_shard(self.view.dataset, index, self.cache)
        return _OpenShard(reader, self.view.open_shard(index, reader.uids, self.cache))

    def _prefetch(self, epoch: int, block: int) -> None:
        """Download a block's shards in the background, shared among this rank's workers."""
        if block == self._order(epoch).num_blocks:
            epoch, block = epoch + 1, 0
        worker = torch.utils.data.get_worker_info()
        own, step = (worker.id, worker.num_workers) if worker else (0, 1)
        shards = self._order(epoch).block_shards(block)[own::step]
        threading.Thread(target=self._download, args=(shards,), daemon=True).start()

    def _download(self, shards: list[int]) -> None:
        for index in shards:
            try:
                self._open(index).reader.close()
            except ClipmillError:
                # The reader of the block meets the same trouble, and reports it.
                return
