"""Samples of requests' images: bounded, redacted, and never in a request's way."""

import io
import json
import threading
import time

import numpy as np
import pytest
from PIL import Image

from clipmill import stages
from clipmill.errors import ConfigError, StorageError
from clipmill.prediction.run import read_prediction
from clipmill.serve.client import Client
from clipmill.serve.config import SamplingConfig, ServingConfig
from clipmill.serve.launch import ServerProcess
from clipmill.serve.server import sampling
from clipmill.serve.server.sampling import PayloadSampler
from clipmill.serve.smoke_test import scrape_metrics
from clipmill.storage.local import LocalStore
from clipmill.telemetry import SampleOutcome, serving_metrics
from helpers.small_models import save_model

_GPS = 0x8825
_DESCRIPTION = 0x010E


def photo(size=(64, 48)):
    """A JPEG on its side, with a place and a name in its EXIF."""
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[_DESCRIPTION] = "Jane Doe"
    exif.get_ifd(_GPS)[1] = "N"
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", exif=exif, comment=b"secret")
    return file.getvalue()


def wait_for(condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def count(model, outcome):
    return serving_metrics().samples.labels(model, outcome)._value.get()


def offer(sampler, *sources, model):
    sampler.offer(sources, model=model, version="1", digest="d" * 64)


def test_a_servers_samples_are_a_folder_that_predict_reads(tmp_path):
    models = {"seg": save_model(str(tmp_path / "model"), "segmentation")}
    samples = tmp_path / "samples"
    settings = ["sampling.rate=1", f"sampling.store={samples}"]
    config = ServingConfig().override(settings)
    with ServerProcess(models, log_path=tmp_path / "log", config=config) as server:
        client = Client(server.url)
        client.dense("seg", [photo(), photo((80, 60))])
        with pytest.raises(Exception, match="image"):
            client.dense("seg", [b"no image"])
        wait_for(lambda: len(list(samples.rglob("*.json"))) == 2)
        series = 'clipmill_serve_samples_total{model="seg",outcome="written"} 2.0'
        assert series in scrape_metrics(server.url)
        digest = client.metadata("seg")["parameters"]["digest"]
    images = sorted(samples.rglob("*.jpg"))
    assert len(images) == 2
    for path in images:
        assert path.parent.name == "seg"
        record = json.loads(path.with_suffix(".json").read_text())
        assert (record["model"], record["digest"]) == ("seg", digest)
        assert record["time"][:10] == path.parent.parent.name
    uri = stages.predict([], models["seg"], str(samples), str(tmp_path / "out"))
    assert read_prediction(uri)["num_predicted"] == 2


def test_nothing_is_sampled_by_default():
    assert PayloadSampler.open(ServingConfig().sampling) is None  # a rate of 0


def test_a_rate_without_a_store_is_refused_before_models_load(tmp_path):
    with pytest.raises(ConfigError, match=r"no sampling\.store"):
        PayloadSampler.open(SamplingConfig(rate=0.5))
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(StorageError):
        PayloadSampler.open(SamplingConfig(rate=0.5, store=str(file)))
    with pytest.raises(ConfigError, match=r"sampling\.rate was 1\.5"):
        ServingConfig().override(["sampling.rate=1.5"])


@pytest.mark.parametrize("redaction", ["none", "metadata", "downscale"])
def test_redaction(tmp_path, redaction):
    config = SamplingConfig(rate=1, store=str(tmp_path), redaction=redaction, max_side=16)
    sampler = PayloadSampler(config)
    data = photo()
    offer(sampler, data, model=redaction)
    wait_for(lambda: not sampler._num_bytes)
    sampler.close()
    (path,) = tmp_path.rglob("*.jpg")
    if redaction == "none":
        assert path.read_bytes() == data
        return
    image = Image.open(io.BytesIO(path.read_bytes()))
    assert image.size == {"metadata": (48, 64), "downscale": (12, 16)}[redaction]
    assert not image.getexif()
    assert "comment" not in image.info
    assert b"Jane" not in path.read_bytes()


@pytest.mark.parametrize("kind", ["AVIF", "BMP", "GIF", "TIFF"])
@pytest.mark.parametrize("redaction", ["none", "metadata"])
def test_each_format_that_a_server_answers_is_sampled(tmp_path, kind, redaction):
    file, image = io.BytesIO(), Image.new("RGB", (24, 16), "red")
    image.save(file, kind)
    config = SamplingConfig(rate=1, store=str(tmp_path), redaction=redaction)
    sampler = PayloadSampler(config)
    offer(sampler, file.getvalue(), model=f"{kind}-{redaction}")
    sampler.close()
    (path,) = (p for p in tmp_path.rglob("*") if p.is_file() and p.suffix != ".json")
    assert path.suffix == (f".{kind.lower()}" if redaction == "none" else ".jpg")
    with Image.open(path) as sample:
        assert sample.size == (24, 16)


def test_pixels_are_sampled_as_a_file(tmp_path):
    sampler = PayloadSampler(SamplingConfig(rate=1, store=str(tmp_path), redaction="none"))
    offer(sampler, np.full((8, 9, 3), 200, np.uint8), model="pixels")
    wait_for(lambda: not sampler._num_bytes)
    sampler.close()
    (path,) = tmp_path.rglob("*.jpg")
    assert Image.open(io.BytesIO(path.read_bytes())).size == (9, 8)


def test_the_rate_is_the_fraction_of_images(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(PayloadSampler, "_write", lambda self, sample: written.append(sample))
    sampler = PayloadSampler(SamplingConfig(rate=0.2, store=str(tmp_path)))
    offer(sampler, *[b"image"] * 1000, model="rate")
    wait_for(lambda: not sampler._num_bytes)
    sampler.close()
    assert 130 < count("rate", SampleOutcome.WRITTEN) == len(written) < 270


def test_a_slow_store_costs_samples_and_not_memory(tmp_path, monkeypatch):
    entered, go_on = threading.Event(), threading.Event()
    put = LocalStore.put

    def slow_put(self, key, data):
        entered.set()
        assert go_on.wait(30)
        put(self, key, data)

    monkeypatch.setattr(LocalStore, "put", slow_put)
    data = photo()
    config = SamplingConfig(rate=1, store=str(tmp_path), max_queue_bytes=3 * len(data))
    sampler = PayloadSampler(config)
    offer(sampler, data, model="slow")
    assert entered.wait(30)
    offer(sampler, *[data] * 50, model="slow")
    assert sampler._num_bytes == 3 * len(data)
    assert count("slow", SampleOutcome.DROPPED) == 48
    go_on.set()
    wait_for(lambda: not sampler._num_bytes)
    sampler.close()
    assert count("slow", SampleOutcome.WRITTEN) == 3
    assert sampler._num_bytes == 0


def test_a_store_that_fails_is_counted_and_logged_once(tmp_path, monkeypatch, caplog):
    def fail(self, key, data):
        raise StorageError("it is full", expected="room", action="make some")

    monkeypatch.setattr(sampling, "_WARNING_SECONDS", 3600)
    sampler = PayloadSampler(SamplingConfig(rate=1, store=str(tmp_path)))
    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "put", fail)
        offer(sampler, photo(), photo(), b"cut", model="failing")
        wait_for(lambda: count("failing", SampleOutcome.FAILED) == 3)
    assert caplog.text.count("a sample wasn't written") == 1
    offer(sampler, photo(), model="failing")
    wait_for(lambda: not sampler._num_bytes)
    sampler.close()
    assert count("failing", SampleOutcome.WRITTEN) == 1
