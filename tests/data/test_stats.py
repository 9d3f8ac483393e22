"""A dataset's numbers against numpy's over the same values."""

import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipmill.data.dataset import Dataset
from clipmill.data.layers import commit_layer, write_layer_shard
from clipmill.data.stats import (
    NUM_BINS,
    QUANTILES,
    StreamingRange,
    dataset_stats,
    distribution_from_counts,
    sample_shards,
)

CAPTIONS = "captions/test-1"
QUANTILE_METHOD = "inverted_cdf"


def add_layer(
    dataset: Dataset, layer: str, columns: Callable[[int, int], dict[str, object]]
) -> Dataset:
    """Commit a layer whose columns are a function of the shard and its number of samples."""
    for index in range(len(dataset.shards)):
        uids = dataset.uids(index)
        table = pa.table({"uid": uids, **columns(index, len(uids))})
        write_layer_shard(dataset, layer, index, table)
    return commit_layer(dataset, layer, parents=(), detail={})


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=200))
def test_counts_are_numpys(values: list[int]) -> None:
    found = distribution_from_counts(Counter(values))
    assert (found.count, found.missing) == (len(values), 0)
    assert found.mean == pytest.approx(np.mean(values))
    assert (found.low, found.high) == (min(values), max(values))
    expected = np.quantile(values, QUANTILES, method=QUANTILE_METHOD)
    assert found.quantiles == tuple(expected)
    assert found.bins == tuple(np.histogram(values, NUM_BINS, (min(values), max(values)))[0])


floats = st.floats(-1e6, 1e6) | st.just(math.nan) | st.just(math.inf)


@given(st.lists(st.lists(floats, max_size=50), min_size=1, max_size=5))
def test_a_stream_is_nearly_numpys(pieces: list[list[float]]) -> None:
    arrays = [np.array(piece, np.float64) for piece in pieces]
    extent = StreamingRange()
    for piece in arrays:
        extent.add(piece)
    found = extent.distribution(arrays)
    everything = np.concatenate(arrays)
    values = everything[np.isfinite(everything)]
    assert (found.count, found.missing) == (len(values), len(everything) - len(values))
    if not len(values):
        assert found.quantiles == found.bins == ()
        return
    assert found.mean == pytest.approx(values.mean(), abs=1e-6)
    assert (found.low, found.high) == (values.min(), values.max())
    assert sum(found.bins) == len(values)
    expected = np.quantile(values, QUANTILES, method=QUANTILE_METHOD)
    tolerance = (values.max() - values.min()) / (NUM_BINS * 128) + 1e-9
    assert np.abs(np.array(found.quantiles) - expected).max() <= tolerance


def test_captions_and_pictures(
    make_dataset: Callable[..., Dataset],
    add_captions: Callable[[Dataset, str], Dataset],
    tmp_path: Path,
) -> None:
    dataset = add_captions(make_dataset(10), CAPTIONS)
    stats = dataset_stats(dataset, tmp_path / "cache")
    assert (stats.num_samples, stats.num_shards, stats.shards_read) == (10, 3, 3)
    assert stats.num_bytes == sum(shard.num_bytes for shard in dataset.shards)
    real, synthetic = stats.captions["real"], stats.captions[CAPTIONS]
    assert (real.per_sample, real.words.count, real.words.mean) == (1, 10, 2)
    assert real.characters.mean == len("picture 0")
    assert (synthetic.per_sample, synthetic.words.count, synthetic.words.mean) == (3, 30, 3)
    heights = [6 + i % 3 for i in range(10)]
    assert stats.images["width"].quantiles == (8,) * 5
    assert stats.images["height"].mean == pytest.approx(np.mean(heights))
    assert stats.images["shorter side"].high == 8
    assert stats.suffixes == {".jpg": 4, ".png": 3, ".webp": 3}
    assert stats.layers[CAPTIONS].digest == dataset.layers[CAPTIONS].digest
    assert "uid" in stats.layers[CAPTIONS].columns


def test_scores_and_verdicts(make_dataset: Callable[..., Dataset], tmp_path: Path) -> None:
    dataset = make_dataset(10)
    drawn = {i: np.random.default_rng(i).normal(size=4).tolist() for i in range(3)}
    drawn[0][0] = None
    dataset = add_layer(
        dataset,
        "score/clip",
        lambda i, n: {
            "real": pa.array(drawn[i][:n], pa.float32()),
            "hamming": list(range(n)),
            "captions/coca-1": [[row - 1.0, float(row)] if row else [None] for row in range(n)],
            "comment": ["x"] * n,
            "hash": pa.array([2**64 - 1] * n, pa.uint64()),
        },
    )
    dataset = add_layer(
        dataset,
        "select/basic",
        lambda i, n: {
            "keep": [row > 0 for row in range(n)],
            "refused_by": [None if row else f"rule{i % 2}" for row in range(n)],
            "caption": ["real" for _ in range(n)],
            "caption_index": pa.array([0 for _ in range(n)], pa.int32()),
        },
    )
    stats = dataset_stats(dataset, tmp_path / "cache")
    columns = stats.scores["score/clip"]
    assert list(columns) == ["real", "hamming", "captions/coca-1"]
    values = np.array([v for i in range(3) for v in drawn[i][: (4, 4, 2)[i]] if v is not None])
    assert (columns["real"].count, columns["real"].missing) == (9, 1)
    assert columns["real"].mean == pytest.approx(values.mean(), rel=1e-6)
    assert columns["hamming"].high == 3
    # Of a sample's captions the best one counts.
    best = columns["captions/coca-1"]
    assert (best.count, best.missing, best.low, best.high) == (7, 3, 1.0, 3.0)
    verdict = stats.verdicts["select/basic"]
    assert (verdict.kept, verdict.refused) == (7, 3)
    assert verdict.reasons == {"rule0": 2, "rule1": 1}


def test_some_shards(make_dataset: Callable[..., Dataset], tmp_path: Path) -> None:
    dataset = make_dataset(23)
    assert sample_shards(dataset, 0) == sample_shards(dataset, 99) == [0, 1, 2, 3, 4, 5]
    assert sample_shards(dataset, 2) == [0, 5]
    stats = dataset_stats(dataset, tmp_path / "cache", max_shards=2)
    assert (stats.num_samples, stats.shards_read) == (23, 2)
    assert stats.captions["real"].words.count == 4 + 3


def test_json_holds_no_nan(make_dataset: Callable[..., Dataset], tmp_path: Path) -> None:
    dataset = add_layer(make_dataset(5), "score/none", lambda i, n: {"real": [math.nan] * n})
    value = dataset_stats(dataset, tmp_path / "cache").to_json()
    again = json.loads(json.dumps(value, allow_nan=False))
    assert again["scores"]["score/none"]["real"]["mean"] is None
    assert again["scores"]["score/none"]["real"]["missing"] == 5
