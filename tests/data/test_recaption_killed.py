"""Workers that are killed, doubled and started again end with what an undisturbed one makes."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clipmill.data.captioners import CaptionersConfig, ChatClientConfig, RewriteConfig
from clipmill.data.dataset import Dataset
from clipmill.data.recaption import recaption
from helpers.chat_server import ChatServer

CONFIG = CaptionersConfig(
    rewrite=RewriteConfig(model="m", prompt="{caption}"),
    endpoint=ChatClientConfig(concurrency=2, backoff_seconds=0.01),
    batch_size=2,
)
# What a worker does, and a line once it has begun.
WORKER = """
import json, sys
from clipmill.data.captioners import CaptionersConfig
from clipmill.data.recaption import recaption
config, dataset, captioner, start, stop = json.loads(sys.argv[1])
told = []
def report(done, total, words):
    if not told:
        told.append(print("begun", flush=True))
config = CaptionersConfig.from_json(config)
recaption(config, dataset, captioner, report=report, start=start, stop=stop)
"""
# Somewhat less than the work takes, so that several are killed before one is done.
LATEST_SECONDS = 0.15


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPMILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def start_worker(dataset, captioner, start=0, stop=None):
    arguments = json.dumps([CONFIG.to_json(), dataset.uri, captioner, start, stop])
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, arguments], stdout=subprocess.PIPE, env=dict(os.environ)
    )


def end_of(worker):
    """The exit status, once it has ended."""
    with worker:
        worker.stdout.read()
    return worker.returncode


def content(dataset):
    """Bytes of all that lies in the layer, and its digest."""
    opened = Dataset.open(dataset.uri)
    (layer,) = opened.layers.values()
    folder = Path(opened.layer_uri(layer.name))
    # Its own record names the dataset's place.
    files = {f.name: f.read_bytes() for f in folder.iterdir() if f.name != "layer.json"}
    return layer, files


@pytest.fixture
def labels(make_dataset, tmp_path):
    """A captioner that is done as soon as it has begun."""

    def make(dataset):
        file = tmp_path / "labels.jsonl"
        uids = [uid for index in range(len(dataset.shards)) for uid in dataset.uids(index)]
        rows = [{"uid": uid, "labels": ["cube", f"ball {k}"]} for k, uid in enumerate(uids)]
        file.write_text("\n".join(json.dumps(row) for row in rows))
        return f"template:{file}"

    return make


def drill(make_dataset, captioner_of, tmp_path, kills, seed):
    """Kill so many workers, let one finish; the disturbed dataset and the undisturbed one."""
    dataset = make_dataset(count=24, samples_per_shard=2)
    captioner = captioner_of(dataset)
    random_seconds = random.Random(seed)
    died = 0
    for _ in range(kills):
        worker = start_worker(dataset, captioner)
        assert worker.stdout.readline() in (b"begun\n", b"")
        time.sleep(random_seconds.uniform(0, LATEST_SECONDS))
        worker.kill()
        died += end_of(worker) != 0
    assert end_of(start_worker(dataset, captioner)) == 0
    assert died
    undisturbed = make_dataset(count=24, samples_per_shard=2, store=str(tmp_path / "undisturbed"))
    recaption(CONFIG, undisturbed.uri, captioner, report=lambda *_: None)
    return dataset, undisturbed


def check_template(make_dataset, labels, tmp_path, kills, seed=0):
    dataset, undisturbed = drill(make_dataset, labels, tmp_path, kills, seed)
    assert content(dataset) == content(undisturbed)


def check_endpoint(make_dataset, tmp_path, kills, seed=0):
    with ChatServer() as server:
        dataset, undisturbed = drill(
            make_dataset, lambda _: f"rewrite:{server.url}", tmp_path, kills, seed
        )
        asked = len(server.bodies)
    assert content(dataset) == content(undisturbed)
    # Both runs, and for each kill at most the batch that it was at.
    assert asked <= 2 * 24 + kills * CONFIG.batch_size


def test_a_few_killed_workers(make_dataset, labels, tmp_path):
    check_template(make_dataset, labels, tmp_path, kills=3)


def test_a_few_killed_workers_at_an_endpoint(make_dataset, tmp_path):
    check_endpoint(make_dataset, tmp_path, kills=3)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_many_killed_workers(make_dataset, labels, tmp_path, seed):
    check_template(make_dataset, labels, tmp_path, kills=10, seed=seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_many_killed_workers_at_an_endpoint(make_dataset, tmp_path, seed):
    check_endpoint(make_dataset, tmp_path, kills=10, seed=seed)


def test_workers_at_once_on_ranges_that_overlap(make_dataset, labels, tmp_path):
    dataset = make_dataset(count=24, samples_per_shard=2)
    captioner = labels(dataset)
    ranges = [(0, 8), (4, 12), (0, None)]
    workers = [start_worker(dataset, captioner, *shards) for shards in ranges]
    assert [end_of(worker) for worker in workers] == [0, 0, 0]
    undisturbed = make_dataset(count=24, samples_per_shard=2, store=str(tmp_path / "undisturbed"))
    recaption(CONFIG, undisturbed.uri, captioner, report=lambda *_: None)
    assert content(dataset) == content(undisturbed)
