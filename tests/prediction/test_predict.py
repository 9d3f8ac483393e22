"""Batch inference against a live server, over kills, and over bad images."""

import io
import json
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from clipmill import stages
from clipmill.data.dataset import Dataset
from clipmill.data.layers import read_layer
from clipmill.data.shards.plan import ShardConfig
from clipmill.data.shards.write import write_dataset
from clipmill.errors import ArtifactError, BadSampleReason, SourceError
from clipmill.lineage import lineage
from clipmill.models.checkpoint import CheckpointMetadata, save_checkpoint
from clipmill.models.config import ClipConfig, TextConfig, VisionConfig
from clipmill.models.towers import build_clip
from clipmill.prediction.config import PredictionConfig
from clipmill.prediction.plan import plan_prediction, read_prediction_plan
from clipmill.prediction.run import predict_shards, read_prediction
from clipmill.serve.client import Client
from clipmill.serve.config import ServingConfig
from clipmill.serve.errors import RejectReason
from clipmill.serve.launch import ServerProcess
from clipmill.serve.protocol.rle import decode_rle
from clipmill.stage_records import no_progress, read_stages
from clipmill.storage import join, open_store, read_bytes
from clipmill.tasks.predictor import Predictor
from helpers.small_models import save_model

TASKS = ("segmentation", "depth", "detection", "classification")
CLIP = ClipConfig(
    embed_dim=16,
    vision=VisionConfig(image_size=32, patch_size=8, width=32, layers=2, head_width=16),
    text=TextConfig(context_length=16, vocab_size=1000, width=32, heads=2, layers=2),
)
NUM_IMAGES = 5
NETWORK_PIXELS = 2700
"""Below the size of the larger images, which are scaled down for the network."""
SMALL_SHARDS = ["images_per_shard=2", "num_threads=2"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """URIs of a small model for each task, and of a CLIP."""
    folder = tmp_path_factory.mktemp("models")
    uris = {task: save_model(str(folder / task), task) for task in TASKS}
    torch.manual_seed(0)
    metadata = CheckpointMetadata(kind="clip", architecture=CLIP.to_json(), recipe={})
    save_checkpoint(str(folder / "clip"), metadata, build_clip(CLIP).state_dict())
    return {**uris, "clip": str(folder / "clip")}


def jpeg(number):
    pixels = np.random.default_rng(number).integers(0, 256, (40 + number, 64, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90)
    return file.getvalue()


@pytest.fixture
def images(tmp_path):
    """Folder of photos with captions."""
    folder = tmp_path / "images"
    (folder / "below").mkdir(parents=True)
    for number in range(NUM_IMAGES):
        path = folder / ("below" if number % 2 else "") / f"{number}.jpg"
        path.write_bytes(jpeg(number))
        path.with_suffix(".txt").write_text(f"a photo {number}")
    return folder


@pytest.fixture
def no_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPMILL_CACHE", str(tmp_path / "cache"))


def table(uri):
    return pq.read_table(io.BytesIO(read_bytes(join(uri, "predictions.parquet")))).to_pylist()


def contents(uri, folder="files"):
    store = open_store(uri)
    return {key: store.get(key) for key in store.list(folder)}


@pytest.fixture(scope="module")
def server(models, tmp_path_factory):
    log_path = tmp_path_factory.mktemp("server") / "server.log"
    config = ServingConfig().override([f"max_network_pixels={NETWORK_PIXELS}"])
    with ServerProcess(models, log_path=log_path, config=config) as process:
        yield process


def test_results_are_the_servers_answers_bit_for_bit(server, models, images, tmp_path):
    """Server and batch run with the threads of OMP_NUM_THREADS, and a batch holds one image."""
    client, store = Client(server.url), str(tmp_path / "store")
    options = [*SMALL_SHARDS, f"serving.max_network_pixels={NETWORK_PIXELS}"]
    uris = {name: stages.predict(options, models[name], str(images), store) for name in models}
    rows = {name: {row["uid"]: row for row in table(uri)} for name, uri in uris.items()}
    objects = json.loads(read_bytes(join(uris["detection"], "coco_results.json")))
    listed = json.loads(read_bytes(join(uris["detection"], "coco_images.json")))
    ids = {image["file_name"]: image["id"] for image in listed["images"]}
    names = sorted(ids)
    assert len(names) == NUM_IMAGES
    for name in names:
        data = (images / name).read_bytes()
        for task in ("segmentation", "depth"):
            request = urllib.request.Request(
                f"{server.url}/v2/models/{task}/infer?output=png",
                data,
                {"Content-Type": "image/jpeg"},
            )
            with urllib.request.urlopen(request) as response:
                answer = response.read()
            assert read_bytes(join(uris[task], rows[task][name]["file"])) == answer
        answer = client.infer("classification", images=[data])["probabilities"][0]
        row = rows["classification"][name]
        assert np.array_equal(np.array(row["probabilities"], np.float32), answer)
        assert row["label"] == ("ground", "cube", "ball")[answer.argmax()]
        assert np.float32(row["probability"]) == answer.max()
        answer = client.infer("clip", images=[data])["image_embedding"][0]
        assert np.array_equal(np.array(rows["clip"][name]["embedding"], np.float32), answer)
        answer = client.infer("detection", images=[data])
        own = [item for item in objects if item["image_id"] == ids[name]]
        assert rows["detection"][name]["num_objects"] == len(own) == answer["counts"][0] > 0
        x1, y1, x2, y2 = answer["boxes"].astype(np.float64).T
        assert [item["bbox"] for item in own] == np.stack([x1, y1, x2 - x1, y2 - y1], 1).tolist()
        assert [item["score"] for item in own] == answer["scores"].tolist()
        assert [item["category_id"] - 1 for item in own] == answer["labels"].tolist()
        masks = [decode_rle(item["segmentation"]) for item in own]
        assert np.array_equal(masks, answer["masks"])


def test_pycocotools_loads_the_detections(models, images, tmp_path):
    uri = stages.predict(SMALL_SHARDS, models["detection"], str(images), str(tmp_path / "s"))
    truth = COCO()
    truth.dataset = json.loads(read_bytes(join(uri, "coco_images.json"))) | {"annotations": []}
    truth.createIndex()
    loaded = truth.loadRes(join(uri, "coco_results.json"))
    assert set(loaded.getImgIds()) == set(range(1, NUM_IMAGES + 1))
    assert [c["name"] for c in loaded.loadCats(loaded.getCatIds())] == ["ground", "cube", "ball"]


def test_a_killed_process_loses_nothing_but_its_shard(models, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(16):
        (folder / f"{number:02d}.jpg").write_bytes(jpeg(number))
    options = ["images_per_shard=1"]
    settings = [text for option in options for text in ("--set", option)]
    store = tmp_path / "store"
    command = [sys.executable, "-m", "clipmill", "predict", models["depth"]]
    command += ["--data", str(folder), "--store", str(store), *settings, "--json"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while len(before := set(store.rglob("*.record.json"))) < 3:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*.record.json")}
    assert 3 <= len(before) < 16
    assert not list(store.rglob("prediction.json"))
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    result = json.loads(ended.stdout)
    assert (result["num_images"], result["num_predicted"], result["rejected"]) == (16, 16, {})
    assert f"next: clipmill show {result['uri']}" in ended.stderr
    other = stages.predict(options, models["depth"], str(folder), str(tmp_path / "other"))
    assert read_prediction(other)["digest"] == read_prediction(result["uri"])["digest"]
    assert contents(other) == contents(result["uri"])


class OddImages:
    """A predictor's ``predict`` that fails on images of one size."""

    def __init__(self, size):
        self._predict, self._size = Predictor.predict, size

    def __get__(self, predictor, kind):
        def predict(images):
            if any(image.shape[:2] == self._size for image in images):
                raise RuntimeError("no kernel for this size")
            return self._predict(predictor, images)

        return predict


@pytest.mark.parametrize("batch_size", [1, 3])
def test_bad_images_are_counted_by_reason(models, images, tmp_path, monkeypatch, batch_size):
    (images / "cut.jpg").write_bytes(jpeg(0)[:300])
    (images / "empty.png").touch()
    (images / "large.jpg").write_bytes(jpeg(1) + bytes(30_000))
    Image.new("RGB", (200, 20)).save(images / "thin.jpg")
    Image.new("RGB", (33, 34)).save(images / "aaa-odd.png")
    (images / "gone.jpg").write_bytes(jpeg(3))
    monkeypatch.setattr(Predictor, "predict", OddImages((34, 33)))
    config = PredictionConfig().override(
        [f"batch_size={batch_size}", "images_per_shard=8", "serving.max_image_bytes=30000"]
    )
    plan = plan_prediction(config, models["segmentation"], str(images), str(tmp_path / "store"))
    (images / "gone.jpg").unlink()
    predict_shards(plan, report=no_progress)
    value = read_prediction(plan.uri)
    assert value["rejected"] == {
        BadSampleReason.FAILED: 1,
        RejectReason.IMAGE_SHAPE: 1,
        RejectReason.IMAGE_SIZE: 1,
        RejectReason.IMAGE_UNREADABLE: 2,
        BadSampleReason.MISSING_IMAGE: 1,
    }
    assert (value["num_images"], value["num_predicted"]) == (NUM_IMAGES + 6, NUM_IMAGES)
    reasons = {row["uid"]: row["reason"] for row in table(plan.uri)}
    assert {name: reason for name, reason in reasons.items() if reason} == {
        "aaa-odd.png": "failed",
        "cut.jpg": "image_unreadable",
        "empty.png": "image_unreadable",
        "gone.jpg": "missing_image",
        "large.jpg": "image_size",
        "thin.jpg": "image_shape",
    }
    assert [row["uid"] for row in table(plan.uri) if not row["file"]] == sorted(
        name for name, reason in reasons.items() if reason
    )


def test_a_model_that_fails_on_every_image_stops_the_job(models, images, tmp_path, monkeypatch):
    def fail(self, images):
        raise RuntimeError("no such device")

    monkeypatch.setattr(Predictor, "predict", fail)
    store = tmp_path / "store"
    with pytest.raises(RuntimeError, match="no such device"):
        stages.predict(SMALL_SHARDS, models["depth"], str(images), str(store))
    assert not list(store.rglob("*.record.json"))


def test_a_dataset_gets_embeddings_as_a_layer(models, images, tmp_path, no_cache):
    (images / "0.jpg").write_bytes(jpeg(0)[:-20] + bytes(20))
    dataset = write_dataset(
        ShardConfig.from_json({"samples_per_shard": 2}), f"folder:{images}", str(tmp_path / "d")
    )
    store = str(tmp_path / "store")
    uri = stages.predict([], models["clip"], dataset, store, "run")
    opened = Dataset.open(dataset)
    assert [row["uid"] for row in table(uri)] == [
        uid for index in range(len(opened.shards)) for uid in opened.uids(index)
    ]
    stages.import_layer(dataset, "predictions/clip", [join(uri, "predictions.parquet")])
    opened = Dataset.open(dataset)
    shards = [read_layer(opened, "predictions/clip", i, tmp_path) for i in range(3)]
    rows = [row for shard in shards for row in shard.to_pylist()]
    assert [row["embedding"] for row in rows] == [row["embedding"] for row in table(uri)]
    assert np.linalg.norm(rows[-1]["embedding"]) == pytest.approx(1, abs=1e-6)
    (record,) = read_stages(store, "run")
    assert (record.name, record.output) == ("predict", uri)
    node = lineage(uri)
    assert (node.kind, [(p.role, p.kind) for p in node.parents]) == (
        "prediction",
        [("model", "clip"), ("dataset", "dataset")],
    )
    assert "problem" not in str(node)


def test_workers_share_a_plan_that_later_images_dont_change(models, images, tmp_path):
    store = str(tmp_path / "store")
    plan = stages.plan_predict(SMALL_SHARDS, models["classification"], str(images), store)
    (images / "later.jpg").write_bytes(jpeg(9))
    for worker in ("1/5", "0/5", "2/5", "3/5"):
        assert stages.predict_part(plan, worker=worker) == plan
        assert not open_store(plan).exists("prediction.json")
    assert stages.predict_part(plan) == plan
    assert read_prediction(plan)["num_images"] == NUM_IMAGES
    assert read_prediction_plan(plan).shard_sizes == (2, 2, 1)
    again = stages.predict(SMALL_SHARDS, models["classification"], str(images), store)
    assert again != plan
    assert read_prediction(again)["num_images"] == NUM_IMAGES + 1


def test_results_below_the_images_arent_images(models, images):
    uris = [stages.predict(SMALL_SHARDS, models["depth"], str(images), str(images)) for _ in "12"]
    assert uris[0] == uris[1]
    assert read_prediction(uris[0])["num_images"] == NUM_IMAGES


def test_a_bucket(s3, models, images, monkeypatch):
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    root = "s3://test/predict"
    for path in images.rglob("*.jpg"):
        open_store(root).put(f"in/{path.relative_to(images)}", path.read_bytes())
    uri = stages.predict(SMALL_SHARDS, models["depth"], f"{root}/in", f"{root}/out")
    local = stages.predict(SMALL_SHARDS, models["depth"], str(images), str(images.parent / "s"))
    assert contents(uri) == contents(local)
    assert len(contents(uri)) == NUM_IMAGES


def test_a_long_name_has_a_result(models, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    name = f"{'x' * 250}.jpg"
    (folder / name).write_bytes(jpeg(1))
    uri = stages.predict([], models["segmentation"], str(folder), str(tmp_path / "s"))
    (row,) = table(uri)
    assert row["uid"] == name
    assert Image.open(io.BytesIO(read_bytes(join(uri, row["file"])))).mode == "P"


def test_a_folder_without_images_is_refused(models, tmp_path):
    with pytest.raises(SourceError, match="holds no image"):
        stages.predict([], models["depth"], str(tmp_path), str(tmp_path / "s"))


def test_another_model_at_the_planned_uri_is_refused(models, images, tmp_path):
    model = Path(shutil.copytree(models["depth"], tmp_path / "model"))
    plan = stages.plan_predict([], str(model), str(images), str(tmp_path / "s"))
    save_model(str(model), "depth", crop_size=32)
    with pytest.raises(ArtifactError, match="isn't the model that was planned"):
        stages.predict_part(plan)
