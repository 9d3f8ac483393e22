"""Images unlike those that a model was trained on show in its endpoint's metrics."""

import json
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from clipmill.data.labeled.dense import DepthFolder
from clipmill.data.loading.config import DataLoaderConfig
from clipmill.data.shards.plan import ShardConfig
from clipmill.data.shards.write import write_dataset
from clipmill.engine.config import TrainConfig
from clipmill.models.config import ClipConfig, TextConfig, VisionConfig
from clipmill.models.embedding_stats import EmbeddingStatistics
from clipmill.pretrain.clip import pretrain_clip
from clipmill.pretrain.config import PretrainConfig
from clipmill.recipes.registry import get_recipe
from clipmill.scenes import SceneConfig, write_caption_folder, write_nyu
from clipmill.serve.client import Client
from clipmill.serve.config import ServingConfig
from clipmill.serve.launch import ServerProcess
from clipmill.serve.server.model import EmbeddingDrift
from clipmill.tasks.finetune import FinetuneConfig, finetune

SCENES = SceneConfig(size=32)
CLIP = ClipConfig(
    embed_dim=16,
    vision=VisionConfig(image_size=32, patch_size=8, width=32, layers=2, head_width=16),
    text=TextConfig(context_length=16, vocab_size=1000, width=32, heads=2, layers=1),
)
METRIC = "clipmill_serve_embedding_drift"


def silent(done: int, total: int, words: str) -> None:
    pass


def test_by_hand() -> None:
    drift = EmbeddingDrift(EmbeddingStatistics(mean=(1.0, 0.0), spread=2.0, num_images=9))
    drift.add(np.array([[3.0, 0.0]] * 15 + [[np.nan, 0.0]]))
    assert np.isnan(drift.distance()), "15 images aren't enough, and one that is no number is none"
    drift.add(np.array([[-13.0, 0.0]]))
    assert drift.distance() == pytest.approx(0.5), "the plain mean is 2"
    for _ in range(100):
        drift.add(np.full((32, 2), [1.0, 8.0]))
    assert drift.distance() == pytest.approx(4, rel=1e-3), "what is long ago is forgotten"


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_nyu(SCENES, range(24), folder, "train")
    write_nyu(SCENES, range(24, 48), folder, "test")
    return folder


def test_what_is_sent_against_what_was_learnt(
    scenes: Path, models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIPMILL_CACHE", str(tmp_path / "cache"))
    steps = ["train.steps=2", "train.batch_size=2", "model.crop_size=32"]
    depth = finetune(
        get_recipe("depth-tiny", FinetuneConfig, steps),
        "random:timm/test_vit",
        str(scenes),
        str(tmp_path / "store"),
        report=silent,
    )
    write_caption_folder(SCENES, range(24), tmp_path / "pairs", "terse")
    clip = pretrain_clip(
        PretrainConfig(
            model=CLIP,
            dataloader=DataLoaderConfig(num_workers=0),
            train=TrainConfig(steps=2, batch_size=6),
        ),
        write_dataset(
            ShardConfig(samples_per_shard=10), str(tmp_path / "pairs"), str(tmp_path / "store")
        ),
        str(tmp_path / "store"),
        report=silent,
    )
    listing = tmp_path / "models.json"
    listing.write_text(json.dumps({"depth@1": depth, "clip@1": clip, "old@1": models["seg"]}))
    config = ServingConfig(reload_interval_seconds=0.1)
    with ServerProcess(
        {}, models_file=listing, log_path=tmp_path / "server.log", config=config
    ) as server:
        client = Client(server.url)
        data = DepthFolder.open(scenes, "test")
        images = [data.image_HW3(index) for index in range(len(data))]
        assert np.isnan(list(distances(server).values())).all(), "the warm-up counts for nothing"

        for name in ("depth", "clip", "old"):
            for image in images:
                client.infer(name, images=[image])
        near = distances(server)
        assert near.keys() == {("depth", "1"), ("clip", "1")}, "old doesn't know its training"
        assert all(distance < 0.75 for distance in near.values()), near

        for name in ("depth", "clip"):
            for image in [*images, *images]:
                client.infer(name, images=[255 - image])
        far = distances(server)
        assert all(distance > 1 for distance in far.values()), far

        listing.write_text(json.dumps({"depth@2": depth}))
        deadline = time.monotonic() + 60
        while client.metadata("depth")["versions"] != ["2"]:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert distances(server).keys() == {("depth", "2")}


def distances(server: ServerProcess) -> dict[tuple[str, str], float]:
    """By model and version."""
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=30) as response:
        families = text_string_to_metric_families(response.read().decode())
    return {
        (sample.labels["model"], sample.labels["version"]): sample.value
        for family in families
        if family.name == METRIC
        for sample in family.samples
    }
