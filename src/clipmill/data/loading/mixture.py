"""Weighted mixtures: several datasets in one run, each through a view of its own.

A source's weight, over the sum of all, is its share of the samples. The order is cut into blocks of
:data:`BLOCK` positions. Each block holds exactly its share of every source, in an order that
follows from seed and block alone, so a batch holds the shares in expectation. Within a source the
samples come in the order of :class:`~clipmill.data.loading.sampler.EpochShuffle`: each sample once
per epoch of the source, and a new shuffle when all have been used, whatever the other sources do.

The source of a position, and the position within it, are found in O(1), so nothing is saved.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, Self

import numpy as np
from numpy.typing import NDArray

from clipmill.config import Config
from clipmill.data.dataset import Dataset
from clipmill.data.loading.view import View, ViewConfig
from clipmill.errors import ArtifactError, ConfigError, StorageError
from clipmill.lineage import Parent
from clipmill.storage import read_bytes

BLOCK: Final = 100_000
"""Positions that hold exactly each source's share; shares are rounded to this part."""
# Keeps the order of sources independent of the sources' own orders.
_ORDER_SALT: Final = 2
_MAX_CACHED_BLOCKS: Final = 2
_NAME: Final = re.compile(r"[\w.-]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class MixtureSource(Config):
    """A dataset of a mixture; what is null is as in the run's ``view``.

    Example:
        >>> source = clipmill.MixtureSource(dataset="out/datasets/pairs-1a2b3c4d5e6f", weight=0.7)
        >>> source.weight
        0.7
    """

    dataset: str
    """URI of the dataset; in the recipe of a trained model its digest."""
    weight: float
    """Share of the samples, relative to the other sources' weights."""
    name: str = ""
    """Name in metrics; empty for the last part of the URI."""
    captions: Literal["real", "synthetic", "both", "selected"] | None = None
    """Captions; the same in all sources, but ``real`` and ``selected`` go together."""
    layer: str | None = None
    """The layer of the synthetic captions."""
    selection_layers: tuple[str, ...] | None = None
    """Select layers."""
    subset_fraction: float | None = None
    """Fraction of the samples."""

    def __post_init__(self) -> None:
        """Refuse weights and names that can't be (ConfigError)."""
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise ConfigError(
                f"the weight of {self.dataset} was {self.weight}",
                expected="a finite number above 0",
                action="set such a weight, for example 0.5, or leave the dataset out",
            )
        if not self.dataset:
            raise ConfigError(
                "a source of the mixture has no dataset",
                expected="the URI of a dataset",
                action="write it as URI=WEIGHT",
            )
        if self.name and not _NAME.fullmatch(self.name):
            raise ConfigError(
                f"the name of {self.dataset} was {self.name!r}",
                expected="letters, digits, dots, hyphens and underscores",
                action="set name to such a name",
            )

    @property
    def label(self) -> str:
        """Name in metrics."""
        last = self.dataset.rstrip("/").rpartition("/")[2]
        return self.name or re.sub(r"[^\w.-]", "_", last)

    def view_config(self, base: ViewConfig) -> ViewConfig:
        """Return the source's view, given the run's."""
        names = ("captions", "layer", "selection_layers", "subset_fraction")
        own = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if self.captions in {"real", "selected"}:
            own.setdefault("layer", "")
        return replace(base, **own)


@dataclass(frozen=True, slots=True)
class PairSource:
    """An open dataset that a run reads, with its share of the samples."""

    name: str
    """Name in metrics; empty for the only dataset of a run without a mixture."""
    view: View
    """Its samples and captions."""
    quota: int
    """Its samples in :data:`BLOCK` positions."""

    def seed(self, seed: int) -> int:
        """Return the seed of its order and samples in a run of ``seed``: independent streams."""
        if not self.name:
            return seed
        key = (seed, int(self.view.dataset.digest[:16], 16))
        return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])


@dataclass(frozen=True, slots=True)
class Mixture:
    """The open sources of a run, in the order of their digests."""

    sources: tuple[PairSource, ...]

    @classmethod
    def of_view(cls, view: View) -> Self:
        """Return the one source of a run without a mixture."""
        return cls((PairSource("", view, BLOCK),))

    @classmethod
    def open(cls, configs: Sequence[MixtureSource], view: ViewConfig) -> Self:
        """Open the sources of a mixture; the order of ``configs`` doesn't matter.

        Raises:
            ConfigError: a view isn't possible, or sources don't go together.
            ArtifactError: there is no dataset.
        """
        opened = [(config, _open_view(config, view)) for config in configs]
        opened.sort(key=lambda pair: pair[1].dataset.digest)
        quotas = _quotas([config for config, _ in opened])
        sources = [
            PairSource(config.label, view, quota)
            for (config, view), quota in zip(opened, quotas, strict=True)
        ]
        _check_distinct(sources)
        _check_captions(sources)
        return cls(tuple(sources))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the sources of a mixture; empty without one."""
        return tuple(source.name for source in self.sources if source.name)

    @property
    def quotas(self) -> tuple[int, ...]:
        """Samples of each source in a block."""
        return tuple(source.quota for source in self.sources)

    @property
    def captions(self) -> str:
        """Captions of a batch; those of sources with real and with selected ones are ``real``."""
        kinds = {source.view.config.captions for source in self.sources}
        return "real" if len(kinds) > 1 else next(iter(kinds))

    @property
    def parents(self) -> tuple[Parent, ...]:
        """All datasets and the layers that are used, for the lineage of a model."""
        return tuple(parent for source in self.sources for parent in source.view.parents)

    def resolve(self) -> tuple[MixtureSource, ...]:
        """Return the sources by digest, with normalized weights; empty without a mixture.

        Mixtures that give the same batches are equal, wherever their datasets lie.
        """
        return tuple(
            MixtureSource(
                dataset=source.view.dataset.digest,
                weight=source.quota / BLOCK,
                captions=source.view.config.captions,
                layer=source.view.config.layer,
                selection_layers=source.view.config.selection_layers,
                subset_fraction=source.view.config.subset_fraction,
            )
            for source in self.sources
            if source.name
        )

    def describe(self) -> str:
        """Return shares and names: ``0.7 a, 0.3 b``."""
        return ", ".join(f"{s.quota / BLOCK:.4g} {s.name}" for s in self.sources)


class MixtureOrder:
    """The source of each position of the endless sequence of samples."""

    def __init__(self, quotas: Sequence[int], seed: int) -> None:
        """``quotas`` are each source's samples in a block, :data:`BLOCK` in all."""
        assert sum(quotas) == BLOCK, quotas
        self._quotas = np.asarray(quotas, np.int64)
        self._seed = seed
        self._blocks: dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}

    def locate(self, position: int) -> tuple[int, int]:
        """Return the source of a position, and the position in the source's own sequence."""
        if len(self._quotas) == 1:
            return 0, position
        block, offset = divmod(position, BLOCK)
        sources, ranks = self._block(block)
        source = int(sources[offset])
        return source, block * int(self._quotas[source]) + int(ranks[offset])

    def num_seen(self, position: int) -> list[int]:
        """Return how many samples of each source come before a position."""
        block, offset = divmod(position, BLOCK)
        sources, _ = self._block(block)
        within = np.bincount(sources[:offset], minlength=len(self._quotas))
        return [int(count) for count in block * self._quotas + within]

    def _block(self, block: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the source of each of a block's positions, and its rank among the source's."""
        if block not in self._blocks:
            while len(self._blocks) >= _MAX_CACHED_BLOCKS:
                del self._blocks[min(self._blocks)]
            self._blocks[block] = self._permute_block(block)
        return self._blocks[block]

    def _permute_block(self, block: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        random = np.random.default_rng((self._seed, _ORDER_SALT, block))
        sources = random.permutation(np.repeat(np.arange(len(self._quotas)), self._quotas))
        ranks = np.empty_like(sources)
        starts = np.cumsum(self._quotas) - self._quotas
        in_order = np.argsort(sources, kind="stable")
        ranks[in_order] = np.arange(BLOCK) - np.repeat(starts, self._quotas)
        return sources, ranks


def parse_mixture(values: Sequence[str]) -> tuple[MixtureSource, ...]:
    """Parse sources: each ``[NAME=]URI=WEIGHT``, or the path or URI of a JSON list of sources.

    Raises:
        ConfigError: a value is neither, or a file isn't such a list.
    """
    sources: list[MixtureSource] = []
    for value in values:
        uri, equals, weight = value.rpartition("=")
        name, has_name, rest = uri.partition("=")
        if value.endswith(".json"):
            sources += _read_mixture(value)
        elif not (equals and uri):
            raise ConfigError(
                f"--mixture was {value!r}",
                expected="URI=WEIGHT, NAME=URI=WEIGHT, or a JSON file with a list of sources",
                action=f"write it as {value}=0.5, say",
            )
        elif has_name and _NAME.fullmatch(name):
            number = _parse_weight(weight, value)
            sources.append(MixtureSource(dataset=rest, weight=number, name=name))
        else:
            sources.append(MixtureSource(dataset=uri, weight=_parse_weight(weight, value)))
    return tuple(sources)


def _parse_weight(text: str, value: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError(
            f"the weight in --mixture {value!r} was {text!r}",
            expected="a number above 0",
            action="write URI=0.5, for example",
        ) from None


def _read_mixture(uri: str) -> list[MixtureSource]:
    try:
        value = json.loads(read_bytes(uri))
    except ValueError as error:
        raise ConfigError(
            f"{uri} isn't JSON: {error}",
            expected='a list such as [{"dataset": "URI", "weight": 0.7}, ...]',
            action="correct the file",
        ) from error
    if not isinstance(value, list):
        raise ConfigError(
            f"{uri} holds no list",
            expected='a list such as [{"dataset": "URI", "weight": 0.7}, ...]',
            action="correct the file",
        )
    return [MixtureSource.from_json(entry, f"{uri}[{i}]") for i, entry in enumerate(value)]


def _quotas(configs: Sequence[MixtureSource]) -> list[int]:
    """Round shares to samples of a block, by the largest remainders.

    Raises:
        ConfigError: a share is less than a sample of a block.
    """
    largest = max(config.weight for config in configs)
    weights = [config.weight / largest for config in configs]
    exact = [weight / math.fsum(weights) * BLOCK for weight in weights]
    quotas = [math.floor(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: quotas[i] - exact[i])
    for index in by_remainder[: BLOCK - sum(quotas)]:
        quotas[index] += 1
    for config, quota in zip(configs, quotas, strict=True):
        if not quota:
            raise ConfigError(
                f"the weight of {config.dataset} was {config.weight:g}, less than a sample of "
                f"{BLOCK:,} next to {largest:g}",
                expected=f"a share of at least 1/{BLOCK:,}",
                action="raise it, or leave the dataset out",
            )
    return quotas


def _open_view(config: MixtureSource, base: ViewConfig) -> View:
    """Open a source; an error names it."""
    try:
        return View(Dataset.open(config.dataset), config.view_config(base))
    except (ArtifactError, ConfigError, StorageError) as error:
        raise type(error)(
            f"source {config.label} of the mixture: {error.what}",
            expected=error.expected,
            action=error.action,
        ) from error


def _check_distinct(sources: Sequence[PairSource]) -> None:
    digest, count = Counter(source.view.dataset.digest for source in sources).most_common(1)[0]
    if count > 1:
        uris = [s.view.dataset.uri for s in sources if s.view.dataset.digest == digest]
        raise ConfigError(
            f"the mixture has the same dataset more than once: {' and '.join(uris)}",
            expected="each dataset once",
            action="give one of them the sum of their weights",
        )
    name, count = Counter(source.name for source in sources).most_common(1)[0]
    if count > 1:
        uris = [s.view.dataset.uri for s in sources if s.name == name]
        raise ConfigError(
            f"sources of the mixture have the same name {name!r}: {' and '.join(uris)}",
            expected="a name for each, which metrics have as a label",
            action='write the mixture as a JSON file, with "name" in each source',
        )


def _check_captions(sources: Sequence[PairSource]) -> None:
    kinds = {source.name: source.view.config.captions for source in sources}
    if len({"real" if kind == "selected" else kind for kind in kinds.values()}) > 1:
        raise ConfigError(
            f"captions differ: {', '.join(f'{kind} of {name}' for name, kind in kinds.items())}",
            expected="the same kinds of captions in a whole batch; real and selected go together",
            action="give the sources the same captions, or select captions of each dataset with "
            "`clipmill data select`, and train on captions=selected",
        )
