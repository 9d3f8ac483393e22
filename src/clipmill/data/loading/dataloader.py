"""Distillation targets: the embeddings of a sample by an ensemble of teachers.

A layer ``teacher/<ensemble>`` has in each row ``image``, an embedding for each stored
augmentation; ``text``, one for the real caption and then one for each synthetic caption; and
``augmentation``, the numbers of each stored augmentation (lists of float32), unless the teachers
saw the plain image; or ``torchvision_augmentation``, if torchvision drew them. An embedding holds
those of all teachers side by side, as a fixed-size list of halffloat.

Shapes: E the teachers' widths together, K numbers of an augmentation.
"""

import logging
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipmill.data.cache import evict_lru, is_remote
from clipmill.data.dataset import cache_folder
from clipmill.data.layers import mmap_layer
from clipmill.data.loading.config import DataLoaderConfig
from clipmill.data.loading.mixture import BLOCK, Mixture, MixtureOrder, PairSource
from clipmill.data.loading.sampler import EpochShuffle, StepSampler, validate_world_size
from clipmill.data.loading.view import ShardView, View
from clipmill.data.shards.read import ShardReader, read_shard
from clipmill.data.transforms.torchvision_replay import TORCHVISION_AUGMENTATION
from clipmill.errors import (
    ArtifactError,
    BadSampleError,
    BadSampleReason,
    ClipmillError,
    ConfigError,
)
from clipmill.telemetry import data_metrics

Replay = Callable[[bytes, NDArray[np.float32]], Tensor]


@dataclass(frozen=True, slots=True)
class TeacherLayer:
    """A teacher layer, and the transform that replays its stored augmentations."""

    layer: str
    """Its name, such as ``teacher/ensemble-1a2b3c4d``."""
    replay: Replay
    """Turns an image file into a 3HW tensor, by the parameters of a stored augmentation."""


@dataclass(frozen=True, slots=True)
class TeacherTargets:
    """The teachers' embeddings of one augmentation of a sample and of its captions."""

    image_E: Tensor
    real_E: Tensor
    synthetic_E: Tensor | None
    """Of the synthetic caption that was index, where one was."""
    augmentation_K: NDArray[np.float32] | None
    """Parameters of the image's augmentation; None without one."""


def sample_teacher_targets(
    teacher: pa.Table, row: int, caption: int | None, generator: np.random.Generator
) -> TeacherTargets:
    """Draw one of a row's augmentations; return its embedding and those of the captions.

    ``caption`` is the index of the synthetic caption in the batch, None for none. Raises
    BadSampleError (``missing_embedding``) if the layer has no embedding.
    """
    images, texts = (teacher[name][row].values for name in ("image", "text"))
    num_texts = 1 if caption is None else caption + 2
    if images is None or texts is None or not len(images) or len(texts) < num_texts:
        raise BadSampleError(
            BadSampleReason.MISSING_EMBEDDING, f"the teacher layer lacks a part of row {row}"
        )
    index = int(generator.integers(len(images)))
    numbers = None
    column = augmentation_column(teacher.column_names)
    if column:
        numbers = _numbers(teacher[column][row].values[index], np.float32)
    return TeacherTargets(
        _embedding(images[index]),
        _embedding(texts[0]),
        None if caption is None else _embedding(texts[caption + 1]),
        numbers,
    )


def augmentation_column(names: Iterable[str]) -> str:
    """Return the column of stored augmentations among these; empty for none."""
    return next((name for name in names if name in {"augmentation", TORCHVISION_AUGMENTATION}), "")


def _embedding(vector: pa.Scalar) -> Tensor:
    return torch.from_numpy(_numbers(vector, np.float16))


def _numbers(vector: pa.Scalar, kind: type[Any]) -> NDArray[Any]:
    # A copy: what lies under it is a mapped file, which isn't writable.
    return np.array(vector.values.to_numpy(zero_copy_only=False), kind)


_log = logging.getLogger(__name__)

DEFAULT_CACHE_BYTES = 100_000_000_000
"""Bytes of local disk for copies of remote shards and layers."""

Transform = Callable[[bytes, np.random.Generator], Tensor]

Tokenize = Callable[[list[str]], Tensor]

# Salts of a sample's independent random streams: drawing a caption must not change the crop, or
# real and synthetic captions would be compared on different pixels.
_AUGMENTATION, _CAPTION, _REPLACEMENT = 0, 1, 2

# Replacements are drawn first from shards that are open anyway, then from the whole epoch.
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
    """The teachers' embeddings (fp16) of the images' augmentations, with a teacher layer."""
    teacher_real_BE: Tensor | None = None
    """Those of the real captions, if the batch has them."""
    teacher_synthetic_BE: Tensor | None = None
    """Those of the synthetic captions that were drawn, if the batch has them."""
    source_B: Tensor | None = None
    """Index of each sample's source in the mixture; None without one."""

    def pin_memory(self) -> "PairBatch":
        """Move the tensors to page-locked memory; the DataLoader calls this."""
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                setattr(self, field.name, value.pin_memory())
        return self


@dataclass(frozen=True, slots=True)
class SkippedSample:
    """A bad sample, replaced by another one in the batch."""

    shard: str
    row: int
    """Index among the shard's rows that belong to the view."""
    reason: str
    detail: str


class PairDataLoader:
    """Endless iterator over this rank's batches."""

    def __init__(
        self,
        view: View | Mixture,
        config: DataLoaderConfig,
        *,
        batch_size: int,
        seed: int = 0,
        transform: Transform,
        tokenize: Tokenize,
        teacher: TeacherLayer | Sequence[TeacherLayer] | None = None,
        rank: int = 0,
        world_size: int = 1,
        start_step: int = 0,
        cache: Path | None = None,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
    ) -> None:
        """Prepare to read from global step ``start_step`` on.

        ``batch_size`` counts all ranks. ``transform`` turns an image file into a 3HW tensor, with
        a random generator of its own, ``tokenize`` B texts into a BT tensor; both run in the
        workers. With ``teacher``, one for each source of a mixture, batches hold stored
        augmentations and the teachers' embeddings of them. ``cache`` holds local copies of remote
        shards (default: ``cache_folder()``), at most ``cache_bytes``. Raises ConfigError if the
        batch can't be divided evenly among the ranks, a view is empty, a teacher layer is missing,
        or the shards that are needed at once don't fit in ``cache_bytes``.
        """
        validate_world_size(batch_size, world_size)
        mixture = Mixture.of_view(view) if isinstance(view, View) else view
        _check_cache(mixture, config.shuffle_shards, cache_bytes)
        if teacher is None:
            teachers: list[TeacherLayer | None] = [None] * len(mixture.sources)
        else:
            teachers = [teacher] if isinstance(teacher, TeacherLayer) else list(teacher)
        for source, layer in zip(mixture.sources, teachers, strict=True):
            _check_teacher(source.view, layer)
        shard_sizes = [source.view.shard_sizes(cache) for source in mixture.sources]
        if rank == 0:
            _warn_of_repeats(mixture, shard_sizes, batch_size)
        self.config = config
        self.start_step = start_step
        self.skipped: Counter[str] = Counter()
        """Rejected samples that this rank has replaced, by reason."""
        self._logged: set[tuple[str, str]] = set()
        self._batches = BatchDataset(
            mixture=mixture,
            shard_sizes=shard_sizes,
            part_size=batch_size // world_size,
            rank=rank,
            world_size=world_size,
            seed=seed,
            shuffle_shards=config.shuffle_shards,
            transform=transform,
            tokenize=tokenize,
            teachers=teachers,
            cache=cache or cache_folder(),
            cache_bytes=cache_bytes,
        )

    @property
    def num_samples(self) -> int:
        """Samples in an epoch, of all sources."""
        return self._batches.num_samples

    def __iter__(self) -> Iterator[PairBatch]:
        """Yield the batches of steps ``start_step``, ``start_step + 1`` and so on, without end."""
        workers = self.config.num_workers
        # A tokenizer loads its data at the first call; forked workers then inherit it.
        self._batches.tokenize([""])
        loader = torch.utils.data.DataLoader(
            self._batches,
            batch_size=None,
            sampler=StepSampler(self.start_step),
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

    def _count(self, skipped: list[SkippedSample]) -> None:
        for bad in skipped:
            self.skipped[bad.reason] += 1
            data_metrics().samples_replaced.labels(bad.reason).inc()
            # Log once per shard and reason: a damaged shard would log thousands of lines.
            if (bad.shard, bad.reason) not in self._logged:
                self._logged.add((bad.shard, bad.reason))
                _log.warning(
                    "shard %s, sample %d: %s: %s; replaced by another sample",
                    bad.shard,
                    bad.row,
                    bad.reason,
                    bad.detail,
                )


def _check_cache(mixture: Mixture, shuffle_shards: int, cache_bytes: int) -> None:
    """Refuse a cache that would evict shards before they are read."""
    needed = 0
    for source in mixture.sources:
        dataset = source.view.dataset
        if is_remote(dataset.uri):
            sizes = sorted((shard.num_bytes for shard in dataset.shards), reverse=True)
            # The current block, and the next one, which is prefetched.
            needed += sum(sizes[: 2 * shuffle_shards])
    if needed > cache_bytes:
        each = " of each source" if mixture.names else ""
        raise ConfigError(
            f"cache_bytes was {cache_bytes}",
            expected=f"at least {needed}: two blocks of {shuffle_shards} shards{each}",
            action="raise cache_bytes, or lower shuffle_shards",
        )


def _check_teacher(view: View, teacher: TeacherLayer | None) -> None:
    if teacher is None:
        return
    if teacher.layer not in view.dataset.layers:
        names = sorted(name for name in view.dataset.layers if name.startswith("teacher/"))
        raise ConfigError(
            f"the teacher layer was {teacher.layer!r}",
            expected=f"one of {', '.join(names)}" if names else "a layer, but there is none",
            action="name such a layer, or compute one first",
        )
    if view.config.captions == "selected":
        raise ConfigError(
            f"captions was 'selected', with the teacher layer {teacher.layer!r}",
            expected="real, synthetic or both: teachers don't embed selected captions",
            action="choose other captions, or train without a teacher",
        )


def _warn_of_repeats(
    mixture: Mixture, shard_sizes: Sequence[Sequence[int]], batch_size: int
) -> None:
    """Warn of a source of which a batch takes more samples than it has."""
    for source, sizes in zip(mixture.sources, shard_sizes, strict=True):
        num_samples, num_taken = sum(sizes), batch_size * source.quota / BLOCK
        if 0 < num_samples < num_taken:
            _log.warning(
                "the dataset%s has %d samples and a batch takes %.0f: an image meets itself as a "
                "negative; set train.batch_size to at most %d",
                f" {source.name}" if source.name else "",
                num_samples,
                num_taken,
                num_samples * BLOCK // source.quota,
            )


@dataclass(frozen=True, slots=True)
class _Sample:
    image_3HW: Tensor
    real: str
    synthetic: str
    uid: str
    targets: TeacherTargets | None


@dataclass
class BatchDataset(torch.utils.data.Dataset[tuple[PairBatch, list[SkippedSample]] | ClipmillError]):
    """Dataset that maps a global step to this rank's part of its batch; each worker has a copy."""

    mixture: Mixture
    shard_sizes: Sequence[Sequence[int]]
    """Of each source: number of each shard's samples that belong to the view."""
    part_size: int
    """Samples per batch of this rank."""
    rank: int
    world_size: int
    seed: int
    shuffle_shards: int
    transform: Transform
    tokenize: Tokenize
    teachers: Sequence[TeacherLayer | None]
    """Of each source."""
    cache: Path
    cache_bytes: int

    def __post_init__(self) -> None:
        self._order = MixtureOrder(self.mixture.quotas, self.seed)
        self._readers = [
            SampleReader(
                source,
                sizes,
                seed=source.seed(self.seed),
                shuffle_shards=self.shuffle_shards,
                transform=self.transform,
                teacher=teacher,
                cache=self.cache,
                cache_bytes=self.cache_bytes,
            )
            for source, sizes, teacher in zip(
                self.mixture.sources, self.shard_sizes, self.teachers, strict=True
            )
        ]

    @property
    def num_samples(self) -> int:
        """Samples of all sources that belong to their views."""
        return sum(sum(sizes) for sizes in self.shard_sizes)

    def __getitem__(self, step: int) -> tuple[PairBatch, list[SkippedSample]] | ClipmillError:
        """Return the batch, or the error: raised in a worker, it would lose its type."""
        try:
            return self._batch(step)
        except ClipmillError as error:
            return error

    def close(self) -> None:
        """Close the shards that this process has open."""
        for reader in self._readers:
            reader.close()

    def _batch(self, step: int) -> tuple[PairBatch, list[SkippedSample]]:
        start = (step * self.world_size + self.rank) * self.part_size
        skipped: list[SkippedSample] = []
        located = [self._order.locate(p) for p in range(start, start + self.part_size)]
        samples = [self._readers[source].sample(p, skipped) for source, p in located]
        kind = self.mixture.captions
        batch = PairBatch(
            images_B3HW=_collate_images([sample.image_3HW for sample in samples]),
            real_BT=None if kind == "synthetic" else self.tokenize([s.real for s in samples]),
            synthetic_BT=self.tokenize([s.synthetic for s in samples])
            if kind in {"synthetic", "both"}
            else None,
            uids=tuple(sample.uid for sample in samples),
        )
        if self.mixture.names:
            batch.source_B = torch.tensor([source for source, _ in located])
        targets = [sample.targets for sample in samples if sample.targets]
        if targets:
            batch.teacher_image_BE = torch.stack([target.image_E for target in targets])
            if batch.real_BT is not None:
                batch.teacher_real_BE = torch.stack([target.real_E for target in targets])
            if batch.synthetic_BT is not None:
                synthetic = [t.synthetic_E for t in targets if t.synthetic_E is not None]
                batch.teacher_synthetic_BE = torch.stack(synthetic)
        return batch, skipped


class SampleReader:
    """The samples of a source, in the endless sequence of its epochs."""

    def __init__(
        self,
        source: PairSource,
        shard_sizes: Sequence[int],
        *,
        seed: int,
        shuffle_shards: int,
        transform: Transform,
        teacher: TeacherLayer | None,
        cache: Path,
        cache_bytes: int,
    ) -> None:
        """Prepare to read; ConfigError if no sample belongs to the view."""
        self._name = source.name
        self._view = source.view
        self._shard_sizes = shard_sizes
        self._seed = seed
        self._shuffle_shards = shuffle_shards
        self._transform = transform
        self._teacher = teacher
        self._num_samples = sum(shard_sizes)
        if not self._num_samples:
            raise ConfigError(
                f"the view of {self._view.dataset.uri} has no sample",
                expected="at least one",
                action=f"raise subset_fraction, which was {self._view.config.subset_fraction}",
            )
        self._orders: OrderedDict[int, EpochShuffle] = OrderedDict()
        self._shards = ShardCache(
            self._view,
            teacher_layer=teacher.layer if teacher else "",
            cache=cache,
            cache_bytes=cache_bytes,
            # A batch may straddle two blocks.
            capacity=2 * shuffle_shards,
        )
        self._block = (-1, -1)

    def close(self) -> None:
        """Close the shards that this process has open."""
        self._shards.close()

    def sample(self, position: int, skipped: list[SkippedSample]) -> _Sample:
        """Read the sample at a position of the endless sequence of epochs, or its replacement.

        The replacement depends on the position and on which samples are bad, not on the reader.
        """
        for shard, row in self._candidate_indices(position):
            try:
                return self._read(position, shard, row)
            except BadSampleError as bad:
                name = self._view.dataset.shards[shard].name
                name = f"{self._name}/{name}" if self._name else name
                skipped.append(SkippedSample(name, row, bad.reason, bad.detail))
        last = skipped[-1]
        raise ArtifactError(
            f"{1 + _TRIES_IN_BLOCK + _TRIES_IN_EPOCH} samples drawn from {self._view.dataset.uri} "
            f"are bad, the last in shard {last.shard}: {last.reason}: {last.detail}",
            expected="a dataset of which most samples are as they were written",
            action="run `clipmill data verify`, and write the shards that it names again",
        )

    def _candidate_indices(self, position: int) -> Iterator[tuple[int, int]]:
        """Yield (shard, index in the view) of the sample at a position, then of replacements."""
        epoch, index = divmod(position, self._num_samples)
        order = self._order(epoch)
        block = order.block_of(index)
        if self._shards.is_remote and self._block != (epoch, block):
            self._block = (epoch, block)
            self._prefetch(epoch, block + 1)
        yield order.locate(index)
        random = self._random(position, _REPLACEMENT)
        for _ in range(_TRIES_IN_BLOCK):
            yield order.locate(int(random.integers(*order.block_range(block))))
        for _ in range(_TRIES_IN_EPOCH):
            yield order.locate(int(random.integers(self._num_samples)))

    def _read(self, position: int, shard_index: int, view_index: int) -> _Sample:
        shard = self._shards[shard_index]
        row = int(shard.view.rows[view_index])
        synthetic, caption = "", None
        if shard.view.synthetic is not None:
            captions = shard.view.synthetic[row].as_py()
            caption = int(self._random(position, _CAPTION).integers(len(captions)))
            synthetic = captions[caption]
        generator = self._random(position, _AUGMENTATION)
        targets = None
        if shard.teacher is not None:
            targets = sample_teacher_targets(shard.teacher, row, caption, generator)
        data = shard.reader.image(row)
        if self._teacher and targets and targets.augmentation_K is not None:
            image_3HW = self._teacher.replay(data, targets.augmentation_K)
        else:
            image_3HW = self._transform(data, generator)
        selected = shard.view.selected[row] if shard.view.selected else None
        real = shard.reader.caption(row) if selected is None else selected
        uid = shard.reader.uid(row)
        return _Sample(image_3HW, real, synthetic, uid, targets)

    def _random(self, position: int, label: int) -> np.random.Generator:
        return np.random.default_rng((self._seed, position, label))

    def _order(self, epoch: int) -> EpochShuffle:
        if epoch not in self._orders:
            self._orders[epoch] = EpochShuffle(
                self._shard_sizes,
                seed=self._seed,
                epoch=epoch,
                shuffle_shards=self._shuffle_shards,
            )
            if len(self._orders) > 2:
                self._orders.popitem(last=False)
        return self._orders[epoch]

    def _prefetch(self, epoch: int, block: int) -> None:
        """Download a block's shards in the background, shared among this rank's workers."""
        if block == self._order(epoch).num_blocks:
            epoch, block = epoch + 1, 0
        worker = torch.utils.data.get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        self._shards.prefetch(self._order(epoch).block_shards(block)[first::step])


def _collate_images(images: list[Tensor]) -> Tensor:
    """Stack images, keeping their memory format: channels last stays channels last."""
    images_BHW3 = torch.stack([image_3HW.permute(1, 2, 0) for image_3HW in images])
    return images_BHW3.permute(0, 3, 1, 2)


@dataclass(frozen=True, slots=True)
class OpenShard:
    """An open shard with its part of the view and its teacher rows."""

    reader: ShardReader
    view: ShardView
    """Its rows that belong to the view, and their captions."""
    teacher: pa.Table | None
    """The teacher layer's rows (see ``teacher_targets``)."""


class ShardCache:
    """LRU cache of up to ``capacity`` open shards of a view."""

    def __init__(
        self, view: View, *, teacher_layer: str, cache: Path, cache_bytes: int, capacity: int
    ) -> None:
        """``teacher_layer`` is the name of a layer, or empty."""
        self.is_remote = is_remote(view.dataset.uri)
        self._view = view
        self._teacher_layer = teacher_layer
        self._cache = cache
        self._cache_bytes = cache_bytes
        self._capacity = capacity
        self._open: OrderedDict[int, OpenShard] = OrderedDict()
        self._damaged: dict[int, str] = {}

    def __getitem__(self, index: int) -> OpenShard:
        """Return shard ``index``; BadSampleError (``damaged_shard``) if its digest doesn't match.

        NotFoundError and StorageError are raised unchanged: the store may work in a later run.
        """
        if index in self._damaged:
            raise BadSampleError(BadSampleReason.DAMAGED_SHARD, self._damaged[index])
        if index not in self._open:
            try:
                self._open[index] = self._read(index)
            except ArtifactError as error:
                self._damaged[index] = str(error)
                raise BadSampleError(BadSampleReason.DAMAGED_SHARD, self._damaged[index]) from error
            if self.is_remote:
                evict_lru(self._cache, self._cache_bytes)
            if len(self._open) > self._capacity:
                self._open.popitem(last=False)[1].reader.close()
        self._open.move_to_end(index)
        return self._open[index]

    def prefetch(self, shards: Iterable[int]) -> None:
        """Download shards in the background."""
        threading.Thread(target=self._download, args=(list(shards),), daemon=True).start()

    def close(self) -> None:
        """Close all shards."""
        while self._open:
            self._open.popitem()[1].reader.close()

    def _read(self, index: int) -> OpenShard:
        dataset = self._view.dataset
        teacher = self._teacher_rows(index)
        reader = read_shard(dataset, index, self._cache)
        return OpenShard(reader, self._view.open_shard(index, reader.uids, self._cache), teacher)

    def _teacher_rows(self, index: int) -> pa.Table | None:
        if not self._teacher_layer:
            return None
        return mmap_layer(self._view.dataset, self._teacher_layer, index, self._cache)

    def _download(self, shards: list[int]) -> None:
        for index in shards:
            try:
                self._read(index).reader.close()
            except ClipmillError:  # raised again when the shard is read
                continue
