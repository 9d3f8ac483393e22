"""A slow training that test_cost.py kills: ``python -m helpers.cost_drill FOLDER``."""

import sys
import time
from pathlib import Path

from clipmill.engine.config import RuntimeConfig, TrainConfig
from clipmill.engine.trainer import train
from helpers.regression import Regression, regression_batches

STEPS = 60
CHECKPOINT_EVERY = 10
INTERVAL_SECONDS = 0.05
CONFIG = TrainConfig(
    steps=STEPS,
    batch_size=8,
    checkpoint_every=CHECKPOINT_EVERY,
    log_every=1,
    runtime=RuntimeConfig(log_upload_interval_seconds=INTERVAL_SECONDS),
)


def run_to_end(folder: Path, pause: float = 0.0) -> int:
    """Train; return the step that it began with."""
    starts = []

    def batches(cursor, dist):
        starts.append(cursor)
        for batch in regression_batches(cursor):
            time.sleep(pause)
            yield batch

    train(
        lambda dist: Regression(),
        batches,
        CONFIG,
        name="cost",
        checkpoint_uri=str(folder),
        report=lambda *_: None,
    )
    return starts[0]


if __name__ == "__main__":
    run_to_end(Path(sys.argv[1]), pause=0.05)
