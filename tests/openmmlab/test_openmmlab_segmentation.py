"""UPerNet's training losses against torch's cross-entropy on the heads' own logits."""

import pytest
import torch
from torch.nn import functional

from clipmill.openmmlab.segmentation import UperNetTraining

CLASSES = 5


@pytest.fixture
def training():
    torch.manual_seed(0)
    return UperNetTraining((4, 6, 8, 10), 12, CLASSES, aux_channels=7, dropout=0.0)


@pytest.fixture
def maps():
    torch.manual_seed(1)
    sides = {4: 16, 6: 8, 8: 4, 10: 2}
    return [torch.randn(2, width, side, side) for width, side in sides.items()]


@pytest.fixture
def labels():
    torch.manual_seed(2)
    labels_BHW = torch.randint(0, CLASSES, (2, 64, 64))
    labels_BHW[0, :20] = 255
    return labels_BHW


def cross_entropy(logits_BChw, labels_BHW):
    """Over known pixels, divided by all."""
    logits = functional.interpolate(logits_BChw, labels_BHW.shape[1:], mode="bilinear")
    log_probabilities = logits.log_softmax(1)
    known = labels_BHW != 255
    picked = log_probabilities.gather(1, labels_BHW.where(known, 0)[:, None])[:, 0]
    return -(picked * known).sum() / labels_BHW.numel()


def test_losses_equal_cross_entropy(training, maps, labels):
    losses = training.eval().loss(maps, labels)
    decode = cross_entropy(training.decode_head(maps), labels)
    auxiliary = cross_entropy(training.auxiliary_head(maps), labels)
    assert sorted(losses) == ["auxiliary", "decode"]
    torch.testing.assert_close(losses["decode"], decode)
    torch.testing.assert_close(losses["auxiliary"], 0.4 * auxiliary)


def test_the_auxiliary_head_sees_the_third_map_alone(training, maps, labels):
    maps = [map_BDhw.requires_grad_() for map_BDhw in maps]
    training.loss(maps, labels)["auxiliary"].backward()
    assert [map_BDhw.grad is not None for map_BDhw in maps] == [False, False, True, False]


def test_gradients_reach_every_parameter(training, maps, labels):
    sum(training.loss(maps, labels).values()).backward()
    still = [name for name, p in training.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


def test_a_batch_of_unknown_pixels_weighs_nothing(training, maps, labels):
    losses = training.loss(maps, torch.full_like(labels, 255))
    assert {name: loss.item() for name, loss in losses.items()} == {"decode": 0, "auxiliary": 0}


def test_classifiers_start_as_mmseg_starts_them(training):
    for head in (training.decode_head, training.auxiliary_head):
        assert head.conv_seg.weight.std().item() == pytest.approx(0.01, rel=0.5)
        assert not head.conv_seg.bias.any()


def test_one_process_has_plain_batch_norm(training):
    kinds = {type(m).__name__ for m in training.modules() if "Norm" in type(m).__name__}
    assert kinds == {"BatchNorm2d"}


def test_two_classes_are_two_logits(maps):
    training = UperNetTraining((4, 6, 8, 10), 12, 2)
    assert training.decode_head(maps).shape == (2, 2, 16, 16)
