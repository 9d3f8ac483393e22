"""Endless batches of image-text pairs: the same ones for any number of ranks and workers.

The epochs follow one another as one endless sequence of samples, and the global batch ``k`` is
its positions ``k * B`` to ``(k + 1) * B``, whoever reads it. So a run resumes at any step with
nothing but the step's number. A sample that turns out to be bad is replaced by another, which its
position alone decides.
"""

import logging
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from clipmill.config import Config
from clipmill.data.dataset import cache_folder
from clipmill.data.layers import mmap_layer
from clipmill.data.loading.sampler import EpochShuffle, StepSampler, validate_world_size
from clipmill.data.loading.teacher_targets import (
    TeacherLayer,
    TeacherTargets,
    sample_teacher_targets,
)
from clipmill.data.loading.view import ShardView, View
from clipmill.data.shards.cache import is_remote, trim
from clipmill.data.shards.read import ShardReader, read_shard
from clipmill.errors import ArtifactError, BadSampleError, ClipmillError, ConfigError
from clipmill.telemetry import data_metrics

_log = logging.getLogger(__name__)

Transform = Callable[[bytes, np.random.Generator], Tensor]

Tokenize = Callable[[list[str]], Tensor]

# Labels that keep the random streams of a sample apart: the choice of a caption must not move
# the crop, or real and synthetic captions would be compared on different pixels.
_AUGMENTATION, _CAPTION, _REPLACEMENT = 0, 1, 2

# Where a replacement is looked for: first among shards that are open anyway, then anywhere.
_TRIES_IN_BLOCK, _TRIES_IN_EPOCH = 8, 56


@dataclass(frozen=True, kw_only=True, slots=True)
class LoaderConfig(Config):
    """How a view is turned into batches."""

    batch_size: int
    """Samples in a global batch, all ranks together."""
    seed: int = 0
    """Seed of the order, the augmentations and the choice among captions."""
    num_workers: int = 0
    """Processes of each rank that decode; 0 decodes in the training process."""
    shuffle_shards: int = 32
    """Shards whose samples are shuffled together, and so lie on the local disk together."""
    prefetch_batches: int = 2
    """Batches that each worker prepares ahead."""
    cache_bytes: int = 100_000_000_000
    """Most bytes of local disk that copies of remote shards and layers take."""

    def __post_init__(self) -> None:
        """Refuse values out of range (ConfigError)."""
        lows = {
            "batch_size": 1,
            "seed": 0,
            "num_workers": 0,
            "shuffle_shards": 1,
            "prefetch_batches": 1,
            "cache_bytes": 1,
        }
        for name, low in lows.items():
            if getattr(self, name) < low:
                raise ConfigError(
                    f"{name} was {getattr(self, name)}",
                    expected=f"at least {low}",
                    action=f"give {name} such a value",
                )


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


class PairDataLoader:
    """Iterates forever over this rank's batches, from global step ``cursor`` on."""

    def __init__(
        self,
        view: View,
        config: LoaderConfig,
        *,
        transform: Transform,
        tokenize: Tokenize,
        teaching: TeacherLayer | None = None,
        rank: int = 0,
        world_size: int = 1,
        cursor: int = 0,
        cache: Path | None = None,
    ) -> None:
        """Prepare to read; ``cursor`` is the number of global batches consumed already.

        ``transform`` makes a 3HW tensor of an image file with a random generator of its own,
        ``tokenize`` a BT tensor of B texts; both run in the workers. With ``teaching``, batches
        hold stored augmentations and what teachers made of them. ``cache`` holds local copies of
        remote shards (default: ``cache_folder()``). Raises ConfigError if the ranks can't share
        the batch evenly, the view is empty, the teacher layer isn't there, or the shards that are
        needed at once don't fit in ``cache_bytes``.
        """
        validate_world_size(config.batch_size, world_size)
        _check_cache(view, config)
        if teaching and teaching.layer not in view.dataset.layers:
            names = sorted(name for name in view.dataset.layers if name.startswith("teacher/"))
            raise ConfigError(
                f"the teacher layer was {teaching.layer!r}",
                expected=f"one of {', '.join(names)}" if names else "a layer, but there is none",
                action="name such a layer, or compute one first",
            )
        if teaching and view.config.captions == "selected":
            raise ConfigError(
                f"captions was 'selected', with the teacher layer {teaching.layer!r}",
                expected="real, synthetic or both: teachers don't embed selected captions",
                action="choose other captions, or train without a teacher",
            )
        self.config = config
        self.cursor = cursor
        self.skipped: Counter[str] = Counter()
        """Bad samples that this rank met and replaced, by reason."""
        self._told: set[tuple[str, str]] = set()
        self._batches = BatchDataset(
            view=view,
            shard_sizes=view.shard_sizes(cache),
            part_size=config.batch_size // world_size,
            rank=rank,
            world_size=world_size,
            seed=config.seed,
            shuffle_shards=config.shuffle_shards,
            transform=transform,
            tokenize=tokenize,
            teaching=teaching,
            cache=cache or cache_folder(),
            cache_bytes=config.cache_bytes,
        )
        if not self.num_samples:
            raise ConfigError(
                f"the view of {view.dataset.uri} has no sample",
                expected="at least one",
                action=f"raise subset_fraction, which was {view.config.subset_fraction}",
            )

    @property
    def num_samples(self) -> int:
        """Samples in an epoch."""
        return sum(self._batches.shard_sizes)

    def __iter__(self) -> Iterator[PairBatch]:
        """Yield the batches of steps ``cursor``, ``cursor + 1`` and so on, without end."""
        workers = self.config.num_workers
        # What a tokenizer reads at its first call, the workers then inherit.
        self._batches.tokenize([""])
        loader = torch.utils.data.DataLoader(
            self._batches,
            batch_size=None,
            sampler=StepSampler(self.cursor),
            num_workers=workers,
            prefetch_factor=self.config.prefetch_batches if workers else None,
            pin_memory=torch.cuda.is_available(),
            # Without one of its own, a DataLoader draws from the training's random stream.
            generator=torch.Generator(),
        )
        try:
            for batch in loader:
                if isinstance(batch, ClipmillError):
                    raise batch
                pairs, skipped = batch
                self._count(skipped)
                yield pairs
        finally:
            self._batches.close()

    def _count(self, skipped: list[Skipped]) -> None:
        for bad in skipped:
            self.skipped[bad.reason] += 1
            data_metrics().skipped.labels(bad.reason).inc()
            # One line for each shard and reason: a damaged shard would say thousands.
            if (bad.shard, bad.reason) not in self._told:
                self._told.add((bad.shard, bad.reason))
                _log.warning(
                    "shard %s, sample %d: %s: %s; another sample takes its place",
                    bad.shard,
                    bad.row,
                    bad.reason,
                    bad.detail,
                )


def _check_cache(view: View, config: LoaderConfig) -> None:
    """Refuse a cache that would drop shards before they are read, again and again."""
    sizes = sorted((shard.num_bytes for shard in view.dataset.shards), reverse=True)
    # The block that is read, and the next one, which is downloaded meanwhile.
    needed = sum(sizes[: 2 * config.shuffle_shards])
    if is_remote(view.dataset.uri) and needed > config.cache_bytes:
        raise ConfigError(
            f"cache_bytes was {config.cache_bytes}",
            expected=f"at least {needed}: two blocks of {config.shuffle_shards} shards",
            action="raise cache_bytes, or lower shuffle_shards",
        )


@dataclass(frozen=True, slots=True)
class _Sample:
    image_3HW: Tensor
    real: str
    synthetic: str
    uid: str
    lesson: TeacherTargets | None


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
    teaching: TeacherLayer | None
    cache: Path
    cache_bytes: int

    def __post_init__(self) -> None:
        self._num_samples = sum(self.shard_sizes)
        self._orders: OrderedDict[int, EpochShuffle] = OrderedDict()
        self._pool = ShardCache(
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
            lesson = sample_teacher_targets(shard.teacher, row, caption, generator)
        data = shard.reader.image(row)
        if self.teaching and lesson and lesson.augmentation_K is not None:
            image_3HW = self.teaching.replay(data, lesson.augmentation_K)
        else:
            image_3HW = self.transform(data, generator)
        selected = shard.view.selected[row] if shard.view.selected else None
        real = shard.reader.caption(row) if selected is None else selected
        uid = shard.reader.uid(row)
        return _Sample(image_3HW, real, synthetic, uid, lesson)

    def _random(self, position: int, label: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, position, label))

    def _order(self, epoch: int) -> EpochShuffle:
        if epoch not in self._orders:
            self._orders[epoch] = EpochShuffle(
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


@dataclass(frozen=True, slots=True)
class OpenShard:
    """What is kept of a shard while samples are read from it."""

    reader: ShardReader
    view: ShardView
    """The rows that the view selects, and their captions."""
    teacher: pa.Table | None
    """What teachers made of every row (see ``teacher_rows``)."""


class ShardCache:
    """Up to ``capacity`` open shards of a view; the one used longest ago gives way."""

    def __init__(
        self, view: View, *, teacher: str, cache: Path, cache_bytes: int, capacity: int
    ) -> None:
        """``teacher`` is the name of a teacher layer, or empty."""
        self.is_remote = is_remote(view.dataset.uri)
        self._view = view
        self._teacher = teacher
        self._cache = cache
        self._cache_bytes = cache_bytes
        self._capacity = capacity
        self._open: OrderedDict[int, OpenShard] = OrderedDict()
        self._damaged: dict[int, str] = {}

    def __getitem__(self, index: int) -> OpenShard:
        """Shard ``index``; BadSampleError (``damaged-shard``) if its bytes aren't the listed ones.

        NotFoundError and StorageError are left as they are: they speak of the store, and what
        a working store holds would be found by a later run.
        """
        if index in self._damaged:
            raise BadSampleError("damaged-shard", self._damaged[index])
        if index not in self._open:
            try:
                self._open[index] = self._read(index)
            except ArtifactError as error:
                self._damaged[index] = str(error)
                raise BadSampleError("damaged-shard", self._damaged[index]) from error
            if self.is_remote:
                trim(self._cache, self._cache_bytes)
            if len(self._open) > self._capacity:
                self._open.popitem(last=False)[1].reader.close()
        self._open.move_to_end(index)
        return self._open[index]

    def prefetch(self, shards: Iterable[int]) -> None:
        """Bring shards to the local disk in the background."""
        threading.Thread(target=self._download, args=(list(shards),), daemon=True).start()

    def close(self) -> None:
        """Close all shards."""
        while self._open:
            self._open.popitem()[1].reader.close()

    def _read(self, index: int) -> OpenShard:
        dataset = self._view.dataset
        teacher = mmap_layer(dataset, self._teacher, index, self._cache) if self._teacher else None
        reader = read_shard(dataset, index, self._cache)
        return OpenShard(reader, self._view.open_shard(index, reader.uids, self._cache), teacher)

    def _download(self, shards: list[int]) -> None:
        for index in shards:
            try:
                self._read(index).reader.close()
            except ClipmillError:  # whoever reads the shard meets it, and reports
                continue
