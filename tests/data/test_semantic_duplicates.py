"""Semantic deduplication: the paper's rule, by shards and with little memory."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from clipmill.data.dataset import Dataset, cache_folder
from clipmill.data.duplicates import tie_breaker
from clipmill.data.filters import ScoreRangeFilter
from clipmill.data.layers import read_layer
from clipmill.data.select import SelectConfig, filter_steps, select
from clipmill.data.semantic_duplicates import (
    SemanticDuplicateFilter,
    nearest_centroids,
    semantic_duplicates,
    spherical_kmeans,
)
from clipmill.errors import ConfigError
from helpers.bare_dataset import add_layer, bare_dataset

SIZES = (40, 0, 75, 1, 84)
NUM_ROWS = sum(SIZES)
WIDTH = 16


def silent(done, total, words):
    pass


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPMILL_CACHE", str(tmp_path / "cache"))


def embedded(folder, sizes=SIZES, missing=()):
    """A dataset whose row 2k + 1 is nearly row 2k, in the first half of its rows."""
    random = np.random.default_rng(0)
    rows = random.standard_normal((NUM_ROWS, WIDTH))
    copies = np.arange(1, NUM_ROWS // 2, 2)
    rows[copies] = rows[copies - 1] + 0.01 * random.standard_normal((len(copies), WIDTH))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    values = pa.array(rows.astype(np.float16).ravel())
    mask = pa.array(np.isin(np.arange(NUM_ROWS), missing))
    dataset = add_layer(
        bare_dataset(folder, sizes),
        "score/embedding-1",
        {"image": pa.FixedSizeListArray.from_arrays(values, WIDTH, mask=mask)},
    )
    scores = random.random(NUM_ROWS).astype(np.float32)
    aesthetic = {"aesthetic": pa.array(scores)}
    return add_layer(dataset, "score/aesthetic-1", aesthetic), rows.astype(np.float16), scores


def keep_of(dataset, *filters):
    layer = select(
        SelectConfig(name="s", filters=filter_steps(*filters)), dataset.uri, report=silent
    )
    opened = Dataset.open(dataset.uri)
    tables = [read_layer(opened, layer, i, cache_folder()) for i in range(len(opened.shards))]
    return np.concatenate([table["keep"].to_numpy() for table in tables])


def expected_keep(rows, cluster, preference, epsilon):
    """The rule of the paper's code: pairs above the diagonal of a sorted matrix."""
    ties = np.array([tie_breaker(f"u{row}") for row in range(len(rows))], np.uint64)
    unit = rows.astype(np.float32)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    keep = np.ones(len(rows), bool)
    for number in np.unique(cluster):
        members = np.flatnonzero(cluster == number)
        members = members[np.lexsort((ties[members], -preference[members]))]
        matrix = np.triu(unit[members] @ unit[members].T, k=1)
        keep[members[matrix.max(axis=0) > 1 - epsilon]] = False
    return keep


def clusters_of(rows, num_clusters):
    ties = np.array([tie_breaker(f"u{row}") for row in range(len(rows))], np.uint64)
    training = rows[np.argsort(ties)][: 128 * num_clusters]
    centroids = spherical_kmeans(training, num_clusters, 20)
    cluster, similarity = nearest_centroids(rows, centroids)
    return cluster[:, 0], similarity


@pytest.mark.parametrize("num_clusters", [1, 7])
def test_the_row_farthest_from_the_centroid_is_kept(tmp_path, num_clusters):
    dataset, rows, _ = embedded(tmp_path / "d")
    rule = SemanticDuplicateFilter(epsilon=0.01, num_clusters=num_clusters)
    cluster, similarity = clusters_of(rows, num_clusters)
    expected = expected_keep(rows, cluster, -similarity, 0.01)
    assert (keep_of(dataset, rule) == expected).all()
    assert 40 <= (~expected).sum() <= 50


def test_the_row_of_the_best_score_is_kept(tmp_path):
    dataset, _, scores = embedded(tmp_path / "d")
    rule = SemanticDuplicateFilter(
        epsilon=0.01,
        num_clusters=1,
        keep_best_by="score",
        scores="score/aesthetic",
        column="aesthetic",
    )
    keep = keep_of(dataset, rule)
    copies = np.arange(1, NUM_ROWS // 2, 2)
    assert (keep[copies] == (scores[copies] > scores[copies - 1])).all()
    assert (keep[copies] != keep[copies - 1]).all()


def test_little_memory_takes_more_passes_and_gives_the_same(tmp_path):
    dataset, _, _ = embedded(tmp_path / "d")
    rule = SemanticDuplicateFilter(epsilon=0.01, num_clusters=20)
    # k-means learns from 40 rows either way, once its rows are few.
    needed = 10 * WIDTH * NUM_ROWS
    states = []
    original = SemanticDuplicateFilter.create_state

    def create_state(self, num_rows):
        states.append(original(self, num_rows))
        return states[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SemanticDuplicateFilter, "create_state", create_state)
        more_training = keep_of(dataset, replace(rule, memory_bytes=2 * needed))
        patch.setattr("clipmill.data.semantic_duplicates._ROWS_PER_CLUSTER", 2)
        little = keep_of(dataset, replace(rule, memory_bytes=needed // 4))
        again = keep_of(dataset, replace(rule, memory_bytes=needed))
    assert states[0].num_passes == 3
    assert states[1].num_passes > 4
    assert (little == again).all()
    assert more_training.sum() < NUM_ROWS
    assert little.sum() < NUM_ROWS


def test_a_second_probe_finds_pairs_across_borders(tmp_path):
    """Points on a circle, so close that each is a duplicate of its neighbors."""
    angles = np.linspace(0, 2 * np.pi, NUM_ROWS, endpoint=False)
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float16)
    image = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), 2)
    dataset = bare_dataset(tmp_path / "d", SIZES)
    dataset = add_layer(dataset, "score/embedding-1", {"image": image})
    rule = SemanticDuplicateFilter(epsilon=0.001, num_clusters=4)
    parted = keep_of(dataset, rule)
    # Around the circle each arc keeps the two ends, or one where they meet.
    both = keep_of(dataset, replace(rule, num_probes=2))
    more_passes = replace(rule, num_probes=2, memory_bytes=10 * 2 * NUM_ROWS)
    assert both.sum() < parted.sum()
    assert not (both & ~parted).any()
    assert (keep_of(dataset, more_passes) == both).all()
    # More probes than clusters are all clusters: what one cluster would give, by this preference.
    everywhere = keep_of(dataset, replace(rule, num_probes=9))
    cluster, similarity = clusters_of(rows, 4)
    assert (everywhere == expected_keep(rows, 0 * cluster, -similarity, 0.001)).all()


def test_the_order_of_rows_in_shards_is_irrelevant(tmp_path):
    one, _, _ = embedded(tmp_path / "one")
    other, _, _ = embedded(tmp_path / "other", sizes=(NUM_ROWS,))
    rule = SemanticDuplicateFilter(epsilon=0.01, num_clusters=5)
    assert (keep_of(one, rule) == keep_of(other, rule)).all()


def test_rejected_and_missing_rows_take_no_part(tmp_path):
    dataset, _, scores = embedded(tmp_path / "d", missing=(0, 3))
    rule = SemanticDuplicateFilter(epsilon=0.01, num_clusters=1)
    keep = keep_of(
        dataset,
        ScoreRangeFilter(layer="score/aesthetic", column="aesthetic", min_score=0.5),
        rule,
    )
    copies = np.arange(5, NUM_ROWS // 2, 2)
    reaches = scores >= np.float32(0.5)
    # Of a pair one stays if any reaches the score; where one alone reaches it, that one.
    assert (keep[copies] | keep[copies - 1] == reaches[copies] | reaches[copies - 1]).all()
    assert not (keep & ~reaches).any()
    assert not (keep[copies] & keep[copies - 1]).any()
    # Rows without an embedding have no duplicates.
    assert (keep[:4] == reaches[:4]).all()


def test_a_chain_leaves_its_best_row():
    angles = np.array([0.0, 0.1, 0.2, 0.3])
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float16)
    # cos(0.1) = 0.995, cos(0.2) = 0.980: each is a duplicate of the one before it alone.
    assert semantic_duplicates(rows, 0.99).tolist() == [False, True, True, True]


def test_blocks_give_the_same_duplicates(monkeypatch):
    random = np.random.default_rng(1)
    rows = random.standard_normal((60, 4)).astype(np.float16)
    whole_matrix = semantic_duplicates(rows, 0.9)
    monkeypatch.setattr("clipmill.data.semantic_duplicates._NUM_SIMILARITIES", 60 * 7)
    assert (semantic_duplicates(rows, 0.9) == whole_matrix).all()
    assert 5 < whole_matrix.sum() < 55


def test_an_empty_cluster_moves_to_a_far_row():
    rows = np.array([[1, 0], [1, 0], [1, 0], [0, 1]], np.float16)
    centroids = spherical_kmeans(rows, 2, 10)
    assert sorted(centroids.round().tolist()) == [[0, 1], [1, 0]]


def test_a_cluster_beyond_memory_is_an_error(tmp_path):
    dataset, _, _ = embedded(tmp_path / "d")
    rule = SemanticDuplicateFilter(num_clusters=1, memory_bytes=10 * WIDTH * 150)
    with pytest.raises(ConfigError, match="the largest of 1 clusters has 200 rows"):
        keep_of(dataset, rule)


def test_embeddings_of_another_form_are_an_error(tmp_path):
    lists = pa.array([[[1.0, 0.0]]] * 4, pa.list_(pa.list_(pa.float32())))
    dataset = add_layer(bare_dataset(tmp_path / "d", (4,)), "score/embedding-1", {"image": lists})
    with pytest.raises(ConfigError, match="column image of layer score/embedding was list"):
        keep_of(dataset, SemanticDuplicateFilter())


def test_no_row_left(tmp_path):
    dataset, _, _ = embedded(tmp_path / "d")
    nothing = ScoreRangeFilter(layer="score/aesthetic", column="aesthetic", min_score=2.0)
    assert not keep_of(dataset, nothing, SemanticDuplicateFilter()).any()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epsilon", 0.0),
        ("epsilon", 1.0),
        ("num_clusters", -1),
        ("num_probes", 0),
        ("iterations", 0),
    ],
)
def test_values_out_of_range(name, value):
    with pytest.raises(ConfigError, match=f"{name} was"):
        SemanticDuplicateFilter(**{name: value})


def test_a_score_range_keeps_its_limits(tmp_path):
    dataset = add_layer(
        bare_dataset(tmp_path / "d", (5,)),
        "score/nsfw-1",
        {"nsfw": pa.array([0.0, 0.5, 0.7, None, 0.71], pa.float32())},
    )
    low = ScoreRangeFilter(layer="score/nsfw", column="nsfw", max_score=0.7)
    assert keep_of(dataset, low).tolist() == [True, True, True, False, False]
    between = ScoreRangeFilter(layer="score/nsfw", column="nsfw", min_score=0.5, max_score=0.7)
    assert keep_of(dataset, between).tolist() == [False, True, True, False, False]


@pytest.mark.parametrize("limits", [{}, {"min_score": 0.6, "max_score": 0.5}])
def test_a_score_range_needs_a_range(limits):
    with pytest.raises(ConfigError, match="min_score was"):
        ScoreRangeFilter(layer="score/nsfw", **limits)
