"""Recaptioning a real dataset with a small CoCa, and with captioners at a real endpoint."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from clipmill.cli import app
from clipmill.config import digest_json, sha256_bytes
from clipmill.data.captioners import (
    CaptionersConfig,
    CaptionInput,
    ChatClientConfig,
    CocaCaptioner,
    GenerateConfig,
    RewriteConfig,
    VlmConfig,
)
from clipmill.data.dataset import Dataset
from clipmill.data.layers import read_layer
from clipmill.data.loading.view import View, ViewConfig
from clipmill.data.recaption import recaption
from clipmill.data.shards.read import read_shard
from clipmill.errors import BudgetError, ConfigError, ServerError
from clipmill.images import decode_rgb
from clipmill.models.checkpoint import CheckpointMetadata, save_checkpoint
from clipmill.models.coca import build_coca
from clipmill.models.config import ClipConfig, CocaConfig, TextConfig, VisionConfig
from helpers.chat_server import ChatServer

COCA = CocaConfig(
    clip=ClipConfig(
        embed_dim=8,
        vision=VisionConfig(image_size=16, patch_size=8, width=8, layers=1, head_width=8),
        text=TextConfig(context_length=12, vocab_size=600, width=8, heads=2, layers=1),
    ),
    decoder_layers=1,
    num_queries=2,
)
CONFIG = CaptionersConfig(
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
    metadata = CheckpointMetadata(kind="coca", architecture=COCA.to_json(), recipe={})
    return save_checkpoint(str(folder), metadata, coca.state_dict())


def rows_of(dataset, layer, tmp_path):
    opened = Dataset.open(dataset.uri)
    return [
        row
        for index in range(len(opened.shards))
        for row in read_layer(opened, layer, index, tmp_path / "cache").to_pylist()
    ]


@pytest.fixture
def labels(tmp_path):
    """A captioner that loads nothing: every sample shows a cube."""

    def make(dataset):
        file = tmp_path / "labels.jsonl"
        uids = [uid for index in range(len(dataset.shards)) for uid in dataset.uids(index)]
        rows = [{"uid": uid, "labels": ["cube"]} for uid in uids]
        file.write_text("\n".join(json.dumps(row) for row in rows))
        return f"template:{file}"

    return make


def summary_of(dataset, layer):
    return json.loads((Path(dataset.layer_uri(layer)) / "layer.json").read_text())["summary"]


def layer_files(dataset, layer):
    folder = Path(dataset.layer_uri(layer))
    return {f.name: f.read_bytes() for f in folder.iterdir() if f.name != "layer.json"}


def test_each_row_is_what_the_captioner_says_of_its_picture(make_dataset, captioner, tmp_path):
    dataset = make_dataset(count=10)
    layer = recaption(CONFIG, dataset.uri, captioner.uri, report=silent)
    rows = rows_of(dataset, layer, tmp_path)
    model = CocaCaptioner(captioner.uri, CONFIG.generate)
    expected = []
    for index in range(len(dataset.shards)):
        with read_shard(dataset, index, tmp_path / "cache") as reader:
            for row in range(len(reader)):
                uid, real = reader.uid(row), reader.caption(row)
                image = decode_rgb(reader.image(row))
                ((_, said),) = model.caption([CaptionInput(uid=uid, caption=real, image=image)])
                expected.append(
                    {
                        "uid": uid,
                        "captions": list(said.texts) or [real],
                        "scores": [pytest.approx(s, abs=1e-5) for s in said.scores] or [None],
                        "fallback": not said.texts,
                        "reason": said.reason,
                    }
                )
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
    summary = record["summary"]
    assert json.loads(summary["sampling"]) == CONFIG.generate.to_json()
    assert (summary["model"], summary["seed"]) == (captioner.uri, "0")
    assert summary["left as they were"] == "none"


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
    assert summary_of(dataset, layer)["left as they were"] == "5 empty"
    for row in rows_of(dataset, layer, tmp_path):
        assert (row["fallback"], row["reason"], row["scores"]) == (True, "empty", [None])
        (text,) = row["captions"]
        assert text.startswith("picture ")


# Ranges of shards.


def test_workers_share_a_dataset_and_the_last_one_completes_the_layer(make_dataset, captioner):
    dataset = make_dataset(count=20, samples_per_shard=4)
    assert len(dataset.shards) == 5
    done = []

    def note(count, total, words):
        done.append((count, total))

    def work(start, stop):
        done.clear()
        return recaption(CONFIG, dataset.uri, captioner.uri, report=note, start=start, stop=stop)

    layer = work(3, 5)
    assert done[-1] == (8, 8)
    assert sorted(layer_files(dataset, layer)) == [
        f"0000{k}.{suffix}" for k in (3, 4) for suffix in ("json", "parquet")
    ]
    assert work(0, 2) == layer
    assert not Dataset.open(dataset.uri).layers
    folder = Path(dataset.layer_uri(layer))
    written = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    # It overlaps with the first, whose shards are left alone.
    assert work(2, 4) == layer
    assert layer in Dataset.open(dataset.uri).layers
    assert all(path.stat().st_mtime_ns == then for path, then in written.items())


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (2, 2), (0, 9), (5, None)])
def test_ranges_that_are_none(make_dataset, captioner, start, stop):
    dataset = make_dataset(count=20, samples_per_shard=4)
    with pytest.raises(ConfigError, match=r"the range of shards was .* to"):
        recaption(CONFIG, dataset.uri, captioner.uri, report=silent, start=start, stop=stop)


def test_the_command_captions_a_range_of_an_s3_dataset(s3, make_dataset, labels, tmp_path):
    """What lies there afterwards is what lies here, the places of datasets aside."""
    local = make_dataset(count=10)
    remote = make_dataset(count=10, store=f"s3://tests/{tmp_path.name}")
    done = []
    for dataset in (local, remote):
        for shards in (["--start", "1", "--stop", "3"], []):
            command = ["data", "recaption", dataset.uri, "--captioner", labels(local), *shards]
            said = CliRunner().invoke(app, command, catch_exceptions=False)
            assert said.exit_code == 0
            done.append(said.stdout.strip())
    assert len(set(done)) == 1
    layers = [Dataset.open(dataset.uri).layers[done[0]] for dataset in (local, remote)]
    assert layers[0] == layers[1]
    assert rows_of(remote, done[0], tmp_path) == rows_of(local, done[0], tmp_path)


# Single bad samples.


def break_image(dataset, index, row):
    """Overwrite an image in its shard, and make the dataset's list agree to it."""
    root = Path(dataset.uri)
    with read_shard(dataset, index, root / "unused-cache") as reader:
        good = reader.image(row)
    tar = root / "shards" / dataset.shards[index].name
    data = tar.read_bytes().replace(good, b"\x00" * len(good))
    tar.write_bytes(data)
    for name in ("dataset.json", f"shards/{index:05d}.json"):
        text = (root / name).read_text().replace(dataset.shards[index].sha256, sha256_bytes(data))
        (root / name).write_text(text)
    value = json.loads((root / "dataset.json").read_text())
    value["digest"] = digest_json(value["shards"])
    (root / "dataset.json").write_text(json.dumps(value))
    return Dataset.open(dataset.uri)


def test_an_image_that_cannot_be_decoded_stops_nothing(make_dataset, captioner, tmp_path):
    dataset = break_image(make_dataset(count=9), 0, 1)
    layer = recaption(CONFIG, dataset.uri, captioner.uri, report=silent)
    rows = rows_of(dataset, layer, tmp_path)
    assert [row["reason"] for row in rows].count("unreadable_image") == 1
    assert rows[1]["reason"] == "unreadable_image"
    assert rows[1]["captions"][0].startswith("picture ")
    assert "1 unreadable_image" in summary_of(dataset, layer)["left as they were"]
    # Most of the rest is captioned, with no regard to the one that is broken.
    whole = [row for row in rows if not row["fallback"]]
    assert len(whole) >= 6


def test_a_sample_that_a_model_trips_over_stops_nothing(
    make_dataset, captioner, tmp_path, monkeypatch
):
    """The model raises whenever a picture is of a certain height, alone or among others."""
    dataset = make_dataset(count=9)
    caption = CocaCaptioner.caption

    def trip(self, inputs):
        if any(i.image.height == 7 for i in inputs):
            raise RuntimeError("odd shape")
        return caption(self, inputs)

    monkeypatch.setattr(CocaCaptioner, "caption", trip)
    layer = recaption(CONFIG, dataset.uri, captioner.uri, report=silent)
    rows = rows_of(dataset, layer, tmp_path)
    assert [row["reason"] for row in rows].count("failed") == 3
    assert sum(not row["reason"] for row in rows) >= 5


def test_a_model_that_fails_on_everything_is_no_samples_fault(make_dataset, captioner, monkeypatch):
    def fail_always(self, inputs):
        raise RuntimeError("broken driver")

    monkeypatch.setattr(CocaCaptioner, "caption", fail_always)
    dataset = make_dataset(count=9)
    with pytest.raises(RuntimeError, match="broken driver"):
        recaption(CONFIG, dataset.uri, captioner.uri, report=silent)
    assert not Dataset.open(dataset.uri).layers


# Endpoints.

KEY = "sk-Very_Secret-123"
ENDPOINT = ChatClientConfig(
    max_outage_seconds=0,
    backoff_seconds=0.001,
    max_attempts=2,
    timeout_seconds=5,
    concurrency=2,
    max_consecutive_failures=4,
)


@pytest.fixture
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def rewriting(**endpoint):
    changes = [f"{name}={value}" for name, value in endpoint.items()]
    return CaptionersConfig(
        rewrite=RewriteConfig(model="m", prompt="{caption}", num_captions=2),
        endpoint=ENDPOINT.override(changes),
        batch_size=3,
    )


def test_rewrites_become_a_layer(make_dataset, tmp_path, no_proxy):
    dataset = make_dataset(count=10)
    with ChatServer() as server:
        layer = recaption(rewriting(), dataset.uri, f"rewrite:{server.url}", report=silent)
        assert layer.startswith("captions/rewrite-")
        rows = rows_of(dataset, layer, tmp_path)
        assert recaption(rewriting(), dataset.uri, f"rewrite:{server.url}", report=fail) == layer
        assert sum(server.counts().values()) == 10
    for row in rows:
        assert re.fullmatch(r"about picture \d, take 0", row["captions"][0])
        assert row["captions"][1] == row["captions"][0].removesuffix("0") + "1"
        assert row["scores"] == [-0.5, -1.5]
        assert not row["fallback"]
    summary = summary_of(dataset, layer)
    assert (summary["model"], summary["endpoint"]) == ("m", server.url)
    assert not list(Path(dataset.uri).rglob("*.part.json"))
    View(Dataset.open(dataset.uri), ViewConfig(captions="synthetic", layer=layer))


def test_pictures_that_the_endpoint_refuses_keep_their_caption(make_dataset, tmp_path, no_proxy):
    dataset = break_image(make_dataset(count=10), 1, 0)
    # One request after the other, so that the answers come in the script's order.
    endpoint = replace(ENDPOINT, concurrency=1)
    config = CaptionersConfig(vlm=VlmConfig(model="m"), endpoint=endpoint, batch_size=4)
    script = ["ok", (400, {}), "filtered", "ok", (500, {}), "ok", "malformed"]
    with ChatServer(script) as server:
        layer = recaption(config, dataset.uri, f"vlm:{server.url}", report=silent)
    reasons = sorted(row["reason"] for row in rows_of(dataset, layer, tmp_path) if row["reason"])
    assert reasons == ["refused", "refused", "unreadable_image"]
    assert summary_of(dataset, layer)["left as they were"] == "2 refused, 1 unreadable_image"


def test_a_spent_budget_stops_cleanly_and_every_run_goes_on(make_dataset, tmp_path, no_proxy):
    """No budget is enough for a shard, and yet nothing is asked twice."""
    dataset = make_dataset(count=23, samples_per_shard=10)
    runs = 0
    with ChatServer() as server:
        while True:
            runs += 1
            config = rewriting(max_requests=5)
            try:
                layer = recaption(config, dataset.uri, f"rewrite:{server.url}", report=silent)
                break
            except BudgetError:
                assert not Dataset.open(dataset.uri).layers
        assert len(server.bodies) == 23
        assert set(server.counts().values()) == {1}
    assert runs == 5
    assert len(rows_of(dataset, layer, tmp_path)) == 23
    other = make_dataset(count=23, samples_per_shard=10, store=str(tmp_path / "other"))
    with ChatServer() as server:
        recaption(rewriting(), other.uri, f"rewrite:{server.url}", report=silent)
    assert layer_files(other, layer) == layer_files(dataset, layer)


def test_an_endpoint_that_goes_down_leaves_no_trace_of_it(make_dataset, tmp_path, no_proxy):
    dataset = make_dataset(count=12, samples_per_shard=12)
    with ChatServer(["ok"] * 5 + [(500, {})] * 50) as server:
        uri = f"rewrite:{server.url}"
        with pytest.raises(ServerError, match="4 samples in a row"):
            recaption(rewriting(), dataset.uri, uri, report=silent)
    with ChatServer() as server:
        layer = recaption(rewriting(), dataset.uri, f"rewrite:{server.url}", report=silent)
        assert len(server.bodies) == 7
    assert not any(row["fallback"] for row in rows_of(dataset, layer, tmp_path))


def test_the_key_lies_in_no_file_and_no_message(
    make_dataset, tmp_path, no_proxy, monkeypatch, caplog, capfd
):
    monkeypatch.setenv("MODEL_KEY", KEY)
    caplog.set_level("DEBUG")
    dataset = make_dataset(count=6)
    config = rewriting(key_variable="MODEL_KEY", max_requests=4)
    with ChatServer(answer=lambda body, k: f"{KEY} leaks {k}") as server:
        messages = []
        for _ in range(3):
            try:
                recaption(config, dataset.uri, f"rewrite:{server.url}", report=silent)
            except BudgetError as error:
                messages.append(str(error))
        assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert messages
    assert Dataset.open(dataset.uri).layers
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 20
    assert not [path for path in files if KEY.encode() in path.read_bytes()]
    # Parquet may compress what it holds.
    (layer,) = Dataset.open(dataset.uri).layers
    assert KEY not in repr(rows_of(dataset, layer, tmp_path))
    out, err = capfd.readouterr()
    assert KEY not in caplog.text + out + err + "".join(messages)


def test_failed_samples_are_retried_into_another_layer(make_dataset, tmp_path, no_proxy):
    dataset = make_dataset(count=12, samples_per_shard=4)
    with ChatServer(["ok", (500, {}), (500, {}), "ok", (400, {})]) as server:
        config = rewriting(max_attempts=1, concurrency=1)
        uri = f"rewrite:{server.url}"
        first = recaption(config, dataset.uri, uri, report=silent)
        before = rows_of(dataset, first, tmp_path)
        assert sorted(row["reason"] for row in before if row["reason"]) == [
            *("refused", "unavailable", "unavailable")
        ]
        files = layer_files(dataset, first)
        num_requests = len(server.bodies)
        second = recaption(config, dataset.uri, uri, report=silent, retry=True)
        assert second == f"{first}-retry1"
        assert len(server.bodies) == num_requests + 2
        assert layer_files(dataset, first) == files
        after = rows_of(dataset, second, tmp_path)
        for old, new in zip(before, after, strict=True):
            if old["reason"] == "unavailable":
                assert not new["fallback"]
            else:
                assert new == old
        # Nothing is left to retry.
        assert recaption(config, dataset.uri, uri, report=fail, retry=True) == second
