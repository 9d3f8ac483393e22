"""Weights of convolutions lie channels last; what is saved of them doesn't."""

import pytest
import torch
from torch import nn

from clipmill.engine.config import AdamWConfig, ScheduleConfig, TrainConfig
from clipmill.engine.objective import Objective
from clipmill.engine.trainer import train

CONFIG = TrainConfig(
    steps=6,
    batch_size=2,
    schedule=ScheduleConfig(lr=1e-2, warmup_steps=1),
    optimizer=AdamWConfig(),
    ema_decay=0.9,
    checkpoint_every=2,
    log_every=1,
)


class Filter(Objective):
    """A convolution that is to give zero."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3)

    def forward(self, batch):
        return {"squared": self.convolution(batch["images"]).square().mean()}


def batches(cursor, dist, end=CONFIG.steps):
    for step in range(cursor, end):
        yield {"images": torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(step))}
    raise KeyboardInterrupt


def trained(folder, batches=batches):
    return train(
        lambda dist: Filter(),
        batches,
        CONFIG,
        name="filter",
        checkpoint_uri=str(folder),
        report=lambda *_: None,
    ).tensors


def test_a_convolution_resumes_to_the_same_weights(tmp_path):
    whole = trained(tmp_path / "whole")
    assert whole["convolution.weight"].is_contiguous(memory_format=torch.channels_last)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "parts", lambda cursor, dist: batches(cursor, dist, end=3))
    resumed = trained(tmp_path / "parts")
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name
