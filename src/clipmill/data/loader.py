"""Endless batches of image-text pairs: the same ones for any number of ranks and workers.

The epochs follow one another as one endless sequence of samples, and the global batch ``k`` is
its positions ``k * B`` to ``(k + 1) * B``, whoever reads it. So a run resumes at any step with
nothing but the step's number. A sample that turns out to be bad is replaced by another, which its
position alone decides.
"""

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from clipmill.config import Config
from clipmill.data.batches import BatchDataset, PairBatch, Skipped, Tokenize, Transform
from clipmill.data.cache import is_remote
from clipmill.data.dataset import cache_folder
from clipmill.data.steps import StepsFrom, check_ranks
from clipmill.data.teacher_rows import Teaching
from clipmill.data.view import View
from clipmill.errors import ClipmillError, ConfigError
from clipmill.telemetry import data_metrics

__all__ = ["LoaderConfig", "PairBatch", "PairLoader"]

_log = logging.getLogger(__name__)


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


class PairLoader:
    """Iterates forever over this rank's batches, from global step ``cursor`` on."""

    def __init__(
        self,
        view: View,
        config: LoaderConfig,
        *,
        transform: Transform,
        tokenize: Tokenize,
        teaching: Teaching | None = None,
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
        check_ranks(config.batch_size, world_size)
        _check_cache(view, config)
        if teaching and teaching.layer not in view.dataset.layers:
            names = sorted(name for name in view.dataset.layers if name.startswith("teacher/"))
            raise ConfigError(
                f"the teacher layer was {teaching.layer!r}",
                expected=f"one of {', '.join(names)}" if names else "a layer, but there is none",
                action="name such a layer, or compute one first",
            )
        if teaching and view.config.captions == "chosen":
            raise ConfigError(
                f"captions was 'chosen', with the teacher layer {teaching.layer!r}",
                expected="real, synthetic or both: teachers embed no caption that a rule chose",
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
                action=f"raise fraction, which was {view.config.fraction}",
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
            sampler=StepsFrom(self.cursor),
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
