"""One of two ranks that are stopped, lost, held up or sharded: each scenario in a fork of its own.

Run as ``python -m helpers.ranks_drill FOLDER RANK PORT...``, a port for each of SCENARIOS.
"""

import itertools
import json
import logging
import os
import signal
import sys
import time
from pathlib import Path

import torch
from torch import nn

from clipmill.engine.config import AdamWConfig, RuntimeConfig, ScheduleConfig, TrainConfig
from clipmill.engine.optim import build_optimizer
from clipmill.engine.trainer import train
from clipmill.errors import TrainingError
from helpers.regression import Regression, regression_batches
from helpers.resume_drill import in_child

CONFIG = TrainConfig(
    steps=8,
    batch_size=8,
    schedule=ScheduleConfig(lr=1e-2),
    optimizer=AdamWConfig(clip_norm=1.0),
    ema_decay=0.9,
    checkpoint_every=3,
    log_every=1,
    runtime=RuntimeConfig(heartbeat_interval_seconds=0.1, collective_timeout_seconds=60),
)


class Scaled(Regression):
    """With a scalar, which can't be sharded, and a layer that is sharded by itself."""

    def __init__(self):
        super().__init__(dropout=0.0, norm=False)
        self.widen = nn.Sequential(nn.Linear(5, 400), nn.Linear(400, 5, bias=False))
        self.body = nn.Sequential(nn.Linear(400, 400))
        self.logit_scale = nn.Parameter(torch.tensor(0.1))

    def forward(self, batch):
        x = self.widen[1](self.body(self.widen[0](batch["x"])))
        return super().forward({"x": x * self.logit_scale.exp(), "y": batch["y"]})


def quiet():
    """Each sample's loss is its own."""
    return Regression(dropout=0.0, norm=False)


def trained(folder, config=CONFIG, make=quiet, before=lambda step, dist: None):
    """Train; what each step's global batch held is written beside it."""
    seen = []

    def batches(cursor, dist):
        size = config.batch_size // dist.world_size
        for step, batch in enumerate(regression_batches(cursor), start=cursor):
            before(step, dist)
            mine = {k: v[dist.rank * size :][:size] for k, v in batch.items()}
            seen.append((step, mine["y"].tolist()))
            yield mine

    found = train(
        lambda dist: make(),
        batches,
        config,
        name="ranks",
        checkpoint_uri=str(folder),
        report=lambda *_: None,
    )
    return found, seen


def save(folder, name, rank, found):
    torch.save(found[0].tensors, folder / f"{name}.{rank}.pt")
    (folder / f"{name}.{rank}.log").write_text(json.dumps(found[0].log))


def straight(folder, rank):
    save(folder, "straight", rank, trained(folder / "straight"))


def stopped(folder, rank):
    """Each rank is told at another step; both stop after the same one."""

    def before(step, dist):
        if step == 4 + dist.rank:
            os.kill(os.getpid(), signal.SIGTERM)

    trained(folder / "stopped", before=before)


def resumed(folder, rank):
    save(folder, "resumed", rank, trained(folder / "stopped"))


def lost(folder, rank):
    def before(step, dist):
        if dist.rank == 1 and step == 5:
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        trained(folder / "lost", before=before)
    except TrainingError as error:
        (folder / f"lost.{rank}.txt").write_text(str(error))
        raise


def found_again(folder, rank):
    save(folder, "found again", rank, trained(folder / "lost"))


def poisoned(folder, rank):
    """One rank's batch makes no number; both skip the update."""

    class Poisoned(Regression):
        def forward(self, batch):
            self.count = getattr(self, "count", 0) + 1
            bad = rank == 1 and self.count == 3
            return {k: v * float("nan" if bad else 1) for k, v in super().forward(batch).items()}

    found = trained(folder / "poisoned", make=lambda: Poisoned(dropout=0.0, norm=False))
    save(folder, "poisoned", rank, found)


def held_up(folder, rank):
    """One rank waits for its data for long."""
    logging.basicConfig(filename=folder / f"held-up.{rank}.txt")
    runtime = RuntimeConfig(
        heartbeat_interval_seconds=0.05, step_timeout_seconds=0.5, collective_timeout_seconds=60
    )
    config = CONFIG.override(["steps=4"])
    config = TrainConfig.from_json(config.to_json() | {"runtime": runtime.to_json()})

    def before(step, dist):
        if dist.rank == 1 and step == 2:
            # Until it is said, however long that takes here.
            first, end = folder / "held-up.0.txt", time.monotonic() + 60
            while "Behind" not in (first.read_text() if first.exists() else ""):
                assert time.monotonic() < end
                time.sleep(0.05)

    trained(folder / "held-up", config, before=before)


def sharded(folder, rank):
    config = CONFIG.override(["runtime.parallelism=fsdp"])
    save(folder, "sharded", rank, trained(folder / "sharded", config, Scaled))


def sharded_stopped(folder, rank):
    def before(step, dist):
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    config = CONFIG.override(["runtime.parallelism=fsdp"])
    trained(folder / "sharded-stopped", config, Scaled, before)


def sharded_resumed(folder, rank):
    config = CONFIG.override(["runtime.parallelism=fsdp"])
    save(folder, "sharded resumed", rank, trained(folder / "sharded-stopped", config, Scaled))


SCENARIOS = (
    straight,
    stopped,
    resumed,
    lost,
    found_again,
    poisoned,
    held_up,
    sharded,
    sharded_stopped,
    sharded_resumed,
)


def main(folder, rank, ports):
    build_optimizer(quiet(), AdamWConfig())  # torch imports half of itself only now
    codes = {}
    for scenario, port in itertools.zip_longest(SCENARIOS, ports):
        os.environ["MASTER_PORT"] = port
        codes[scenario.__name__] = in_child(lambda scenario=scenario: scenario(folder, rank))
    (folder / f"codes.{rank}.json").write_text(json.dumps(codes))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
