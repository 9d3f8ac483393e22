"""Two ranks and one: the same losses, weights and running statistics, batch norms included."""

import os
import socket

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn

from clipmill.engine.config import AdamWConfig, ScheduleConfig, TrainConfig
from clipmill.engine.trainer import train
from helpers.regression import Regression, regression_batches

CONFIG = TrainConfig(
    steps=50,
    batch_size=8,
    schedule=ScheduleConfig(lr=1e-2),
    optimizer=AdamWConfig(clip_norm=1.0),
    log_every=1,
)


class WithImages(Regression):
    """Batch norms of vectors and of maps, one of them used twice."""

    def __init__(self):
        super().__init__(dropout=0.0)
        self.maps = nn.Sequential(nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3, momentum=0.2), nn.ReLU())

    def forward(self, batch):
        x_BD = batch["x"]
        rows_BD = self.maps(x_BD[:, None, None])[:, 0, 0]
        columns_BD = self.maps(x_BD[:, None, :, None])[:, 1, :, 0]
        maps = rows_BD + columns_BD
        return super().forward({"x": x_BD + maps, "y": batch["y"]})


def run(rank, world_size, port, folder):
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)

    def batches(cursor, dist):
        size = CONFIG.batch_size // world_size
        for batch in regression_batches(cursor):
            yield {k: v[rank * size :][:size] for k, v in batch.items()}

    result = train(
        lambda dist: WithImages(),
        batches,
        CONFIG,
        name="norm",
        checkpoint_uri=str(folder / f"state-{world_size}"),
        report=lambda *_: None,
    )
    losses = [record["loss"] for record in result.log]
    torch.save((losses, dict(result.tensors)), folder / f"{world_size}-{rank}.pt")


def test_two_ranks_train_as_one(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    for world_size in (1, 2):
        mp.start_processes(
            run, args=(world_size, port, tmp_path), nprocs=world_size, start_method="fork"
        )
    one_losses, one = torch.load(tmp_path / "1-0.pt")
    two_losses, two = torch.load(tmp_path / "2-0.pt")
    assert len(one_losses) == 50
    assert two_losses == pytest.approx(one_losses, abs=1e-4)
    assert one.keys() == two.keys()
    # A bias before a batch norm, and a channel's only weight, have no gradient but rounding, which
    # AdamW scales up; the norm's running statistics follow them.
    free = {"network.0.bias", "network.1.running_mean"}
    free |= {"maps.0.bias", "maps.0.weight", "maps.1.running_mean", "maps.1.running_var"}
    assert free < one.keys()
    for name, tensor in one.items():
        if name in free:
            continue
        assert torch.allclose(two[name].float(), tensor.float(), atol=1e-4), name
    assert any("running_var" in name for name in one)
