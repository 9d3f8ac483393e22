"""A supervised run on labeled pictures, and what starts from it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from clipmill.engine.config import ScheduleConfig, TrainConfig
from clipmill.engine.distributed import DistributedContext
from clipmill.errors import ConfigError, SourceError
from clipmill.models.checkpoint import load_checkpoint
from clipmill.models.config import VisionConfig
from clipmill.models.encoders import build_dense
from clipmill.models.pretrained import open_encoder
from clipmill.models.towers import build_clip
from clipmill.pretrain.config import SupervisedConfig
from clipmill.pretrain.init_weights import load_init_weights, resolve_init
from clipmill.pretrain.supervised import SupervisedObjective, pretrain_supervised
from helpers.tiny_clip import CLIP

VISION = VisionConfig(image_size=32, timm_model="test_resnet")
CONFIG = SupervisedConfig(
    vision=VISION,
    num_workers=0,
    train=TrainConfig(
        steps=4, batch_size=4, schedule=ScheduleConfig(lr=1e-3), checkpoint_every=2, log_every=1
    ),
)


def silent(done, total, words):
    pass


def fail(done, total, words):
    pytest.fail("worked again")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Nine pictures of three classes."""
    folder = tmp_path_factory.mktemp("classes")
    random = np.random.default_rng(0)
    for name in ("cat", "bee", "ant"):
        (folder / "train" / name).mkdir(parents=True)
        for number in range(3):
            pixels = random.integers(0, 256, (40, 50, 3), np.uint8)
            Image.fromarray(pixels).save(folder / "train" / name / f"{number}.jpg")
    return str(folder)


def test_a_run_and_what_starts_from_it(data, tmp_path):
    uri = pretrain_supervised(CONFIG, data, str(tmp_path), report=silent)
    assert pretrain_supervised(CONFIG, data, str(tmp_path), report=fail) == uri
    metadata, tensors = load_checkpoint(uri)
    assert (metadata.kind, metadata.architecture["classes"]) == (
        "supervised",
        ["ant", "bee", "cat"],
    )
    assert tensors["visual.trunk.fc.weight"].shape[0] == 3
    pretrained = open_encoder(uri)
    encoder = build_dense(pretrained.config)
    pretrained.load_weights(encoder)
    name = "conv1.0.weight"
    assert torch.equal(encoder.trunk.get_parameter(name), tensors[f"visual.trunk.{name}"])
    config = replace(CLIP, vision=VISION)
    clip = build_clip(config)
    load_init_weights(resolve_init(uri), clip, config)
    assert torch.equal(clip.visual.trunk.get_parameter(name), tensors[f"visual.trunk.{name}"])


def test_an_interrupted_run_ends_with_the_same_weights(data, tmp_path):
    def stop(done, total, words):
        if done == 3:
            raise KeyboardInterrupt

    straight = pretrain_supervised(CONFIG, data, str(tmp_path / "a"), report=silent)
    with pytest.raises(KeyboardInterrupt):
        pretrain_supervised(CONFIG, data, str(tmp_path / "b"), report=stop)
    resumed = pretrain_supervised(CONFIG, data, str(tmp_path / "b"), report=silent)
    expected, found = (load_checkpoint(uri)[1] for uri in (straight, resumed))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_is_torchs(smoothing):
    config = replace(
        CONFIG, mixup=0.0, cutmix=0.0, random_erasing_prob=0.0, label_smoothing=smoothing
    )
    objective = SupervisedObjective(config, 3, DistributedContext()).eval()
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    labels = torch.tensor([0, 2, 1, 2])
    found = objective({"image": images, "label": labels})["classification"]
    logits = objective.visual["trunk"](objective.normalize(images / 255))
    expected = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=smoothing)
    torch.testing.assert_close(found, expected)


def test_a_tower_without_a_classifier():
    with pytest.raises(ConfigError, match=r"vision\.timm_model was empty"):
        SupervisedConfig(vision=VisionConfig(), train=CONFIG.train)


def test_a_folder_without_classes(tmp_path):
    (tmp_path / "data" / "train").mkdir(parents=True)
    with pytest.raises(SourceError, match=r"has no train/CLASS/\*\.jpg"):
        pretrain_supervised(CONFIG, str(tmp_path / "data"), str(tmp_path), report=silent)
