"""Rules of selection over whole datasets, against plain numpy."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipmill.data.dataset import Dataset
from clipmill.data.duplicates import ExactDuplicateFilter
from clipmill.data.filters import (
    ClipScoreFilter,
    ClipTopFractionFilter,
    ConceptBalanceFilter,
    ImageSizeFilter,
)
from clipmill.data.layers import read_layer
from clipmill.data.select import (
    CaptionSelectionConfig,
    FilterStep,
    SelectConfig,
    filter_steps,
    select,
)
from clipmill.errors import ConfigError
from clipmill.lineage import lineage
from helpers.bare_dataset import add_layer, bare_dataset

SYNTHETIC = "captions/s-1"
SIZES = (7, 0, 20, 1, 12)


def silent(done, total, words):
    pass


def fail(done, total, words):
    pytest.fail("worked again")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPMILL_CACHE", str(tmp_path / "cache"))


def scored(folder, seed=0, sizes=SIZES):
    """A dataset with captions and scores drawn at random, and the drawn values."""
    random = np.random.default_rng(seed)
    count = sum(sizes)
    dataset = bare_dataset(folder, sizes)
    counts = random.integers(1, 4, count)
    drawn = {
        "side": random.integers(100, 400, count),
        "content": random.integers(0, count, count),
        "real": random.random(count, np.float32).round(2),
        "synthetic": [random.random(n, np.float32).round(2).tolist() for n in counts],
        "concepts": [random.integers(0, 3, n - 1).tolist() for n in counts],
    }
    captions = [[f"text {row} {k}" for k in range(n)] for row, n in enumerate(counts)]
    dataset = add_layer(dataset, SYNTHETIC, {"captions": captions})
    content = [bytes([value]) * 16 for value in drawn["content"]]
    image = {
        "width": drawn["side"].astype(np.int32),
        "height": np.full(count, 300, np.int32),
        "content_hash": pa.array(content, pa.binary(16)),
    }
    dataset = add_layer(dataset, "score/image-1", image)
    synthetic = pa.array(drawn["synthetic"], pa.list_(pa.float32()))
    dataset = add_layer(dataset, "score/clip-1", {"real": drawn["real"], SYNTHETIC: synthetic})
    concepts = pa.array(drawn["concepts"], pa.list_(pa.int32()))
    return add_layer(dataset, "score/concepts-1", {"real": concepts}), drawn


def rows_of(dataset, layer, tmp_path):
    opened = Dataset.open(dataset.uri)
    tables = [
        read_layer(opened, layer, index, tmp_path / "cache") for index in range(len(opened.shards))
    ]
    return pa.concat_tables(tables)


def top(scores, fraction):
    return scores >= -np.sort(-scores)[min(int(len(scores) * fraction), len(scores) - 1)]


def test_each_filter_sees_what_the_earlier_left(tmp_path):
    dataset, drawn = scored(tmp_path / "d")
    config = SelectConfig(
        name="test",
        filters=filter_steps(
            ImageSizeFilter(min_side=150),
            ClipTopFractionFilter(fraction=0.7),
            ExactDuplicateFilter(),
            ClipTopFractionFilter(fraction=0.5),
        ),
    )
    layer = select(config, dataset.uri, report=silent)
    assert layer.startswith("select/test-")
    table = rows_of(dataset, layer, tmp_path)
    assert table["uid"].to_pylist() == [f"u{row}" for row in range(sum(SIZES))]

    refused = np.full(sum(SIZES), "", object)
    refused[drawn["side"] < 150] = "image-size"
    alive = np.flatnonzero(refused == "")
    refused[alive[~top(drawn["real"][alive], 0.7)]] = "clip-top-fraction-1"
    alive = np.flatnonzero(refused == "")
    found = np.array(table["refused_by"].fill_null("").to_pylist(), object)
    duplicates = np.flatnonzero(found == "exact-duplicate")
    survivors = np.setdiff1d(alive, duplicates)
    # One of each content, and none wider than it among those it stands for.
    assert len(np.unique(drawn["content"][survivors])) == len(survivors)
    for row in duplicates:
        stays = survivors[drawn["content"][survivors] == drawn["content"][row]]
        assert drawn["side"][stays[0]] >= drawn["side"][row]
    assert len(survivors) + len(duplicates) == len(alive)
    refused[duplicates] = "exact-duplicate"
    refused[survivors[~top(drawn["real"][survivors], 0.5)]] = "clip-top-fraction-2"
    assert found.tolist() == refused.tolist()
    assert table["keep"].to_pylist() == (refused == "").tolist()
    assert set(table["caption"].to_pylist()) == {"real"}

    node = lineage(dataset.layer_uri(layer))
    assert node.detail["kept"] == str((refused == "").sum())
    assert node.detail["refused by image-size"] == str((refused == "image-size").sum())
    assert {p.role for p in node.parents} == {"dataset", "score"}


def choice_of(table):
    return list(zip(table["caption"].to_pylist(), table["caption_index"].to_pylist(), strict=True))


def best_synthetic(drawn, row):
    scores = np.array(drawn["synthetic"][row], np.float32)
    return int(scores.argmax()), scores.max()


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10**6), st.sampled_from(["real", "synthetic", "best", "mix"]))
def test_choice_of_captions(tmp_path_factory, seed, strategy):
    folder = tmp_path_factory.mktemp("choice")
    dataset, drawn = scored(folder / "d", seed)
    config = SelectConfig(
        name="c", caption_selection=CaptionSelectionConfig(strategy=strategy, fraction=0.4)
    )
    table = rows_of(dataset, select(config, dataset.uri, report=silent), folder)
    in_top = top(drawn["real"], 0.4)
    expected = []
    for row, real in enumerate(drawn["real"]):
        place, score = best_synthetic(drawn, row)
        is_real = {
            "real": True,
            "synthetic": False,
            "best": real >= score,
            "mix": in_top[row],
        }[strategy]
        expected.append(("real", 0) if is_real else (SYNTHETIC, place))
    assert choice_of(table) == expected
    assert all(table["keep"].to_pylist())


def test_mixed_captions_under_the_same_threshold(tmp_path):
    dataset, drawn = scored(tmp_path / "d")
    choice = CaptionSelectionConfig(strategy="mix", fraction=0.3, threshold_synthetic_too=True)
    layer = select(SelectConfig(name="c", caption_selection=choice), dataset.uri, report=silent)
    table = rows_of(dataset, layer, tmp_path)
    in_top = top(drawn["real"], 0.3)
    threshold = drawn["real"][in_top].min()
    best = np.array([best_synthetic(drawn, row)[1] for row in range(sum(SIZES))])
    assert table["keep"].to_pylist() == (in_top | (best >= threshold)).tolist()
    assert set(table["refused_by"].to_pylist()) == {None, "caption-choice"}


def test_filters_can_judge_the_chosen_caption(tmp_path):
    dataset, drawn = scored(tmp_path / "d")
    filters = filter_steps(ClipScoreFilter(threshold=0.5, captions="selected"))
    config = SelectConfig(
        name="c", caption_selection=CaptionSelectionConfig(strategy="best"), filters=filters
    )
    table = rows_of(dataset, select(config, dataset.uri, report=silent), tmp_path)
    best = [max(real, *drawn["synthetic"][row]) for row, real in enumerate(drawn["real"])]
    assert table["keep"].to_pylist() == [score >= 0.5 for score in best]


def test_how_a_dataset_is_cut_is_no_matter(tmp_path):
    config = SelectConfig(
        name="c",
        caption_selection=CaptionSelectionConfig(strategy="mix"),
        filters=filter_steps(
            ExactDuplicateFilter(), ConceptBalanceFilter(max_count=5), ClipTopFractionFilter()
        ),
    )
    found = []
    for name, sizes in (("one", (40,)), ("many", SIZES)):
        dataset, _ = scored(tmp_path / name, sizes=sizes)
        table = rows_of(dataset, select(config, dataset.uri, report=silent), tmp_path)
        found.append(table.to_pylist())
    assert found[0] == found[1]


def test_done_once(tmp_path):
    dataset, _ = scored(tmp_path / "d")
    config = SelectConfig(name="c", filters=filter_steps(ImageSizeFilter()))
    layer = select(config, dataset.uri, report=silent)
    files = sorted(Path(dataset.uri).glob("layers/select/*/*"))
    written = [file.read_bytes() for file in files]
    assert select(config, dataset.uri, report=fail) == layer
    spelled = SelectConfig(
        name="c", filters=(FilterStep(filter="image-size", settings={"min_side": 200}),)
    )
    assert spelled == config
    other = SelectConfig(name="c", filters=filter_steps(ImageSizeFilter(min_side=1)))
    assert select(other, dataset.uri, report=silent) != layer
    # What a killed run left is written again, byte for byte.
    (Path(dataset.layer_uri(layer)) / "layer.json").unlink()
    (Path(dataset.layer_uri(layer)) / "00002.parquet").unlink()
    manifest = Path(dataset.uri) / "dataset.json"
    value = json.loads(manifest.read_text())
    del value["layers"][layer]
    manifest.write_text(json.dumps(value))
    assert select(config, dataset.uri, report=silent) == layer
    assert [file.read_bytes() for file in files] == written


def test_layers_by_the_beginning_of_their_name(tmp_path):
    dataset, drawn = scored(tmp_path / "d")
    real = 1 - drawn["real"]
    dataset = add_layer(dataset, "score/clip-2", {"real": real})
    config = SelectConfig(name="c", filters=filter_steps(ClipScoreFilter(threshold=0.5)))
    with pytest.raises(ConfigError, match="2 layers of the dataset are named score/clip"):
        select(config, dataset.uri, report=silent)
    layer = select(config, dataset.uri, layers=["score/clip-2"], report=silent)
    assert rows_of(dataset, layer, tmp_path)["keep"].to_pylist() == (real >= 0.5).tolist()
    assert select(config, dataset.uri, layers=["score/clip-1"], report=silent) != layer


def test_what_is_missing(tmp_path):
    dataset = bare_dataset(tmp_path / "d", (3, 2))
    filters = filter_steps(ClipTopFractionFilter())
    with pytest.raises(ConfigError, match="no layers of the dataset are named score/clip"):
        select(SelectConfig(name="c", filters=filters), dataset.uri, report=silent)
    best = SelectConfig(name="c", caption_selection=CaptionSelectionConfig(strategy="best"))
    with pytest.raises(ConfigError, match="has no captions layer"):
        select(best, dataset.uri, report=silent)
    dataset = add_layer(dataset, "score/clip-1", {"real": np.zeros(5, np.float32)})
    add_layer(dataset, SYNTHETIC, {"captions": [["a"]] * 5})
    with pytest.raises(ConfigError, match=f"has no column {SYNTHETIC}"):
        select(best, dataset.uri, report=silent)


def test_a_rule_from_the_command_line(tmp_path):
    given_ = '[{"filter": "image-size", "settings": {"min_side": 250}}, {"filter": "clip-score",'
    given_ += ' "settings": {"threshold": 0.2}}]'
    config = SelectConfig(name="c").override(
        [f"filters={given_}", "caption_selection.strategy=best"]
    )
    assert config.filters == filter_steps(
        ImageSizeFilter(min_side=250), ClipScoreFilter(threshold=0.2)
    )
    assert SelectConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ({"filter": "image-sizes"}, "there is no filter 'image-sizes'"),
        ({"filter": "image-size", "settings": {"side": 1}}, "image-size.side is not a field"),
        ({"filter": "image-size", "settings": {"min_side": "x"}}, "image-size.min_side was 'x'"),
        ({"filter": "clip-score"}, "clip-score.threshold is missing"),
        ({"filter": "clip-top-fraction", "settings": {"fraction": 2.0}}, "fraction was 2.0"),
    ],
)
def test_mistakes_in_a_step(step, words):
    with pytest.raises(ConfigError, match=words):
        FilterStep.from_json(step)
