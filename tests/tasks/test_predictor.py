"""A saved task model, asked."""

import numpy as np
import pytest
import torch
from torch import nn

from clipmill.errors import ArtifactError, ConfigError, NotFoundError
from clipmill.models.checkpoint import CheckpointMetadata, save_checkpoint
from clipmill.models.pretrained import open_encoder
from clipmill.tasks.predictor import Predictor
from clipmill.tasks.registry import get_task
from helpers.small_models import save_model
from helpers.tiny_tasks import CLASSES, DEPTH, SEGMENTATION, VIT

CONFIGS = {"depth": DEPTH, "segmentation": SEGMENTATION}


@pytest.fixture(params=["depth", "segmentation"])
def saved(request, tmp_path):
    """A network with random weights, and its checkpoint."""
    torch.manual_seed(0)
    task, config = get_task(request.param), CONFIGS[request.param]
    classes = CLASSES if request.param == "segmentation" else ()
    network = task.build_inference_model(config, VIT, classes).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    metadata = CheckpointMetadata(
        kind="task",
        architecture={
            "task": task.name,
            "classes": list(classes),
            "encoder": VIT.to_json(),
            "config": config.to_json(),
        },
        recipe={},
    )
    return network, save_checkpoint(str(tmp_path), metadata, network.state_dict())


def pictures():
    random = np.random.default_rng(0)
    sizes = [(32, 32), (40, 25), (32, 32), (32, 40), (40, 25)]
    return [random.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


def test_gives_what_the_network_gives(saved):
    network, metadata = saved
    predictor = Predictor.open(metadata.uri)
    found = predictor.predict(pictures())
    (spec,) = predictor.outputs
    assert [list(f) for f in found] == [[spec.name]] * 5
    assert [f[spec.name].dtype.name for f in found] == [spec.dtype] * 5
    for image, prediction in zip(pictures(), found, strict=True):
        output = prediction[spec.name]
        with torch.no_grad():
            expected = network(torch.from_numpy(image).permute(2, 0, 1)[None] / 255)[0]
        assert output.shape == image.shape[:2]
        np.testing.assert_allclose(output, expected.numpy(), rtol=1e-4, atol=1e-4)
    assert len(np.unique(found[0][spec.name])) > 1


@pytest.fixture
def as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("place", ["CPU", "GPU"])
@pytest.mark.usefixtures("as_before")
def test_company_changes_nothing(saved, place):
    """A picture's output is the same alone and among others, on threads as in batches."""
    predictor = Predictor.open(saved[1].uri, num_threads=3)
    if place == "GPU":
        predictor._cpu = None  # the network itself is on the CPU all the same
    together = predictor.predict(pictures())
    assert torch.get_num_threads() == 3
    for image, output in zip(pictures(), together, strict=True):
        (alone,) = predictor.predict([image])
        for name, array in output.items():
            np.testing.assert_allclose(alone[name], array, rtol=1e-4, atol=1e-4)
    assert predictor.predict([]) == []


@pytest.mark.parametrize("task", ["segmentation", "depth", "detection", "classification"])
@pytest.mark.usefixtures("as_before")
def test_threads_share_a_network(task, tmp_path):
    """Every task's network may be run by several threads at once, and be listened to."""
    predictor = Predictor.open(save_model(str(tmp_path), task), num_threads=3)
    images = pictures() * 8
    expected = [predictor.predict([image])[0] for image in images]
    heard = []
    predictor.add_embedding_hook(heard.append)
    for found, alone in zip(predictor.predict(images), expected, strict=True):
        for name, array in alone.items():
            np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-4)
    assert len(heard) == len(images)
    assert np.isfinite(heard).all()
    images[7] = np.zeros((0, 0, 3), np.uint8)
    with pytest.raises((RuntimeError, ValueError, ZeroDivisionError)):
        predictor.predict(images)
    assert len(predictor.predict(images[:7])) == 7


def test_branches_of_a_mobile_encoder_are_fused(tmp_path):
    """What is asked has fewer convolutions than what was trained, and gives the same."""
    torch.manual_seed(0)
    encoder, config = (
        open_encoder("random:timm/fastvit_mci0").config,
        DEPTH.override(["crop_size=64"]),
    )
    network = get_task("depth").build_inference_model(config, encoder, ())
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(std=0.1)
            norm.running_var.uniform_(0.5, 2.0)
    for parameter in network.decoder.parameters():
        nn.init.normal_(parameter, std=0.1)
    metadata = CheckpointMetadata(
        kind="task",
        architecture={
            "task": "depth",
            "classes": [],
            "encoder": encoder.to_json(),
            "config": config.to_json(),
        },
        recipe={},
    )
    predictor = Predictor(metadata, network.state_dict())
    sizes = [
        sum(isinstance(module, nn.Conv2d) for module in made.modules())
        for made in (network, predictor._network)
    ]
    assert sizes[1] < sizes[0]
    (image, *_) = pictures()
    with torch.no_grad():
        expected_1HW = network.eval()(torch.from_numpy(image).permute(2, 0, 1)[None] / 255)
    (found,) = predictor.predict([image])
    np.testing.assert_allclose(found["depth_meters"], expected_1HW[0], rtol=1e-4, atol=1e-4)
    assert np.ptp(found["depth_meters"]) > 0.01


def test_says_what_it_is(saved):
    _, metadata = saved
    predictor = Predictor.open(metadata.uri)
    assert predictor.metadata == metadata
    assert predictor.classes == tuple(metadata.architecture["classes"])
    picture = predictor.visualize(predictor.predict(pictures()[:1])[0], pictures()[0])
    assert picture.shape == (32, 32, 3)
    assert picture.dtype == np.uint8


def test_nothing_there(tmp_path):
    with pytest.raises(NotFoundError):
        Predictor.open(str(tmp_path))


def test_an_encoder_is_no_task_model(tmp_path):
    save_checkpoint(str(tmp_path), CheckpointMetadata(kind="clip", architecture={}, recipe={}), {})
    with pytest.raises(ArtifactError, match="of kind 'clip'"):
        Predictor.open(str(tmp_path))


def test_a_task_of_a_later_version(tmp_path):
    metadata = CheckpointMetadata(kind="task", architecture={"task": "flow"}, recipe={})
    save_checkpoint(str(tmp_path), metadata, {})
    with pytest.raises(ConfigError, match="'flow' is not a task"):
        Predictor.open(str(tmp_path))
