"""A whole pretraining run, and one that is interrupted."""

from dataclasses import replace

import pytest
import torch

from clipmill.cost import read_cost
from clipmill.data.dataset import Dataset
from clipmill.data.loading.config import DataLoaderConfig
from clipmill.data.loading.view import ViewConfig, in_subset
from clipmill.data.shards.read import read_shard
from clipmill.engine.config import ScheduleConfig, TrainConfig
from clipmill.engine.result import read_log
from clipmill.images import decode_rgb
from clipmill.models.checkpoint import load_checkpoint, read_embedding
from clipmill.models.encoders import Normalize
from clipmill.models.preprocess import center_crop_resize
from clipmill.models.pretrained import open_encoder
from clipmill.models.towers import build_clip
from clipmill.pretrain.clip import pretrain_clip
from clipmill.pretrain.config import PretrainConfig
from helpers.tiny_clip import CLIP

CONFIG = PretrainConfig(
    model=CLIP,
    view=ViewConfig(captions="both", layer="captions/test-1"),
    dataloader=DataLoaderConfig(num_workers=0, shuffle_shards=2),
    train=TrainConfig(
        steps=4,
        batch_size=6,
        grad_accum_steps=2,
        schedule=ScheduleConfig(lr=1e-3),
        ema_decay=0.9,
        checkpoint_every=2,
        log_every=1,
    ),
)


def silent(done, total, words):
    pass


def fail(done, total, words):
    pytest.fail("worked again")


def test_a_run(dataset_uri, tmp_path):
    uri = pretrain_clip(CONFIG, dataset_uri, str(tmp_path), report=silent)
    assert pretrain_clip(CONFIG, dataset_uri, str(tmp_path), report=fail) == uri
    metadata, tensors = load_checkpoint(uri)
    assert (metadata.kind, metadata.architecture) == ("clip", CLIP.to_json())
    assert PretrainConfig.from_json(metadata.recipe) == CONFIG
    dataset = Dataset.open(dataset_uri)
    assert {p.role: p.digest for p in metadata.parents} == {
        "dataset": dataset.digest,
        "captions": dataset.layers["captions/test-1"].digest,
    }
    build_clip(CLIP).load_state_dict(tensors)  # strict
    open_encoder(uri)
    log = read_log(uri)
    assert [record["step"] for record in log] == [1, 2, 3, 4]
    assert {"loss/real", "loss/synthetic"} <= log[0].keys()
    assert metadata.metrics["loss"] == log[-1]["loss"]
    assert not list(tmp_path.glob("encoders/*/state/*"))
    cost = read_cost(uri)
    assert (cost.num_restarts, cost.sessions[0].last_step) == (0, 4)
    assert sum(cost.device_hours.values()) > 0


def test_an_interrupted_run_ends_with_the_same_weights(dataset_uri, tmp_path):
    def stop(done, total, words):
        if done == 3:
            raise KeyboardInterrupt

    straight = pretrain_clip(CONFIG, dataset_uri, str(tmp_path / "a"), report=silent)
    with pytest.raises(KeyboardInterrupt):
        pretrain_clip(CONFIG, dataset_uri, str(tmp_path / "b"), report=stop)
    steps = []
    resumed = pretrain_clip(
        CONFIG, dataset_uri, str(tmp_path / "b"), report=lambda done, *_: steps.append(done)
    )
    assert steps == [3, 4]
    expected, found = (load_checkpoint(uri)[1] for uri in (straight, resumed))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    losses = [[record["loss"] for record in read_log(uri)] for uri in (straight, resumed)]
    assert losses[0] == losses[1]
    cost = read_cost(resumed)
    assert (cost.num_restarts, cost.lost_steps) == (1, 1)
    embeddings = [read_embedding(load_checkpoint(uri)[0]) for uri in (straight, resumed)]
    assert embeddings[0] == embeddings[1]


def test_embeddings_of_the_views_images_are_kept(dataset_uri, tmp_path):
    config = CONFIG.override(["view.subset_fraction=0.6"])
    metadata, tensors = load_checkpoint(
        pretrain_clip(config, dataset_uri, str(tmp_path), report=silent)
    )
    model, size = build_clip(CLIP).eval(), CLIP.vision.image_size
    model.load_state_dict(tensors)
    dataset, found = Dataset.open(dataset_uri), []
    for index in range(len(dataset.shards)):
        with read_shard(dataset, index, tmp_path / "cache") as reader:
            for row in range(len(reader)):
                if in_subset(reader.uid(row), 0.6):
                    square = center_crop_resize(decode_rgb(reader.image(row)), size)
                    image = Normalize()(torch.tensor(square).permute(2, 0, 1)[None] / 255)
                    found.append(model.encode_image(image, normalize=True).detach())
    images_ND = torch.cat(found)
    kept = read_embedding(metadata)
    assert 2 < kept.num_images == len(images_ND) < 12
    torch.testing.assert_close(torch.tensor(kept.mean), images_ND.mean(0), rtol=1e-4, atol=1e-5)
    squares_N = ((images_ND - images_ND.mean(0)) ** 2).sum(1)
    assert kept.spread == pytest.approx(float(squares_N.mean() ** 0.5), rel=1e-3)


def test_micro_batches_change_no_weight(dataset_uri, tmp_path):
    # Adam divides gradients by their size: with a tiny epsilon, rounding would move the weights
    # whose gradient is zero but for it, such as the biases of attention's keys.
    pieces = CONFIG.override(["train.optimizer.epsilon=1e-3"])
    whole = replace(pieces, train=replace(pieces.train, grad_accum_steps=1))
    uris = [pretrain_clip(c, dataset_uri, str(tmp_path), report=silent) for c in (pieces, whole)]
    assert uris[0] != uris[1]
    found, expected = (load_checkpoint(uri)[1] for uri in uris)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("captions", ["real", "synthetic", "both"])
def test_each_choice_of_captions_is_a_run_of_its_own(dataset_uri, tmp_path, captions):
    layer = "" if captions == "real" else "captions/test-1"
    config = replace(CONFIG, view=ViewConfig(captions=captions, layer=layer)).override(
        ["train.steps=1"]
    )
    uri = pretrain_clip(config, dataset_uri, str(tmp_path), report=silent)
    assert uri.startswith(f"{tmp_path}/encoders/{captions}-")
    roles = [p.role for p in load_checkpoint(uri)[0].parents]
    assert roles == (["dataset"] if captions == "real" else ["dataset", "captions"])
