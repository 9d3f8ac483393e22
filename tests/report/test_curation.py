"""The report of a selection, read by its elements."""

import io
import json
import re

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from typer.testing import CliRunner

from clipmill.cli import app
from clipmill.data.dataset import Dataset, cache_folder
from clipmill.data.filters import ClipScoreFilter, ImageSizeFilter, ScoreRangeFilter
from clipmill.data.layers import commit_layer, read_layer, write_layer_shard
from clipmill.data.select import SelectConfig, filter_steps, select
from clipmill.data.semantic_duplicates import SemanticDuplicateFilter
from clipmill.data.shards.plan import ShardConfig
from clipmill.data.shards.write import write_dataset
from clipmill.data.stats import StreamingRange
from clipmill.errors import ConfigError
from clipmill.report.curation import CurationReportConfig, curation_page
from clipmill.report.html.charts import before_after_histogram

COUNT = 30
FILTERS = filter_steps(
    ScoreRangeFilter(layer="score/nsfw", column="nsfw", max_score=0.5),
    ImageSizeFilter(min_side=8),
    ClipScoreFilter(threshold=0.9),
    SemanticDuplicateFilter(epsilon=0.01, num_clusters=1),
)


def silent(done, total, words):
    pass


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPMILL_CACHE", str(tmp_path / "cache"))


def add(dataset, name, **columns):
    first = 0
    for index, shard in enumerate(dataset.shards):
        rows = pa.table(columns).slice(first, shard.num_samples)
        first += shard.num_samples
        uids = pa.array(dataset.uids(index), pa.string())
        write_layer_shard(dataset, name, index, rows.add_column(0, "uid", uids))
    return commit_layer(dataset, name, parents=(), detail={})


@pytest.fixture
def dataset(tmp_path):
    """Pictures; rows 6k are unsafe, rows 6k + 1 and 6k + 2 alike, and one caption is markup."""
    random = np.random.default_rng(0)
    source = tmp_path / "source"
    source.mkdir()
    for i in range(COUNT):
        data = io.BytesIO()
        Image.fromarray(random.integers(0, 256, (8, 9, 3), np.uint8)).save(data, "PNG")
        (source / f"{i:03d}.png").write_bytes(data.getvalue())
        (source / f"{i:03d}.txt").write_text("<b>bold</b>" if i == 1 else f"caption {i}")
    config = ShardConfig(samples_per_shard=12)
    scored = Dataset.open(write_dataset(config, str(source), str(tmp_path / "store")))
    unsafe = pa.array([0.9 if i % 6 == 0 else 0.1 for i in range(COUNT)], pa.float32())
    scored = add(scored, "score/nsfw-1", nsfw=unsafe)
    clip = pa.array([0.5 if i == 5 else 0.95 for i in range(COUNT)], pa.float32())
    scored = add(scored, "score/clip-1", real=clip)
    scored = add(scored, "score/image-1", width=pa.array([9] * COUNT), height=pa.array([8] * COUNT))
    rows = random.standard_normal((COUNT, 8))
    rows[2::6] = rows[1::6]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    embeddings = pa.FixedSizeListArray.from_arrays(pa.array(rows.astype(np.float16).ravel()), 8)
    return add(scored, "score/embedding-1", image=embeddings)


def page_of(dataset, layer, **settings):
    config = CurationReportConfig(**settings)
    opened = Dataset.open(dataset.uri)
    return curation_page(opened, layer, config, cache_folder(), report=silent)


def words_of(page):
    return " ".join(re.sub(r"<[^>]*>", " ", page.partition("</head>")[2]).split())


def test_counts_settings_and_samples(dataset):
    layer = select(SelectConfig(name="curated", filters=FILTERS), dataset.uri, report=silent)
    page = page_of(dataset, "select/curated", num_samples=4)
    words = words_of(page)
    # 5 of 30 are unsafe, then one has a low CLIP score, then 5 pairs lose one.
    assert "samples before 30 kept 19 share kept 63.3% dropped 11 filters 4" in words
    assert "score-range layer score/nsfw, column nsfw, max_score 0.5 5 16.7% of 30" in words
    assert "image-size min_side 8 0 0.0% of 25" in words
    assert "clip-score threshold 0.9 1 4.0% of 25" in words
    assert "semantic-duplicate epsilon 0.01, num_clusters 1 5 20.8% of 24" in words
    assert "Kept 4 of 19, drawn at random." in words
    assert "Dropped by score-range 4 of 5, drawn at random." in words
    assert "nsfw 0.9" in words
    assert "clip 0.5" in words
    assert "Dropped by image-size" not in words
    assert "nsfw median 0.1 → 0.1" in words
    assert "Content-Security-Policy" in page
    assert layer in words


def test_a_semantic_duplicate_is_beside_what_it_repeats(dataset):
    layer = select(SelectConfig(name="curated", filters=FILTERS), dataset.uri, report=silent)
    page = page_of(dataset, layer, num_samples=5)
    section = page.partition('id="dropped-semantic-duplicate"')[2].partition("</section>")[0]
    pairs = re.findall(
        r"dropped <code>(\w+)</code>.*?kept <code>(\w+)</code>.*?similarity ([\d.]+)", section
    )
    assert len(pairs) == 5
    opened = Dataset.open(dataset.uri)
    uids = [uid[:12] for index in range(len(opened.shards)) for uid in opened.uids(index)]
    keep = [
        value
        for index in range(len(opened.shards))
        for value in read_layer(opened, layer, index, cache_folder())["keep"].to_pylist()
    ]
    for dropped, kept, similarity in pairs:
        first, second = sorted((uids.index(dropped), uids.index(kept)))
        assert (first % 6, second) == (1, first + 1)
        assert keep[uids.index(kept)]
        assert float(similarity) == pytest.approx(1, abs=1e-3)


def test_captions_are_text(dataset):
    select(SelectConfig(name="all", filters=FILTERS[1:2]), dataset.uri, report=silent)
    page = page_of(dataset, "select/all", num_samples=COUNT)
    assert "&lt;b&gt;bold&lt;/b&gt;" in page
    assert "<b>bold</b>" not in page


def test_samples_depend_on_the_seed_alone(dataset):
    select(SelectConfig(name="all", filters=FILTERS), dataset.uri, report=silent)
    first = page_of(dataset, "select/all", num_samples=3)
    assert page_of(dataset, "select/all", num_samples=3) == first
    assert page_of(dataset, "select/all", num_samples=3, seed=1) != first


def test_a_layer_of_another_tool(dataset):
    """It may have neither reasons in an order nor filters."""
    for index in range(len(dataset.shards)):
        uids = dataset.uids(index)
        keep = [number % 2 == 0 for number in range(len(uids))]
        rows = {
            "uid": pa.array(uids, pa.string()),
            "keep": keep,
            "refused_by": pa.array([None if k else "theirs" for k in keep], pa.string()),
            "caption": ["real"] * len(uids),
            "caption_index": pa.array([0] * len(uids), pa.int32()),
        }
        write_layer_shard(dataset, "select/theirs", index, pa.table(rows))
    scored = commit_layer(dataset, "select/theirs", parents=(), detail={})
    assert "theirs 15 50.0% of 30" in words_of(page_of(scored, "select/theirs"))


def test_a_layer_that_isnt_there(dataset):
    with pytest.raises(ConfigError, match="no layers of the dataset are named select/x"):
        page_of(dataset, "select/x")
    with pytest.raises(ConfigError, match="num_samples was 0"):
        CurationReportConfig(num_samples=0)


def test_the_command(dataset, tmp_path):
    layer = select(SelectConfig(name="curated", filters=FILTERS), dataset.uri, report=silent)
    path = tmp_path / "page.html"
    arguments = ["data", "selection-report", dataset.uri, layer, "--output", str(path), "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {"page": str(path)}
    assert path.read_text().startswith("<!DOCTYPE html>")


def test_both_histograms_have_one_scale():
    values = np.linspace(0, 1, 100)
    before = StreamingRange()
    before.add(values)
    whole = before.distribution([values])
    after = StreamingRange()
    after.add(values[80:])
    after.low, after.high = before.low, before.high
    part = after.distribution([values[80:]])
    figure = before_after_histogram("x", whole, part)
    heights = {
        kind: [
            float(height)
            for height in re.findall(rf'height="([\d.]+)" rx="1" class="{kind}"', figure)
        ]
        for kind in ("before", "after")
    }
    assert heights["after"][:18] == [0.0] * 18
    assert heights["after"][-1] == heights["before"][-1] > 0
