"""Views of a dataset: filters over its samples and a choice of captions, without copies."""

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final, Literal

import numpy as np
from numpy.typing import NDArray

from clipmill.config import Config, digest_json
from clipmill.data.dataset import Dataset, cache_folder
from clipmill.errors import ArtifactError, ConfigError, SourceError, suggestion
from clipmill.lineage import Parent

if TYPE_CHECKING:
    import pyarrow as pa

# Sidecars are small and remote, so reading is bound by latency.
_NUM_READERS = 16
_RECAPTION = "data recaption {} --captioner CAPTIONER"


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewConfig(Config):
    """Samples and captions of a dataset that a training run uses.

    Example:
        >>> view = clipmill.ViewConfig(captions="both", layer="captions/coca-1a2b3c4d")
        >>> view.subset_fraction
        1.0
    """

    RENAMED_FIELDS: ClassVar[Mapping[str, str]] = {
        "select": "selection_layers",
        "fraction": "subset_fraction",
    }
    RENAMED_VALUES: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "captions": {"chosen": "selected"},
    }

    captions: Literal["real", "synthetic", "both", "selected"] = "real"
    """Captions in a batch; ``selected``: those that the last of ``selection_layers`` selected."""
    layer: str = ""
    """The layer of the synthetic captions, such as ``captions/coca-1a2b3c4d``."""
    selection_layers: tuple[str, ...] = ()
    """Select layers, such as ``select/basic-1a2b3c4d``; a sample must be kept by all of them."""
    subset_fraction: float = 1.0
    """Fraction of the samples, above 0 and at most 1; smaller subsets are inside larger ones."""

    def __post_init__(self) -> None:
        """Refuse half-given settings (ConfigError)."""
        if not 0 < self.subset_fraction <= 1:
            raise ConfigError(
                f"subset_fraction was {self.subset_fraction}",
                expected="above 0 and at most 1",
                action="set subset_fraction to such a value, for example 0.5",
            )
        if self.captions in {"real", "selected"} and self.layer:
            raise ConfigError(
                f"layer was {self.layer!r}, but captions was {self.captions!r}",
                expected="no layer for real or selected captions",
                action="leave layer empty, or set captions to synthetic or both",
            )
        if self.captions == "selected" and not self.selection_layers:
            raise ConfigError(
                "captions was 'selected', but selection_layers was empty",
                expected="the select layer with the selected captions",
                action="add it to selection_layers",
            )


@dataclass(frozen=True, slots=True)
class ShardView:
    """Samples and captions of one shard that belong to a view."""

    rows: NDArray[np.int64]
    """The shard's rows that belong to the view, ascending."""
    synthetic: "pa.ChunkedArray | None"
    """The synthetic captions of every row of the shard (lists of strings), if the view has them."""
    selected: tuple[str | None, ...] | None
    """The selected caption of every row of the shard, None for the real one; None if the view
    doesn't have selected captions."""


@dataclass(frozen=True, slots=True)
class View:
    """A dataset seen through a ViewConfig."""

    dataset: Dataset
    config: ViewConfig

    def __post_init__(self) -> None:
        """Refuse layers that the dataset doesn't have (ConfigError)."""
        if self.config.captions in {"synthetic", "both"}:
            self._check_layer("layer", self.config.layer, "captions/", _RECAPTION)
        for name in self.config.selection_layers:
            self._check_layer("selection_layers", name, "select/", "data select {}")

    @property
    def digest(self) -> str:
        """SHA-256 (hex) over the samples, the used layers, and the config."""
        layers = self.dataset.layers
        parts = {
            "dataset": self.dataset.digest,
            "layer": layers[self.config.layer].digest if self.config.layer else "",
            "select": [layers[name].digest for name in self.config.selection_layers],
            "view": self.config.to_json(),
        }
        return digest_json(parts)

    @property
    def parents(self) -> tuple[Parent, ...]:
        """The dataset and the layers that are used, for the lineage of a model."""
        dataset = self.dataset
        used = [("captions", self.config.layer)] if self.config.layer else []
        used += [("select", name) for name in self.config.selection_layers]
        layers = [
            Parent(role=role, uri=dataset.layer_uri(name), digest=dataset.layers[name].digest)
            for role, name in used
        ]
        return (Parent(role="dataset", uri=dataset.uri, digest=dataset.digest), *layers)

    def select(self, uids: Sequence[str]) -> NDArray[np.int64]:
        """Return the rows, ascending, of a shard with these uids that belong to the subset."""
        if self.config.subset_fraction == 1:
            return np.arange(len(uids))
        return np.flatnonzero([in_subset(uid, self.config.subset_fraction) for uid in uids])

    def open_shard(self, index: int, uids: Sequence[str], cache: Path) -> ShardView:
        """Return the view's part of shard ``index``, which has these uids.

        Reads one file per layer. Raises ArtifactError where one isn't as the dataset lists it.
        """
        from clipmill.data.layers import read_layer

        synthetic = selected = None
        if self.config.layer:
            synthetic = read_layer(self.dataset, self.config.layer, index, cache)["captions"]
        if self.config.captions == "selected":
            selected = self._selected_captions(index, cache)
        return ShardView(self._rows(index, uids, cache), synthetic, selected)

    def shard_sizes(self, cache: Path | None = None) -> list[int]:
        """Return the number of samples of each shard that belong to the view.

        One select layer states it; a subset, or several select layers, are read shard by shard.
        ``cache`` holds copies of remote files (default: ``cache_folder()``).
        """
        if self.config.subset_fraction == 1 and len(self.config.selection_layers) <= 1:
            if not self.config.selection_layers:
                return [shard.num_samples for shard in self.dataset.shards]
            from clipmill.data.layers import num_kept

            return list(num_kept(self.dataset, self.config.selection_layers[0]))
        cache = cache or cache_folder()
        with ThreadPoolExecutor(_NUM_READERS) as readers:
            sizes = readers.map(
                lambda index: len(self._rows(index, None, cache)), range(len(self.dataset.shards))
            )
            return list(sizes)

    def _rows(self, index: int, uids: Sequence[str] | None, cache: Path) -> NDArray[np.int64]:
        """Return the rows of a shard that every select layer keeps and the subset contains."""
        keep = np.ones(self.dataset.shards[index].num_samples, bool)
        for name in self.config.selection_layers:
            from clipmill.data.layers import read_layer

            table = read_layer(self.dataset, name, index, cache, columns=["keep"])
            keep &= table["keep"].to_numpy()
        rows = np.flatnonzero(keep)
        if self.config.subset_fraction == 1:
            return rows
        return np.intersect1d(
            rows,
            self.select(self.dataset.uids(index) if uids is None else uids),
            assume_unique=True,
        )

    def _selected_captions(self, index: int, cache: Path) -> tuple[str | None, ...]:
        from clipmill.data.layers import REAL, read_layer

        columns = ["caption", "caption_index"]
        table = read_layer(
            self.dataset, self.config.selection_layers[-1], index, cache, columns=columns
        )
        kinds, indices = table["caption"].to_pylist(), table["caption_index"].to_pylist()
        texts = {
            kind: read_layer(self.dataset, kind, index, cache, columns=["captions"])["captions"]
            for kind in set(kinds) - {REAL}
        }
        try:
            return tuple(
                None if kind == REAL else texts[kind][row].values[index].as_py()
                for row, (kind, index) in enumerate(zip(kinds, indices, strict=True))
            )
        except IndexError as error:
            raise ArtifactError(
                f"{self.config.selection_layers[-1]} selects a caption that its layer "
                f"doesn't have: {error}",
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


def in_subset(uid: str, fraction: float) -> bool:
    """Return whether a sample, by its uid, belongs to the nested subset of this size."""
    return _leading(uid) < fraction * 2**64


def subset_position(uid: str) -> float:
    """Return the smallest fraction, 0 to 1, whose nested subset contains a sample."""
    return _leading(uid) / 2**64


def _leading(uid: str) -> int:
    return int.from_bytes(hashlib.sha256(uid.encode()).digest()[:8], "big")


MIN_PAIRS: Final = 20
"""Fewer than these neither train an encoder nor measure one."""
_SHARE: Final = 0.25
_MAX_HELD_OUT: Final = 1_000


@dataclass(frozen=True, kw_only=True, slots=True)
class HoldOutSplit:
    """A training part and a held-out part of a dataset."""

    fraction: float
    """``view.subset_fraction`` of the training part; all other samples are held out."""
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
            "weights on fewer, run: clipmill eval retrieval MODEL --data FOLDER --store URI",
        )
    positions = sorted(
        subset_position(uid) for index in range(len(dataset.shards)) for uid in dataset.uids(index)
    )
    num_held_out = min(round(_SHARE * total), _MAX_HELD_OUT)
    num_train = total - num_held_out
    fraction = (positions[num_train - 1] + positions[num_train]) / 2
    return HoldOutSplit(fraction=fraction, num_train=num_train, num_held_out=num_held_out)


def fit_batch_size(num_train: int, batch_size: int) -> int:
    """``batch_size``, or the largest power of two that is at most half of the pairs.

    A batch that held a pair twice would call its own caption wrong.
    """
    return min(batch_size, 1 << max((num_train // 2).bit_length() - 1, 1))
