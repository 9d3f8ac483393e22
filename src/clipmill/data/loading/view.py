"""A view: which captions of a dataset, and which part of its samples, a training run sees."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
from numpy.typing import NDArray

from clipmill.config import Config, digest_json
from clipmill.data.dataset import Dataset, cache_folder
from clipmill.errors import ArtifactError, ConfigError, SourceError, suggestion
from clipmill.lineage import Parent

if TYPE_CHECKING:
    import pyarrow as pa

# Sidecars are small and far away, so waiting for several at once is what counts.
_NUM_READERS = 16
_RECAPTION = "data recaption {} --captioner CAPTIONER"


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewConfig(Config):
    """What a training run sees of a dataset."""

    captions: Literal["real", "synthetic", "both", "chosen"] = "real"
    """Which captions a batch holds; ``chosen``: the one that the last of ``select`` chose."""
    layer: str = ""
    """The layer of the synthetic captions, such as ``captions/coca-1a2b3c4d``."""
    select: tuple[str, ...] = ()
    """Select layers, such as ``select/basic-1a2b3c4d``: a sample needs to be kept by each."""
    fraction: float = 1.0
    """Part of the samples, above 0 and at most 1; a smaller one is inside any larger one."""

    def __post_init__(self) -> None:
        """Refuse half-given settings (ConfigError)."""
        if not 0 < self.fraction <= 1:
            raise ConfigError(
                f"fraction was {self.fraction}",
                expected="above 0 and at most 1",
                action="give fraction such a value",
            )
        if self.captions in {"real", "chosen"} and self.layer:
            raise ConfigError(
                f"layer was {self.layer!r}, but captions was {self.captions!r}",
                expected="no layer for real captions alone, nor for chosen ones",
                action="leave layer empty, or set captions to synthetic or both",
            )
        if self.captions == "chosen" and not self.select:
            raise ConfigError(
                "captions was 'chosen', but select was empty",
                expected="the select layer that chose",
                action="name it in select",
            )


@dataclass(frozen=True, slots=True)
class ShardView:
    """What a view lets through of one shard."""

    rows: NDArray[np.int64]
    """The shard's rows that belong to the view, ascending."""
    synthetic: "pa.ChunkedArray | None"
    """The synthetic captions of every row of the shard (lists of strings), if the view has them."""
    chosen: tuple[str | None, ...] | None
    """The caption chosen for every row of the shard, None where it is the real one; None where
    nothing was chosen."""


@dataclass(frozen=True, slots=True)
class View:
    """A dataset seen through a ViewConfig; it copies nothing."""

    dataset: Dataset
    config: ViewConfig

    def __post_init__(self) -> None:
        """Refuse layers that the dataset doesn't have (ConfigError)."""
        if self.config.captions in {"synthetic", "both"}:
            self._check_layer("layer", self.config.layer, "captions/", _RECAPTION)
        for name in self.config.select:
            self._check_layer("select", name, "select/", "data select {}")

    @property
    def digest(self) -> str:
        """SHA-256 (hex) over the samples, the used layers, and the config."""
        layers = self.dataset.layers
        parts = {
            "dataset": self.dataset.digest,
            "layer": layers[self.config.layer].digest if self.config.layer else "",
            "select": [layers[name].digest for name in self.config.select],
            "view": self.config.to_json(),
        }
        return digest_json(parts)

    @property
    def parents(self) -> tuple[Parent, ...]:
        """What a model trained on this view was made from: the dataset and the layers used."""
        dataset = self.dataset
        used = [("captions", self.config.layer)] if self.config.layer else []
        used += [("select", name) for name in self.config.select]
        layers = [
            Parent(role=role, uri=dataset.layer_uri(name), digest=dataset.layers[name].digest)
            for role, name in used
        ]
        return (Parent(role="dataset", uri=dataset.uri, digest=dataset.digest), *layers)

    def select(self, uids: Sequence[str]) -> NDArray[np.int64]:
        """The rows of a shard with these uids that belong to the view's fraction, ascending."""
        if self.config.fraction == 1:
            return np.arange(len(uids))
        return np.flatnonzero([in_fraction(uid, self.config.fraction) for uid in uids])

    def open_shard(self, index: int, uids: Sequence[str], cache: Path) -> ShardView:
        """What the view lets through of shard ``index``, which has these uids.

        Reads a file a layer. Raises ArtifactError where one isn't as the dataset lists it.
        """
        from clipmill.data.layers import read_layer

        synthetic = chosen = None
        if self.config.layer:
            synthetic = read_layer(self.dataset, self.config.layer, index, cache)["captions"]
        if self.config.captions == "chosen":
            chosen = self._chosen(index, cache)
        return ShardView(self._rows(index, uids, cache), synthetic, chosen)

    def shard_sizes(self, cache: Path | None = None) -> list[int]:
        """How many samples of each shard belong to the view.

        One select layer says it by itself; a fraction below 1, or several select layers, are
        read shard by shard. ``cache`` holds copies of remote files (default: ``cache_folder()``).
        """
        if self.config.fraction == 1 and len(self.config.select) <= 1:
            if not self.config.select:
                return [shard.num_samples for shard in self.dataset.shards]
            from clipmill.data.layers import num_kept

            return list(num_kept(self.dataset, self.config.select[0]))
        place = cache or cache_folder()
        with ThreadPoolExecutor(_NUM_READERS) as readers:
            sizes = readers.map(
                lambda index: len(self._rows(index, None, place)), range(len(self.dataset.shards))
            )
            return list(sizes)

    def _rows(self, index: int, uids: Sequence[str] | None, cache: Path) -> NDArray[np.int64]:
        """The rows of a shard that every select layer keeps and the fraction has."""
        keep = np.ones(self.dataset.shards[index].num_samples, bool)
        for name in self.config.select:
            from clipmill.data.layers import read_layer

            table = read_layer(self.dataset, name, index, cache, columns=["keep"])
            keep &= table["keep"].to_numpy()
        kept = np.flatnonzero(keep)
        if self.config.fraction == 1:
            return kept
        return np.intersect1d(
            kept,
            self.select(self.dataset.uids(index) if uids is None else uids),
            assume_unique=True,
        )

    def _chosen(self, index: int, cache: Path) -> tuple[str | None, ...]:
        from clipmill.data.layers import REAL, read_layer

        columns = ["caption", "caption_index"]
        table = read_layer(self.dataset, self.config.select[-1], index, cache, columns=columns)
        kinds, places = table["caption"].to_pylist(), table["caption_index"].to_pylist()
        texts = {
            kind: read_layer(self.dataset, kind, index, cache, columns=["captions"])["captions"]
            for kind in set(kinds) - {REAL}
        }
        try:
            return tuple(
                None if kind == REAL else texts[kind][row].values[place].as_py()
                for row, (kind, place) in enumerate(zip(kinds, places, strict=True))
            )
        except IndexError as error:
            raise ArtifactError(
                f"{self.config.select[-1]} chose a caption that its layer doesn't have: {error}",
                expected="scores of the captions that the layer has",
                action="score the captions again, then select again",
            ) from error

    def _check_layer(self, field: str, name: str, prefix: str, command: str) -> None:
        if not (name.startswith(prefix) and name in self.dataset.layers):
            names = sorted(n for n in self.dataset.layers if n.startswith(prefix))
            uri = self.dataset.uri
            raise ConfigError(
                f"{name!r} is not a {prefix[:-1]} layer of {uri}"
                if name
                else f"{field} is missing",
                expected=f"one of {', '.join(names)}"
                if names
                else f"a layer {prefix}..., but {uri} has none yet",
                action=suggestion(name, names, otherwise=f"{field}={names[-1]}")
                if names
                else f"make one: clipmill {command.format(uri)}",
            )


def in_fraction(uid: str, fraction: float) -> bool:
    """Whether a sample belongs to the nested subset of this size, decided by its uid alone."""
    return _leading(uid) < fraction * 2**64


def subset_position(uid: str) -> float:
    """The fraction, 0 to 1, from which on a sample belongs to the nested subset."""
    return _leading(uid) / 2**64


def _leading(uid: str) -> int:
    return int.from_bytes(hashlib.sha256(uid.encode()).digest()[:8], "big")


MIN_PAIRS: Final = 20
"""Fewer than these neither train an encoder nor measure one."""
_SHARE: Final = 0.25
_MAX_HELD_OUT: Final = 1_000


@dataclass(frozen=True, kw_only=True, slots=True)
class HoldOutSplit:
    """A cut of a dataset."""

    fraction: float
    """``view.fraction`` of the training part; everything outside it is held out."""
    num_train: int
    num_held_out: int


def hold_out(dataset: Dataset) -> HoldOutSplit:
    """Hold out a quarter of the pairs, at most 1,000; exact whatever the number of pairs.

    Raises SourceError for fewer than :data:`MIN_PAIRS` pairs.
    """
    total = dataset.num_samples
    if total < MIN_PAIRS:
        reasons = ", ".join(f"{n:,} {reason}" for reason, n in sorted(dataset.quarantine.items()))
        left_out = f"; left out: {reasons}" if reasons else ""
        raise SourceError(
            f"only {total} image-caption pairs can be used{left_out}",
            expected=f"at least {MIN_PAIRS} pairs to train on and to measure with",
            action="add images, each with a .txt caption of the same name; to measure existing "
            "weights on fewer, run: clipmill retrieval MODEL --data FOLDER --store URI",
        )
    places = sorted(
        subset_position(uid) for index in range(len(dataset.shards)) for uid in dataset.uids(index)
    )
    num_held_out = min(round(_SHARE * total), _MAX_HELD_OUT)
    num_train = total - num_held_out
    fraction = (places[num_train - 1] + places[num_train]) / 2
    return HoldOutSplit(fraction=fraction, num_train=num_train, num_held_out=num_held_out)


def fit_batch_size(num_train: int, batch_size: int) -> int:
    """``batch_size``, or the largest power of two that is at most half of the pairs.

    A batch that held a pair twice would call its own caption wrong.
    """
    return min(batch_size, 1 << max((num_train // 2).bit_length() - 1, 1))
