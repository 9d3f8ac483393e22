"""Depth: network, batches, evaluation."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from clipmill.data.labeled.dense import DepthFolder
from clipmill.models.encoders import build_dense
from clipmill.tasks.config import MAX_DEPTH_METERS
from clipmill.tasks.depth.model import DepthNetwork
from clipmill.tasks.depth.training import DepthMetrics, DepthTraining
from helpers.tiny_tasks import CONV, DEPTH, VIT

TASK = DepthTraining()


def silent(done, total, words):
    pass


def network(encoder=VIT, **changes):
    """With weights as large as those that training leaves."""
    torch.manual_seed(0)
    made = DepthNetwork(replace(DEPTH, **changes), build_dense(encoder)).eval()
    with torch.no_grad():
        for name, parameter in made.decoder.named_parameters():
            if name.endswith("weight"):
                parameter.normal_(std=0.3)
    return made


def batches(folder, config=DEPTH, **changes):
    options = {"batch_size": 2, "seed": 0, "start_step": 0, "rank": 0, "world_size": 1, **changes}
    return TASK.train_dataloader(config, folder, **options)


@torch.no_grad()
@pytest.mark.parametrize("encoder", [VIT, CONV])
def test_network_gives_meters_at_the_images_size(encoder):
    made = network(encoder)
    for size in ((32, 32), (33, 50), (16, 20), (64, 40)):
        depth = made(torch.rand(2, 3, *size))
        assert depth.shape == (2, *size)
        assert depth.dtype == torch.float32
        assert 0 <= depth.min() < depth.max() <= MAX_DEPTH_METERS


@torch.no_grad()
def test_flip_test_averages_both_directions():
    images = torch.rand(1, 3, 32, 32)
    plain, flipped = network(flip_augment_test=False), network(flip_augment_test=True)
    expected = (plain(images) + plain(images.flip(-1)).flip(-1)) / 2
    torch.testing.assert_close(flipped(images), expected)
    torch.testing.assert_close(flipped(images.flip(-1)), expected.flip(-1))
    assert not torch.allclose(plain(images), expected, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("encoder", [VIT, CONV])
def test_objectives_tensors_are_the_networks(encoder):
    torch.manual_seed(0)
    objective = TASK.build_objective(DEPTH, encoder, ())
    trained = {TASK.inference_key(k): v for k, v in objective.state_dict().items()}
    served = TASK.build_inference_model(DEPTH, encoder, ())
    served.load_state_dict(trained)
    images = torch.rand(2, 3, 32, 32)
    expected = objective.eval().decoder(objective.encoder(images)[-1])
    torch.testing.assert_close(served.eval().depth(images), expected)


def test_without_a_width_the_head_takes_the_encoders():
    config = replace(DEPTH, head_channels=0)
    made = DepthNetwork(config, build_dense(VIT))
    assert made.decoder.head[0].in_channels == VIT.vision.width


def test_batches(nyu_folder):
    (batch,) = itertools.islice(batches(nyu_folder), 1)
    assert batch["images"].shape == (2, 32, 32, 3)
    assert batch["images"].dtype == torch.uint8
    assert batch["depth"].shape == (2, 32, 32)
    assert batch["depth"].dtype == torch.float32
    assert batch["depth"].min() > 0.4


def test_depth_moves_with_its_picture(nyu_folder):
    """Every label is that of a scene or its mirror image."""
    data = DepthFolder.open(nyu_folder, "train")
    truths = [data.depth_HW(i) for i in range(len(data))]
    known = [*truths, *(t[:, ::-1] for t in truths)]
    found = [d for b in itertools.islice(batches(nyu_folder), 8) for d in b["depth"].numpy()]
    matches = [[np.array_equal(d, k) for k in known].index(True) for d in found]
    assert {m < len(truths) for m in matches} == {True, False}


def test_a_crop_larger_than_the_picture_is_filled_with_unknown(nyu_folder):
    (batch,) = itertools.islice(batches(nyu_folder, replace(DEPTH, crop_size=40)), 1)
    depth = batch["depth"]
    assert depth.shape == (2, 40, 40)
    assert (depth[:, 32:] == 0).all()
    assert (depth[:, :32, :32] > 0).all()


def test_evaluation_by_a_prediction_that_is_right_but_for_a_factor(nyu_folder):
    data = DepthFolder.open(nyu_folder, "test")
    truths = {data.image_HW3(i).tobytes(): data.depth_HW(i) for i in range(len(data))}
    found = TASK.evaluate(
        lambda image: {"depth_meters": truths[image.tobytes()] * 1.1},
        DEPTH,
        nyu_folder,
        num_samples=1,
        report=silent,
    )
    expected = DepthMetrics(max_depth_meters=MAX_DEPTH_METERS)
    for truth in truths.values():
        expected.update(truth * 1.1, truth)
    assert found.metrics == expected.result() | {"num_eigen_cropped": 0}
    # Where the truth is at most 10 / 1.1 m nothing is clipped.
    assert found.metrics["d1"] == 1
    assert found.metrics["abs_rel"] == pytest.approx(0.1, abs=0.01)
    assert found.metrics["log10"] == pytest.approx(math.log10(1.1), abs=0.005)
    (sample,) = found.samples
    assert np.array_equal(sample.truth["depth_meters"], data.depth_HW(0))
    assert np.array_equal(sample.image_HW3, data.image_HW3(0))


def test_evaluation_reports_each_picture(nyu_folder):
    told = []
    TASK.evaluate(
        lambda image: {"depth_meters": np.ones(image.shape[:2], np.float32)},
        DEPTH,
        nyu_folder,
        num_samples=9,
        report=lambda *words: told.append(words[:2]),
    )
    assert told == [(1, 2), (2, 2)]


def test_less_is_better():
    assert TASK.metric.improvement(0.3, baseline=0.4) == pytest.approx(0.1)


@torch.no_grad()
def test_an_image_longer_than_high_is_seen_as_two_squares():
    """Each square, mirrored too, as Xie et al. test NYUv2."""
    made = network(num_test_windows=2, flip_augment_test=True)
    images = torch.rand(1, 3, 32, 48)
    total, count = torch.zeros(1, 32, 48), torch.zeros(32, 48)
    for start in (0, 16):
        square = images[..., start : start + 32]
        both = (made.depth(square) + made.depth(square.flip(-1)).flip(-1)) / 2
        total[..., start : start + 32] += both[:, 0]
        count[:, start : start + 32] += 1
    torch.testing.assert_close(made(images), total / count)
    whole = network(num_test_windows=1, flip_augment_test=True)
    assert not torch.allclose(made(images), whole(images), atol=1e-3)


def test_layers_learn_slower_the_deeper_they_lie():
    """The rate of a ViT's block is 0.8 times that of the one above (CLIP-QC, Table 15)."""
    from clipmill.engine.config import AdamWConfig
    from clipmill.engine.optim import build_optimizer

    objective = TASK.build_objective(DEPTH, VIT, ())
    optimizer = build_optimizer(objective, AdamWConfig(layer_decay=0.8, weight_decay=0.05))
    scales = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    rate = {name: scales[id(p)] for name, p in objective.named_parameters()}
    blocks = VIT.vision.layers
    assert rate["decoder.head.0.weight"] == 1
    assert rate["encoder.norm.weight"] == pytest.approx(0.8)
    for i in range(blocks):
        name = f"encoder.trunk.transformer.resblocks.{i}.mlp.c_fc.weight"
        assert rate[name] == pytest.approx(0.8 ** (blocks + 1 - i))
    assert rate["encoder.trunk.conv1.weight"] == pytest.approx(0.8 ** (blocks + 2))
