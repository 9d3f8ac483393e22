"""Recaptioning a real dataset with a small CoCa."""

import json
from pathlib import Path

import pytest
import torch

from clipmill.data.captioners import CocaCaptioner, GenerateConfig
from clipmill.data.dataset import Dataset
from clipmill.data.images import decode_rgb
from clipmill.data.layers import read_layer
from clipmill.data.reader import read_shard
from clipmill.data.recaption import RecaptionConfig, recaption
from clipmill.data.view import View, ViewConfig
from clipmill.models.checkpoint import ModelCard, save_checkpoint
from clipmill.models.towers import ClipConfig, CocaConfig, TextConfig, VisionConfig, build_coca

COCA = CocaConfig(
    clip=ClipConfig(
        embed_dim=8,
        vision=VisionConfig(image_size=16, patch_size=8, width=8, layers=1, head_width=8),
        text=TextConfig(context_length=12, vocab_size=600, width=8, heads=2, layers=1),
    ),
    decoder_layers=1,
    num_queries=2,
)
CONFIG = RecaptionConfig(
    generate=GenerateConfig(method="top_k", top_k=1, max_tokens=8), batch_size=3
)


def silent(done, total, words):
    pass


def fail(done, total, words):
    pytest.fail("worked again")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPMILL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def captioner(tmp_path):
    return save_captioner(tmp_path / "captioner")


def save_captioner(folder, seed=0, token=None):
    """A CoCa with random weights; with ``token`` it says that one whatever it sees."""
    torch.manual_seed(seed)
    coca = build_coca(COCA)
    with torch.no_grad():
        if token is not None:
            coca.text_decoder.ln_final.weight.zero_()
            coca.text_decoder.ln_final.bias.fill_(1.0)
            coca.text_decoder.text_projection.zero_()
            coca.text_decoder.text_projection[:, token] = 1.0
    card = ModelCard(kind="coca", architecture=COCA.to_json(), recipe={})
    return save_checkpoint(str(folder), card, coca.state_dict())


def rows_of(dataset, layer, tmp_path):
    opened = Dataset.open(dataset.uri)
    return [
        row
        for index in range(len(opened.shards))
        for row in read_layer(opened, layer, index, tmp_path / "cache").to_pylist()
    ]


def test_each_row_is_what_the_captioner_says_of_its_picture(make_dataset, captioner, tmp_path):
    dataset = make_dataset(count=10)
    layer = recaption(CONFIG, dataset.uri, captioner.uri, report=silent)
    rows = rows_of(dataset, layer, tmp_path)
    model = CocaCaptioner(captioner.uri, CONFIG.generate)
    expected = []
    for index in range(len(dataset.shards)):
        with read_shard(dataset, index, tmp_path / "cache") as reader:
            for row in range(len(reader)):
                (said,) = model.caption([decode_rgb(reader.image(row))], seed=index)
                shown = said or reader.caption(row)
                expected.append({"uid": reader.uid(row), "captions": [shown], "fallback": not said})
    assert rows == expected
    assert len(rows) == 10


def test_the_layer_can_be_trained_on_and_names_its_maker(make_dataset, captioner):
    dataset = make_dataset(count=5)
    layer = recaption(CONFIG, dataset.uri, captioner.uri, report=silent)
    opened = Dataset.open(dataset.uri)
    View(opened, ViewConfig(captions="both", layer=layer))
    record = json.loads((Path(opened.layer_uri(layer)) / "layer.json").read_text())
    roles = {parent["role"]: parent["digest"] for parent in record["parents"]}
    assert roles == {"dataset": dataset.digest, "captioner": captioner.digest}
    assert record["summary"]["method"] == "top_k"


def test_done_once(make_dataset, captioner):
    dataset = make_dataset(count=5)
    layer = recaption(CONFIG, dataset.uri, captioner.uri, report=silent)
    assert recaption(CONFIG, dataset.uri, captioner.uri, report=fail) == layer


def test_an_interrupted_run_keeps_finished_shards(make_dataset, captioner, tmp_path):
    dataset = make_dataset(count=10)

    def stop(done, total, words):
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recaption(CONFIG, dataset.uri, captioner.uri, report=stop)
    assert not Dataset.open(dataset.uri).layers
    (first,) = Path(dataset.uri).glob("layers/captions/*/00000.parquet")
    written = first.stat().st_mtime_ns
    layer = recaption(CONFIG, dataset.uri, captioner.uri, report=silent)
    assert first.stat().st_mtime_ns == written
    assert len(rows_of(dataset, layer, tmp_path)) == 10


def test_other_ways_and_models_make_other_layers(make_dataset, captioner, tmp_path):
    dataset = make_dataset(count=3)
    other = save_captioner(tmp_path / "other", seed=1)
    changed = CONFIG.override(["generate.max_tokens=9"])
    layers = {
        recaption(CONFIG, dataset.uri, captioner.uri, report=silent),
        recaption(changed, dataset.uri, captioner.uri, report=silent),
        recaption(CONFIG, dataset.uri, other.uri, report=silent),
    }
    assert len(layers) == 3
    assert Dataset.open(dataset.uri).layers.keys() == layers
    # How many pictures are captioned together is no part of the name.
    batched = CONFIG.override(["batch_size=1"])
    assert recaption(batched, dataset.uri, captioner.uri, report=fail) in layers


def test_where_nothing_is_said_the_real_caption_stands_in(make_dataset, tmp_path):
    """This captioner ends each text as soon as it may, and has filled it with nothing."""
    silent_model = save_captioner(tmp_path / "silent", token=0)
    dataset = make_dataset(count=5)
    layer = recaption(CONFIG, dataset.uri, silent_model.uri, report=silent)
    for row in rows_of(dataset, layer, tmp_path):
        assert row["fallback"]
        (text,) = row["captions"]
        assert text.startswith("picture ")
