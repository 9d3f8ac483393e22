"""SiLog by hand, and what training minimises."""

import math

import pytest
import torch

from clipmill.tasks.depth.objective import DepthObjective, silog
from helpers.tiny_tasks import DEPTH, VIT


def test_silog_by_hand():
    """Logarithms apart by log 2 and -log 4; the pixel without truth doesn't count."""
    prediction = torch.tensor([[[1.0, 4.0, 7.0]]])
    truth = torch.tensor([[[2.0, 1.0, 0.0]]])
    a, b = math.log(2), -math.log(4)
    squares, mean = (a * a + b * b) / 2, (a + b) / 2
    for forgiven in (0.0, 0.5, 0.85):
        expected = math.sqrt(squares - forgiven * mean**2)
        assert silog(prediction, truth, forgiven).item() == pytest.approx(expected, rel=1e-5)


def test_silog_forgives_a_factor_in_full():
    truth = torch.rand(1, 4, 4) + 1
    assert silog(3 * truth, truth, 1.0).item() == pytest.approx(0, abs=1e-3)
    assert silog(3 * truth, truth, 0.5).item() == pytest.approx(math.log(3) * 0.5**0.5, rel=1e-4)


def test_gradient_reaches_every_parameter_and_known_pixels_alone():
    torch.manual_seed(0)
    objective = DepthObjective(DEPTH, VIT)
    batch = {
        "images": torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8),
        "depth": torch.rand(2, 32, 32) * 9 + 0.5,
    }
    objective(batch)["silog"].backward()
    assert [n for n, p in objective.named_parameters() if p.grad is None] == []

    prediction = torch.rand(1, 4, 4, requires_grad=True)
    truth = torch.rand(1, 4, 4) + 0.1
    truth[0, :2] = 0
    silog(prediction, truth, 0.5).backward()
    assert (prediction.grad[0, :2] == 0).all()
    assert (prediction.grad[0, 2:] != 0).all()


def test_training_fits_a_picture():
    torch.manual_seed(0)
    objective = DepthObjective(DEPTH, VIT)
    optimizer = torch.optim.Adam(objective.parameters(), 1e-2)
    batch = {
        "images": torch.randint(0, 256, (1, 32, 32, 3), dtype=torch.uint8).expand(2, -1, -1, -1),
        "depth": torch.linspace(1, 9, 32).expand(2, 32, 32),
    }
    losses = []
    for _ in range(40):
        loss = objective(batch)["silog"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_rate_falls_with_depth_in_the_encoder_alone():
    objective = DepthObjective(DEPTH, VIT)
    assert objective.num_layers == objective.encoder.num_layers + 1 == 4
    assert objective.layer_id("encoder.trunk.conv1.weight") == 0
    assert objective.layer_id("encoder.norm.bias") == 3
    assert objective.layer_id("decoder.head.0.weight") is None
