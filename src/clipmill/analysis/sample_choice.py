"""Which samples of a dataset a page shows: named ones, random ones, or the ends of a score."""

import heapq
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clipmill.config import Config
from clipmill.data.dataset import Dataset
from clipmill.data.layers import read_layer
from clipmill.data.stats import numbers, score_columns
from clipmill.errors import ConfigError

# Sidecars are small and far away, so waiting for several at once is what counts.
_NUM_READERS = 16
MOST_SAMPLES = 500
"""Samples that a page can hold and still be opened."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PageConfig(Config):
    """What a page of samples shows; at random, unless something else is asked for."""

    uids: tuple[str, ...] = ()
    """Samples by uid, or by how it begins."""
    best: str = ""
    """``LAYER:COLUMN`` of a score whose highest are shown."""
    worst: str = ""
    """``LAYER:COLUMN`` of a score whose lowest are shown."""
    count: int = 24
    """Samples at random; or of best and of worst, each."""
    seed: int = 0
    """Seed of the random choice."""

    def __post_init__(self) -> None:
        """Refuse values out of range (ConfigError)."""
        if not 1 <= self.count <= MOST_SAMPLES:
            raise ConfigError(
                f"count was {self.count}",
                expected=f"1 to {MOST_SAMPLES}",
                action="give count such a value; open several pages for more",
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Chosen:
    """Samples that were chosen for one reason."""

    anchor: str
    heading: str
    note: str
    """How they were chosen."""
    places: tuple[tuple[int, int], ...]
    """(shard, row) of each, in the order they're shown in."""


def choose(dataset: Dataset, config: PageConfig, cache: Path) -> list[Chosen]:
    """The samples that ``config`` asks for; ConfigError if there are no such."""
    chosen = []
    if config.uids:
        places = tuple(_named(dataset, config.uids))
        chosen.append(Chosen(anchor="named", heading="By uid", note="", places=places))
    for anchor, score in (("best", config.best), ("worst", config.worst)):
        if score:
            places = _extremes(dataset, score, config.count, cache, highest=anchor == "best")
            note = f"The {len(places)} {'highest' if anchor == 'best' else 'lowest'}, in order."
            heading = f"{anchor.capitalize()} by {score}"
            chosen.append(Chosen(anchor=anchor, heading=heading, note=note, places=places))
    if not chosen:
        places = _random(dataset, config.count, config.seed)
        note = f"{len(places)} of {dataset.num_samples:,}, drawn with seed {config.seed}."
        chosen = [Chosen(anchor="random", heading="At random", note=note, places=places)]
    return chosen


def _named(dataset: Dataset, names: Sequence[str]) -> Iterator[tuple[int, int]]:
    found: dict[str, list[tuple[int, int]]] = {name: [] for name in names}
    with ThreadPoolExecutor(_NUM_READERS) as readers:
        shards = readers.map(dataset.uids, range(len(dataset.shards)))
        for shard, uids in enumerate(shards):
            for row, uid in enumerate(uids):
                for name in names:
                    if uid.startswith(name):
                        found[name].append((shard, row))
    missing = [name for name in names if not found[name]]
    if missing:
        raise ConfigError(
            f"{dataset.uri} has no sample {', '.join(missing)}",
            expected="uids of its samples, or how they begin",
            action="take them from a page, a layer, or the shards' .json files",
        )
    yield from dict.fromkeys(place for name in names for place in found[name][:MOST_SAMPLES])


def _random(dataset: Dataset, count: int, seed: int) -> tuple[tuple[int, int], ...]:
    total = dataset.num_samples
    drawn = np.random.default_rng(seed).choice(total, min(count, total), replace=False)
    ends = np.cumsum([shard.num_samples for shard in dataset.shards])
    places = []
    for position in drawn.tolist():
        shard = int(np.searchsorted(ends, position, side="right"))
        places.append((shard, position - int(ends[shard] - dataset.shards[shard].num_samples)))
    return tuple(places)


def _extremes(
    dataset: Dataset, score: str, count: int, cache: Path, *, highest: bool
) -> tuple[tuple[int, int], ...]:
    """The places of the highest or lowest values; missing ones are passed over."""
    layer, _, column = score.partition(":")
    if layer not in dataset.layers:
        known = [name for name in sorted(dataset.layers) if name.startswith("score/")]
        raise _no_score(score, [f"{name}:COLUMN" for name in known])
    sign = 1.0 if highest else -1.0
    top: list[tuple[float, int, int]] = []
    for shard, info in enumerate(dataset.shards):
        if not info.num_samples:
            continue
        table = read_layer(dataset, layer, shard, cache)
        if column not in score_columns(table):
            raise _no_score(score, [f"{layer}:{name}" for name in score_columns(table)])
        values = sign * numbers(table[column])
        order = np.argsort(-values, kind="stable")[:count]  # NaN comes last
        # Of equal values, the first in the dataset.
        rows = [(values[r], -shard, -r) for r in order.tolist() if not np.isnan(values[r])]
        top = heapq.nlargest(count, [*top, *rows])
    return tuple((-shard, -row) for _, shard, row in top)


def _no_score(score: str, known: Sequence[str]) -> ConfigError:
    return ConfigError(
        f"there is no score {score!r}",
        expected=f"one of {', '.join(known)}" if known else "a score layer, but there is none",
        action="name such a score" if known else "score the dataset first",
    )
