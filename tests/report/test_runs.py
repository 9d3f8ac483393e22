"""Training runs of a store, as a person and a program list them."""

import json
import subprocess
import sys

import pytest

from clipmill.cost import CostSession, cost_json
from clipmill.engine.config import TrainConfig
from clipmill.engine.distributed import DistributedContext
from clipmill.engine.metrics import MetricsLogger
from clipmill.engine.result import log_lines
from clipmill.lineage import LOG_FILE
from clipmill.models.checkpoint import CheckpointMetadata, save_checkpoint
from clipmill.report.runs import list_runs, runs_page, varying_settings
from clipmill.report.sections.sources import source_charts
from clipmill.storage import join, write_bytes, write_json

TRAIN = TrainConfig(steps=100, batch_size=8)
RECORDS = [
    {"step": 50, "loss": 2.0, "samples_per_second": 1234.5, "gradient_norm": 0.5},
    {
        "step": 100,
        "loss": 1.25,
        "samples_per_second": 1200.0,
        "gradient_norm": 0.5,
        "retrieval/recall@1": 0.4,
    },
]


COST = cost_json(
    [
        CostSession(
            started=0.0,
            seconds=1800.0,
            device="NVIDIA H200",
            num_devices=8,
            first_step=0,
            last_step=100,
            price=2.5,
            currency="USD",
        )
    ]
)


@pytest.fixture(params=["local", "s3"])
def store(request, tmp_path):
    """One finished run, one that failed at its 50th update, and what isn't a run."""
    if request.param == "s3":
        request.getfixturevalue("s3")
    uri = str(tmp_path) if request.param == "local" else f"s3://tests/{tmp_path.name}"
    metadata = CheckpointMetadata(kind="clip", architecture={}, recipe={"train": TRAIN.to_json()})
    save_checkpoint(join(uri, "encoders", "real-1"), metadata, {})
    write_bytes(join(uri, "encoders", "real-1", LOG_FILE), log_lines(RECORDS))
    write_json(join(uri, "encoders", "real-1", "cost.json"), COST)
    other = TRAIN.override(["schedule.lr=0.5"])
    logger = MetricsLogger(
        "clip", other, DistributedContext(), join(uri, "encoders", "both-2", "state")
    )
    logger.resume((), 0)
    logger.write(RECORDS[0])
    logger.upload("failed", "a rank was lost")
    write_json(join(uri, "datasets", "x", "dataset.json"), {})
    write_json(join(uri, "broken", "model.json"), {"format": 1})
    return uri


def test_runs_are_listed(store):
    failed, finished = list_runs(store)
    assert (failed.name, finished.name) == ("encoders/both-2", "encoders/real-1")
    assert (failed.status, failed.reason, failed.step) == ("failed", "a rank was lost", 50)
    assert (finished.status, finished.step, finished.steps) == ("finished", 100, 100)
    assert finished.last["loss"] == 1.25
    assert varying_settings([failed, finished]) == {"train.schedule.lr": [0.5, 1e-3]}


def test_a_page_shows_curves_and_what_sets_runs_apart(store):
    page = runs_page(store, list_runs(store))
    assert "failed: a rank was lost" in page
    assert "50 of 100" in page
    assert "train.schedule.lr" in page
    assert page.count("<svg") == 3
    assert "Gradient norm" in page
    assert "4.000 of NVIDIA H200" in page
    assert "10.00 USD" in page
    assert "not readable" in page
    # One value isn't a curve.
    assert "Metrics after training" in page
    assert (
        page.index("Metrics after training")
        < page.index("retrieval/recall@1")
        < page.index("0.400")
    )


def test_sources_of_a_mixture_share_a_chart():
    log = [
        {"step": step, "source/a/loss": 1.0, "source/b/loss": 2.0, "source/a/epochs": 0.5}
        for step in (1, 2)
    ]
    loss, epochs = source_charts(log, "real-1")
    assert "Loss by source" in loss
    assert ">a " in loss
    assert ">b " in loss
    assert "Epochs by source" in epochs
    assert source_charts(RECORDS, "real-1") == []


def test_a_store_without_runs(tmp_path):
    (tmp_path / "notes.txt").touch()
    assert list_runs(str(tmp_path)) == []
    assert "There is no training run here." in runs_page(str(tmp_path), [])


def test_the_command(tmp_path):
    metadata = CheckpointMetadata(kind="clip", architecture={}, recipe={"train": TRAIN.to_json()})
    save_checkpoint(str(tmp_path / "encoders" / "real-1"), metadata, {})
    write_bytes(str(tmp_path / "encoders" / "real-1" / LOG_FILE), log_lines(RECORDS))

    def said(*arguments):
        code = "from clipmill.cli import main; main()"
        command = [sys.executable, "-c", code, "runs", str(tmp_path), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    head, line, _ = said("--page", str(tmp_path / "runs.html")).splitlines()
    assert head.split() == [
        "RUN",
        "STATUS",
        "STEP",
        "OF",
        "LOSS",
        "SAMPLES/S",
        "RETRIEVAL/RECALL@1",
    ]
    assert line.split() == ["encoders/real-1", "finished", "100", "100", "1.250", "1,200", "0.400"]
    assert (tmp_path / "runs.html").read_text().startswith("<!DOCTYPE html>")
    (run,) = json.loads(said("--json"))
    assert (run["status"], run["last"]["loss"], run["cost"]) == ("finished", 1.25, None)
    write_json(str(tmp_path / "encoders" / "real-1" / "cost.json"), COST)
    head, line = said().splitlines()[-2:]
    assert "DEVICE HOURS" in head
    assert all(text in line for text in ("4.000 of NVIDIA H200", "10.00 USD", "not readable"))
    (run,) = json.loads(said("--json"))
    assert run["cost"] == {
        "device_hours": {"NVIDIA H200": 4.0},
        "wall_hours": 0.5,
        "energy_kwh": None,
        "price": {"USD": 10.0},
        "restarts": 0,
        "lost_steps": 0,
        "lost_seconds": 0.0,
    }
