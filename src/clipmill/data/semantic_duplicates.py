"""Semantic duplicate filter: SemDeDup on the image embeddings of a CLIP.

Abbas et al. 2023, "SemDeDup: Data-efficient learning at web-scale through semantic
deduplication": embeddings are clustered by k-means, and of two images of a cluster whose cosine
similarity exceeds ``1 - epsilon`` the worse one is dropped. The paper keeps the one that is least
similar to its cluster's centroid.

The layer is read once to draw the rows that k-means learns from, once to assign all rows to
clusters, and once for each group of clusters whose embeddings fit into ``memory_bytes``. Beside
those, memory is 20 bytes per row, and 4 for each further probe.

Shapes: N rows, K clusters, P probes, D embedding width.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.data.duplicates import preference_ranks, tie_breaker
from clipmill.data.filters import Block, CaptionOf, FilterConfig, FilterState, score_columns
from clipmill.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

EMBEDDING_COLUMN = "image"
"""Column of an embedding layer: a fixed-size list of halffloat per row, a unit vector."""

# Rows per cluster that k-means learns from: faiss takes 39 at least and 256 at most.
_ROWS_PER_CLUSTER = 128

# Bytes per number of an embedding: as it is collected, and with the others of its group, as fp16;
# and with the others of its cluster, as fp16 and fp32.
_BYTES_PER_NUMBER = 2 + 2 + 2 + 4

# The same of rows that k-means learns from: as they are, and while rows are added.
_TRAINING_BYTES_PER_NUMBER = 2 + 2

# Similarities that are computed together: 64 MB.
_NUM_SIMILARITIES = 1 << 24

# The last bits of a sum depend on how rows lie in shards, and mustn't decide before the uid.
_DECIMALS = 6


@dataclass(frozen=True, kw_only=True, slots=True)
class SemanticDuplicateFilter(FilterConfig):
    """Keeps one of the samples whose image embeddings are nearly equal (SemDeDup)."""

    epsilon: float = 0.05
    """Images whose cosine similarity is above 1 - epsilon are duplicates."""
    num_clusters: int = 0
    """Clusters of k-means; 0 for the square root of the number of rows."""
    num_probes: int = 1
    """Clusters in which an image is compared, the nearest ones: 1 as in the paper. With 2, pairs
    that lie on both sides of a border are found as well."""
    iterations: int = 20
    """Most iterations of k-means."""
    keep_best_by: Literal["centroid", "score"] = "centroid"
    """Criterion for the sample to keep: lowest similarity to the cluster's centroid, as in the
    paper, or the highest score."""
    layer: str = "score/embedding"
    """The layer of image embeddings."""
    scores: str = "score/clip"
    """The layer of scores, read if ``keep_best_by`` is ``score``."""
    column: str = ""
    """Column of that layer, such as ``aesthetic``; empty for the scores of ``captions``."""
    captions: CaptionOf = "real"
    """Caption whose score is compared where no column is named."""
    memory_bytes: int = 4_000_000_000
    """Most bytes of embeddings in memory, and of the rows that k-means learns from."""

    def __post_init__(self) -> None:
        """Refuse values out of range (ConfigError)."""
        limits = {
            "epsilon": (0 < self.epsilon < 1, "above 0 and below 1", "0.05"),
            "num_clusters": (self.num_clusters >= 0, "at least 0", "0"),
            "num_probes": (self.num_probes >= 1, "at least 1", "1"),
            "iterations": (self.iterations >= 1, "at least 1", "20"),
            "memory_bytes": (self.memory_bytes >= 1, "at least 1", "4000000000"),
        }
        for name, (is_valid, expected, example) in limits.items():
            if not is_valid:
                raise ConfigError(
                    f"{name} was {getattr(self, name)}",
                    expected=expected,
                    action=f"set {name} to such a value, for example {example}",
                )

    @property
    def required_columns(self) -> Mapping[str, tuple[str, ...]]:
        """The embeddings, and the scores where they are the criterion."""
        columns: dict[str, tuple[str, ...]] = {self.layer: (EMBEDDING_COLUMN,)}
        if self.keep_best_by == "score":
            columns[self.scores] = score_columns(self.column, self.captions)
        return columns

    def create_state(self, num_rows: int) -> FilterState:
        """Return a state that takes three passes, or more where memory is short."""
        return _SemanticState(self, num_rows)


class _SemanticState(FilterState):
    num_passes = 2

    def __init__(self, config: SemanticDuplicateFilter, num_rows: int) -> None:
        self._config = config
        self._pass = 0
        self._training: _TrainingRows | None = None
        self._num_rows = num_rows
        self._centroids_KD: Tensor | None = None
        self._cluster_NP = np.full((num_rows, config.num_probes), -1, np.int32)
        self._preference = np.zeros(num_rows, np.float32)
        self._ties = np.zeros(num_rows, np.uint64)
        self._is_duplicate = np.zeros(num_rows, bool)
        self._groups: list[tuple[int, int]] = []
        self._parts: list[tuple[NDArray[np.float16], NDArray[np.int64]]] = []

    def observe(self, block: Block, remaining: NDArray[np.bool_]) -> None:
        column = block.column(self._config.layer, EMBEDDING_COLUMN)
        is_valid = remaining & column.is_valid().to_numpy(zero_copy_only=False)
        if self._pass >= 2:
            first, last = self._groups[self._pass - 2]
            cluster_NP = self._cluster_NP[block.rows]
            is_valid &= ((cluster_NP >= first) & (cluster_NP < last)).any(axis=1)
        rows = np.flatnonzero(is_valid)
        if not len(rows):
            return
        embeddings_ND = read_embeddings(self._config.layer, column, rows)
        if self._pass == 0:
            uids = block.read_uids()
            ties = np.array([tie_breaker(uids[row]) for row in rows], np.uint64)
            self._ties[rows + block.start] = ties
            if self._training is None:
                width = embeddings_ND.shape[1]
                self._training = _TrainingRows(self._config, self._num_rows, width)
            self._training.add(embeddings_ND, ties)
        elif self._pass == 1:
            self._assign(block, rows, embeddings_ND)
        else:
            self._parts.append((embeddings_ND, rows + block.start))

    def finish_pass(self) -> None:
        if self._pass == 0:
            if self._training is not None:
                self._centroids_KD = self._training.centroids()
                self._training = None
        elif self._pass == 1:
            if self._centroids_KD is not None:
                width = self._centroids_KD.shape[1]
                self._groups = self._cluster_groups(_BYTES_PER_NUMBER * width)
                self._centroids_KD = None
            self.num_passes = 2 + len(self._groups)
        else:
            self._mark_duplicates()
        self._pass += 1

    def keep_mask(self, block: Block) -> NDArray[np.bool_]:
        return ~self._is_duplicate[block.rows]

    def _assign(
        self, block: Block, rows: NDArray[np.int64], embeddings_ND: NDArray[np.float16]
    ) -> None:
        config = self._config
        assert self._centroids_KD is not None
        cluster_NP, similarity = nearest_centroids(
            embeddings_ND, self._centroids_KD, config.num_probes
        )
        self._cluster_NP[rows + block.start, : cluster_NP.shape[1]] = cluster_NP
        if config.keep_best_by == "centroid":
            preference = -similarity
        else:
            scores = block.scores(config.scores, config.column, config.captions)[rows]
            preference = np.nan_to_num(scores, nan=-np.inf).astype(np.float32)
        self._preference[rows + block.start] = preference

    def _cluster_groups(self, row_bytes: int) -> list[tuple[int, int]]:
        """Return ranges of clusters, each of which fits into the memory."""
        counts = np.bincount(self._cluster_NP[self._cluster_NP >= 0])
        max_rows = self._config.memory_bytes // row_bytes
        if counts.max() > max_rows:
            needed = int(counts.max()) * row_bytes
            raise ConfigError(
                f"the largest of {len(counts)} clusters has {counts.max():,} rows, "
                f"which take {needed:,} bytes",
                expected=f"at most memory_bytes, {self._config.memory_bytes:,}",
                action="set a larger memory_bytes or num_clusters, or put exact-duplicate first",
            )
        groups, first, rows = [], 0, 0
        for cluster, count in enumerate(counts.tolist()):
            if rows + count > max_rows:
                groups.append((first, cluster))
                first, rows = cluster, 0
            rows += count
        return [*groups, (first, len(counts))]

    def _mark_duplicates(self) -> None:
        if not self._parts:
            return
        embeddings_ND, rows = map(np.concatenate, zip(*self._parts, strict=True))
        self._parts = []
        rank = preference_ranks(self._preference[rows].astype(np.float64), self._ties[rows])
        first, last = self._groups[self._pass - 2]
        cluster_NP = self._cluster_NP[rows]
        member, probe = np.nonzero((cluster_NP >= first) & (cluster_NP < last))
        cluster = cluster_NP[member, probe]
        order = np.lexsort((rank[member], cluster))
        member = member[order]
        bounds = np.flatnonzero(np.diff(cluster[order])) + 1
        for members in np.split(member, bounds):
            is_duplicate = semantic_duplicates(embeddings_ND[members], 1 - self._config.epsilon)
            self._is_duplicate[rows[members[is_duplicate]]] = True


class _TrainingRows:
    """Rows that k-means learns from: those with the lowest ties, whatever their order."""

    def __init__(self, config: SemanticDuplicateFilter, num_rows: int, width: int) -> None:
        self._config = config
        self._num_observed = 0
        limit = config.memory_bytes // (_TRAINING_BYTES_PER_NUMBER * width)
        self._max_rows = max(
            1, min(limit, _ROWS_PER_CLUSTER * _num_clusters(config, num_rows), num_rows)
        )
        self._embeddings_ND: NDArray[np.float16] = np.zeros((0, width), np.float16)
        self._ties: NDArray[np.uint64] = np.zeros(0, np.uint64)

    def add(self, embeddings_ND: NDArray[np.float16], ties: NDArray[np.uint64]) -> None:
        """Observe rows."""
        self._num_observed += len(ties)
        if len(self._ties) == self._max_rows:
            is_lower = ties < self._ties[-1]
            embeddings_ND, ties = embeddings_ND[is_lower], ties[is_lower]
            if not len(ties):
                return
        all_ties = np.concatenate([self._ties, ties])
        order = np.argsort(all_ties)[: self._max_rows]
        self._embeddings_ND = np.concatenate([self._embeddings_ND, embeddings_ND])[order]
        self._ties = all_ties[order]

    def centroids(self) -> "Tensor":
        """Return the centroids (K, D) of the rows' clusters."""
        num_clusters = min(_num_clusters(self._config, self._num_observed), len(self._ties))
        return spherical_kmeans(self._embeddings_ND, num_clusters, self._config.iterations)


def _num_clusters(config: SemanticDuplicateFilter, num_rows: int) -> int:
    return config.num_clusters or max(1, round(math.sqrt(num_rows)))


def read_embeddings(layer: str, column: pa.Array, rows: NDArray[np.int64]) -> NDArray[np.float16]:
    """Return the embeddings (N, D) of rows of an embedding layer's column, which have one."""
    if not pa.types.is_fixed_size_list(column.type):
        raise ConfigError(
            f"column {EMBEDDING_COLUMN} of layer {layer} was {column.type}",
            expected="one embedding per row, a fixed-size list of numbers",
            action="name a layer of the recipe score-embedding",
        )
    values = column.take(pa.array(rows)).flatten().to_numpy(zero_copy_only=False)
    embeddings_ND: NDArray[np.float16] = values.reshape(len(rows), -1).astype(np.float16)
    return embeddings_ND


def spherical_kmeans(
    embeddings_ND: NDArray[np.float16], num_clusters: int, iterations: int
) -> "Tensor":
    """Return unit centroids (K, D) by Lloyd's algorithm under cosine similarity.

    The first rows are the initial centroids, so rows should come in random order. A cluster that
    loses all its rows moves to the row that is farthest from its own centroid.
    """
    import torch
    from torch.nn import functional as F

    device = _device()
    centroids_KD = _unit(embeddings_ND[:num_clusters], "cpu")
    cluster = np.full(len(embeddings_ND), -1, np.int64)
    similarity = np.zeros(len(embeddings_ND), np.float32)
    step = _block_rows(max(num_clusters, embeddings_ND.shape[1]))
    for _ in range(iterations):
        previous = cluster.copy()
        transposed_DK = centroids_KD.T.to(device)
        # On the CPU, where sums have one order.
        sums_KD = torch.zeros_like(centroids_KD)
        for start in range(0, len(embeddings_ND), step):
            rows = slice(start, start + step)
            unit_BD = _unit(embeddings_ND[rows], device)
            best_B, index_B = (unit_BD @ transposed_DK).max(dim=1)
            sums_KD.index_add_(0, index_B.cpu(), unit_BD.cpu())
            cluster[rows], similarity[rows] = index_B.cpu().numpy(), best_B.cpu().numpy()
        if (cluster == previous).all():
            break
        empty = np.flatnonzero(np.bincount(cluster, minlength=num_clusters) == 0)
        if len(empty):
            farthest = np.argsort(similarity, kind="stable")[: len(empty)]
            sums_KD[torch.from_numpy(empty)] = _unit(embeddings_ND[farthest], "cpu")
        centroids_KD = F.normalize(sums_KD, dim=-1)
    return centroids_KD


def nearest_centroids(
    embeddings_ND: NDArray[np.float16], centroids_KD: "Tensor", num_probes: int = 1
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return each row's centroids (N, P), and the cosine similarity (N) to the first, rounded."""
    device = _device()
    transposed_DK = centroids_KD.T.to(device)
    cluster_NP = np.zeros((len(embeddings_ND), min(num_probes, len(centroids_KD))), np.int64)
    similarity = np.zeros(len(embeddings_ND), np.float32)
    step = _block_rows(max(centroids_KD.shape))
    for start in range(0, len(embeddings_ND), step):
        rows = slice(start, start + step)
        unit_BD = _unit(embeddings_ND[rows], device)
        index_BP = (unit_BD @ transposed_DK).topk(cluster_NP.shape[1], dim=1).indices
        # In fp64, unlike the product above, so that it's the same for any number of rows.
        nearest_BD = transposed_DK.T[index_BP[:, 0]].double()
        exact_B = (unit_BD.double() * nearest_BD).sum(dim=1)
        similarity[rows] = exact_B.round(decimals=_DECIMALS).cpu().numpy()
        cluster_NP[rows] = index_BP.cpu().numpy()
    return cluster_NP, similarity


def semantic_duplicates(embeddings_ND: NDArray[np.float16], threshold: float) -> NDArray[np.bool_]:
    """Return which rows of a cluster are more similar than ``threshold`` to an earlier row.

    Rows come in descending preference. As in the paper's code a row is dropped for any better row,
    kept or not, so that of a chain of similar images only the best remains.
    """
    import torch

    device = _device()
    unit_ND = _unit(embeddings_ND, device)
    is_duplicate = np.zeros(len(embeddings_ND), bool)
    step = _block_rows(len(embeddings_ND))
    for start in range(0, len(embeddings_ND), step):
        stop = min(start + step, len(embeddings_ND))
        is_near = unit_ND[start:stop] @ unit_ND[:stop].T > threshold
        is_near &= torch.ones_like(is_near).tril(start - 1)
        is_duplicate[start:stop] = is_near.any(dim=1).cpu().numpy()
    return is_duplicate


def _block_rows(num_columns: int) -> int:
    return max(1, _NUM_SIMILARITIES // max(1, num_columns))


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _unit(embeddings_ND: NDArray[np.float16], device: str) -> "Tensor":
    """Return unit vectors in fp32: rounding to fp16 changes their lengths."""
    import torch
    from torch.nn import functional as F

    return F.normalize(torch.from_numpy(embeddings_ND).to(device).float(), dim=-1)
