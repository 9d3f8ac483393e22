"""What alerts and dashboards query is what a server, a data stage and a training run export."""

import json
import re
import urllib.error
import urllib.request
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from torch.nn import functional as F

from clipmill.cluster.monitoring import series
from clipmill.cluster.monitoring.dashboards import dashboards, queries
from clipmill.cluster.monitoring.rules import ALERTS, RECORDINGS
from clipmill.cluster.monitoring.series import LABEL_VALUES
from clipmill.data.dataset import Dataset
from clipmill.data.shards.plan import ShardConfig
from clipmill.data.shards.write import write_dataset
from clipmill.engine.config import TrainConfig
from clipmill.engine.objective import Objective
from clipmill.engine.trainer import train
from clipmill.errors import BadSampleReason
from clipmill.serve.client import pixels_request, query
from clipmill.serve.config import ServingConfig
from clipmill.serve.errors import RejectReason
from clipmill.serve.launch import ServerProcess
from clipmill.telemetry import (
    TOTAL_LOSS,
    CheckpointPhase,
    Outcome,
    SkipReason,
    caption_metrics,
    serve_metrics,
)
from helpers.small_models import save_model

NAME = re.compile(r"\bclipmill_(?:train|data|caption|serve)_[a-z0-9_]+\b")
SELECTOR = re.compile(r"(clipmill_[a-z0-9_]+)\{([^{}]*)\}")


def scraped(url):
    """Names of all families' series, and the values of each label, at a ``/metrics``."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as response:
        text = response.read().decode()
    names, values = set(), defaultdict(set)
    for family in text_string_to_metric_families(text):
        if not family.name.startswith("clipmill_"):
            continue
        parts = {"histogram": ("_bucket", "_count", "_sum"), "counter": ("_total",)}
        names |= {family.name + part for part in parts.get(family.type, ("",))}
        total = "_total" if family.type == "counter" else ""
        for sample in family.samples:
            for label, value in sample.labels.items():
                values[family.name + total, label].add(value)
    return names, values


def status_of(server, path, body, headers=None):
    request = urllib.request.Request(f"{server.url}{path}", body, headers or {})
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code


@pytest.fixture(scope="module")
def serving(tmp_path_factory):
    """Series of a server after a good, a malformed, a too large and an overloaded request."""
    folder = tmp_path_factory.mktemp("served")
    models = {
        name: save_model(str(folder / name), task)
        for name, task in (("seg", "segmentation"), ("depth", "depth"))
    }
    config = ServingConfig(max_queue_size=1, max_request_bytes=20_000)
    with ServerProcess(models, log_path=folder / "log", config=config) as server:
        pixels = np.random.default_rng(3).integers(0, 256, (32, 32, 3), np.uint8)
        for name in models:
            query(server.url, name, pixels)
        path = "/v2/models/seg/infer"
        assert status_of(server, path, b"{nonsense") == 400
        assert status_of(server, path, json.dumps({"inputs": "x" * 30_000}).encode()) == 413
        assert status_of(server, "/v2/models/nothing/infer", b"{}") == 404
        body, headers = pixels_request(pixels)
        with ThreadPoolExecutor(8) as pool:
            statuses = []
            # More at once than the queue takes.
            while 503 not in statuses:
                statuses = pool.map(lambda _: status_of(server, path, body, headers), range(8))
        yield scraped(server.url)


class Line(Objective):
    """A straight line, whose loss isn't finite for one of its batches."""

    def __init__(self):
        super().__init__()
        self.slope = torch.nn.Parameter(torch.ones(1))

    def forward(self, batch):
        return {"squared": F.mse_loss(self.slope * batch["x"], batch["y"])}


def line_batches(step, dist):
    while True:
        x = torch.arange(4.0)
        yield {"x": x, "y": x * (float("nan") if step == 2 else 2)}
        step += 1


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    """Series of a process that sharded a folder with bad samples, and trained."""
    folder = tmp_path_factory.mktemp("source")
    for name in ("good", "small", "silent"):
        size = 2 if name == "small" else 40
        Image.new("RGB", (size, size), "navy").save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(" " if name == "silent" else f"a {name} image")
    (folder / "broken.jpg").write_bytes(b"<html>")
    (folder / "broken.txt").write_text("a broken image")
    store = tmp_path_factory.mktemp("store")
    dataset = Dataset.open(write_dataset(ShardConfig(min_side=8), str(folder), str(store)))
    assert dataset.num_samples == 1
    assert set(dataset.quarantine) == {
        BadSampleReason.EMPTY_CAPTION,
        BadSampleReason.IMAGE_TOO_SMALL,
        BadSampleReason.UNREADABLE_IMAGE,
    }
    config = TrainConfig(steps=4, batch_size=4, checkpoint_every=2, log_every=1)
    train(
        lambda dist: Line(),
        line_batches,
        config,
        name="line",
        checkpoint_uri=str(store / "checkpoints"),
        report=lambda *_: None,
    )
    caption_metrics()
    return scraped(f"http://127.0.0.1:{serve_metrics(0)}")


def test_values_that_are_emitted_are_those_that_are_declared(serving, jobs):
    for _, values in (serving, jobs):
        for key, declared in LABEL_VALUES.items():
            assert values[key] <= declared, key
    _, served = serving
    assert served[series.REQUESTS_REJECTED, "reason"] >= {
        RejectReason.PROTOCOL,
        RejectReason.REQUEST_SIZE,
        RejectReason.QUEUE_FULL,
    }
    assert served[series.SERVED_REQUESTS, "code"] >= {"200", "400", "413", "503"}
    _, seen = jobs
    assert seen[series.SAMPLES_REJECTED, "reason"] >= {
        BadSampleReason.EMPTY_CAPTION,
        BadSampleReason.IMAGE_TOO_SMALL,
        BadSampleReason.UNREADABLE_IMAGE,
    }
    assert seen[series.CHECKPOINTS, "outcome"] >= {Outcome.SUCCESS}
    assert seen["clipmill_train_checkpoint_seconds", "phase"] == set(CheckpointPhase)
    assert seen[series.SKIPPED_UPDATES, "reason"] >= {SkipReason.NOT_FINITE}
    assert TOTAL_LOSS in seen[series.LOSS, "term"]


def test_every_series_and_label_of_a_query_is_exported(serving, jobs):
    """Names from what was scraped; values from there, or where declared, from the code."""
    names = serving[0] | jobs[0]
    values = {**jobs[1], **serving[1]}
    recorded = {r.name for r in RECORDINGS}
    texts = [a.expression for a in ALERTS] + [r.expression for r in RECORDINGS]
    texts += [q for dashboard in dashboards().values() for q in queries(dashboard)]
    assert len(texts) > 60
    num_values = 0
    for text in texts:
        for name in recorded:
            text = text.replace(name, "")  # noqa: PLW2901
        assert set(NAME.findall(text)) <= names, text
        for name, selector in SELECTOR.findall(text):
            for label, operator, value in re.findall(r'(\w+)(=~?)"([^"]*)"', selector):
                if label == "namespace":  # a PodMonitor adds it
                    continue
                num_values += 1
                known = LABEL_VALUES.get((name, label), values.get((name, label), set()))
                if operator == "=":
                    assert value in known, f"{name}{{{label}={value!r}}}"
                else:
                    assert any(re.fullmatch(value, k) for k in known), f"{name} {label} {value}"
    assert num_values > 5
