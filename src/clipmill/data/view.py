"""A view: which captions of a dataset, and which part of its samples, a training run sees."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from clipmill.config import Config
from clipmill.data.dataset import Dataset
from clipmill.digest import digest_json
from clipmill.errors import ConfigError
from clipmill.storage import Parent

# Sidecars are small and far away, so waiting for several at once is what counts.
_NUM_READERS = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewConfig(Config):
    """What a training run sees of a dataset."""

    captions: Literal["real", "synthetic", "both"] = "real"
    """Which captions a batch holds."""
    layer: str = ""
    """The layer of the synthetic captions, such as ``captions/coca-1a2b3c4d``."""
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
        if self.captions == "real" and self.layer:
            raise ConfigError(
                f"layer was {self.layer!r}, but captions was 'real'",
                expected="no layer for real captions alone",
                action="leave layer empty, or set captions to synthetic or both",
            )


@dataclass(frozen=True, slots=True)
class View:
    """A dataset seen through a ViewConfig; it copies nothing."""

    dataset: Dataset
    config: ViewConfig

    def __post_init__(self) -> None:
        """Refuse captions of a layer that the dataset doesn't have (ConfigError)."""
        if self.config.captions != "real" and self.config.layer not in self.dataset.layers:
            names = sorted(n for n in self.dataset.layers if n.startswith("captions/"))
            raise ConfigError(
                f"captions was {self.config.captions!r}, and layer was {self.config.layer!r}",
                expected=f"one of {', '.join(names)}" if names else "a layer, but there is none",
                action="name such a layer" if names else "recaption the dataset first",
            )

    @property
    def digest(self) -> str:
        """SHA-256 (hex) over the samples, the used layer, and the config."""
        layer = self.dataset.layers[self.config.layer].digest if self.config.layer else ""
        parts = {"dataset": self.dataset.digest, "layer": layer, "view": self.config.to_json()}
        return digest_json(parts)

    @property
    def parents(self) -> tuple[Parent, ...]:
        """What a model trained on this view was made from: ``dataset`` and ``captions``."""
        dataset = self.dataset
        parents = [Parent(role="dataset", uri=dataset.uri, digest=dataset.digest)]
        if self.config.layer:
            layer = dataset.layers[self.config.layer]
            uri = dataset.layer_uri(layer.name)
            parents.append(Parent(role="captions", uri=uri, digest=layer.digest))
        return tuple(parents)

    def select(self, uids: Sequence[str]) -> NDArray[np.int64]:
        """The rows of a shard with these uids that belong to the view, ascending."""
        if self.config.fraction == 1:
            return np.arange(len(uids))
        return np.flatnonzero([in_fraction(uid, self.config.fraction) for uid in uids])

    def shard_sizes(self) -> list[int]:
        """How many samples of each shard belong to the view.

        A fraction below 1 reads the sidecars of all shards.
        """
        if self.config.fraction == 1:
            return [shard.num_samples for shard in self.dataset.shards]
        with ThreadPoolExecutor(_NUM_READERS) as readers:
            return list(readers.map(self._shard_size, range(len(self.dataset.shards))))

    def _shard_size(self, index: int) -> int:
        return len(self.select(self.dataset.uids(index)))


def in_fraction(uid: str, fraction: float) -> bool:
    """Whether a sample belongs to the nested subset of this size, decided by its uid alone."""
    leading = hashlib.sha256(uid.encode()).digest()[:8]
    return int.from_bytes(leading, "big") < fraction * 2**64
