"""Experiment trackers: the real packages, with stores on disk."""

import json
import os
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from clipmill import tracking
from clipmill.cli import app
from clipmill.engine.config import ScheduleConfig, TrainConfig
from clipmill.engine.trainer import train
from clipmill.errors import ConfigError, TrainingError
from clipmill.processes import free_port
from clipmill.stage_records import Stage
from clipmill.tracking import TrackedRun, Tracker, check_tracking, open_run
from helpers.regression import Regression, regression_batches

CONFIG = TrainConfig(
    steps=8, batch_size=8, schedule=ScheduleConfig(lr=1e-2), checkpoint_every=3, log_every=1
)
PARENT = {"role": "dataset", "uri": "s3://b/d", "digest": "0" * 64}


def run_stage(uri: Path, *, stop_after: int | None = None) -> None:
    """A stage that trains and writes an artifact; it fails after some batches if asked to."""

    def batches(step: int, _dist: object) -> Any:
        source = regression_batches(step)
        yield from (next(source) for _ in range(stop_after or CONFIG.steps))

    with Stage("pretrain", label="G") as stage:
        result = train(
            lambda _dist: Regression(),
            batches,
            CONFIG,
            name="clip",
            checkpoint_uri=f"{uri}/state",
            report=stage.report,
        )
        lines = "".join(json.dumps(record) + "\n" for record in result.log)
        (uri / "log.jsonl").write_text(lines)
        shutil.copy(uri / "state" / "cost.json", uri)
        artifact = {
            "kind": "clip",
            "digest": "1" * 64,
            "parents": [PARENT, PARENT],
            "recipe": {"train": CONFIG.to_json()},
            "metrics": {"loss": result.log[-1]["loss"]},
            "summary": {"captions": "real", "seen samples": "64"},
        }
        (uri / "model.json").write_text(json.dumps(artifact))
        stage.set_output(str(uri))


@pytest.fixture(scope="module")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a real server with a database: the whole package, which the tests don't install."""
    python = os.environ.get("MLFLOW_PYTHON", "")
    if not python:
        pytest.skip("MLFLOW_PYTHON names no Python that has the package mlflow with its server")
    folder = tmp_path_factory.mktemp("mlflow")
    url = f"http://127.0.0.1:{free_port('127.0.0.1')}"
    options = {
        "--host": "127.0.0.1",
        "--port": url.rpartition(":")[2],
        "--workers": "1",
        "--backend-store-uri": f"sqlite:///{folder / 'runs.db'}",
        "--default-artifact-root": str(folder / "artifacts"),
    }
    command = [
        python,
        "-m",
        "mlflow",
        "server",
        *(part for pair in options.items() for part in pair),
    ]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_for(url, (folder / "log").read_text)
        yield url
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def wait_for(url: str, log: Callable[[], str]) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            return urllib.request.urlopen(f"{url}/health", timeout=5).close()
        except OSError:
            assert time.monotonic() < deadline, log()
            time.sleep(0.2)


@pytest.fixture(params=["files", "server"])
def mlflow_store(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Any:
    from mlflow import MlflowClient

    if request.param == "server":
        address = request.getfixturevalue("mlflow_server")
        monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", tmp_path.name)
    else:
        address = str(tmp_path / "mlruns")
        monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv(tracking.TRACKING_VARIABLE, f"mlflow:{address}")
    return MlflowClient(address)


def runs_of(client: Any) -> list[Any]:
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "clipmill")
    experiment = client.get_experiment_by_name(name)
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    return list(client.search_runs([experiment.experiment_id]))


def test_a_training_that_is_resumed_is_one_run_of_mlflow(tmp_path: Path, mlflow_store: Any) -> None:
    uri = tmp_path / "store" / "encoders" / "real-0123456789ab"
    with pytest.raises(TrainingError):
        run_stage(uri, stop_after=5)
    (run,) = runs_of(mlflow_store)
    assert run.info.status == "FAILED"
    run_stage(uri)
    (run,) = runs_of(mlflow_store)
    assert (run.info.status, run.info.run_name) == ("FINISHED", uri.name)
    assert run.info.end_time > run.info.start_time
    assert run.data.tags["mlflow.source.name"].startswith("clipmill ")
    log = [json.loads(line) for line in (uri / "log.jsonl").read_text().splitlines()]
    history = mlflow_store.get_metric_history(run.info.run_id, "loss")
    # Steps 4 and 5 were done twice, after the checkpoint of step 3.
    assert [(m.step, m.value) for m in history] == [(r["step"], r["loss"]) for r in log]
    metrics = run.data.metrics
    assert (metrics["cost/restarts"], metrics["cost/lost_steps"]) == (1, 2)
    assert metrics["cost/device_hours"] > 0
    assert run.data.params["train.schedule.lr"] == "0.01"
    tags = run.data.tags
    assert (tags["clipmill.cost.restarts"], tags["clipmill.cost.lost_steps"]) == ("1", "2")
    assert "CPU core" in tags["clipmill.cost.device"]
    assert tags["clipmill.uri"] == str(uri)
    assert tags["clipmill.digest"] == "1" * 64
    assert tags["clipmill.parent.dataset"] == tags["clipmill.parent.dataset1"]
    assert tags["clipmill.parent.dataset"] == f"s3://b/d {'0' * 64}"
    assert tags["clipmill.captions"] == "real"
    assert tags["clipmill.seen_samples"] == "64"


def test_a_command_that_is_repeated_sends_what_a_tracker_has_missed(
    tmp_path: Path, mlflow_store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = tmp_path / "store" / "encoders" / "real-0123456789ab"
    with monkeypatch.context() as without:
        without.delenv(tracking.TRACKING_VARIABLE)
        run_stage(uri)
    with Stage("pretrain") as stage:
        stage.set_output(str(uri))
    (run,) = runs_of(mlflow_store)
    history = mlflow_store.get_metric_history(run.info.run_id, "loss")
    assert [m.step for m in history] == list(range(1, CONFIG.steps + 1))
    assert "clipmill.seconds" not in run.data.tags
    with Stage("pretrain") as stage:
        stage.set_output(str(uri))
    (again,) = runs_of(mlflow_store)
    assert again.info.end_time == run.info.end_time


def test_a_promotion_is_a_version_of_a_registered_model(tmp_path: Path, mlflow_store: Any) -> None:
    def promote(digit: str) -> None:
        with Stage("promote") as stage:
            model = {"role": "model", "uri": f"s3://b/models/{digit}", "digest": digit * 64}
            evaluation = {"role": "evaluation", "uri": "s3://b/evaluations/a", "digest": "a" * 64}
            promotion = {
                "kind": "promotion",
                "digest": digit * 64,
                "gate": {"task": "depth", "threshold": 1.0},
                "parents": [model, evaluation],
                "summary": {"RMSE": "0.5 m"},
            }
            folder = tmp_path / "serving" / "depth"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "promotion.json").write_text(json.dumps(promotion))
            stage.set_output(str(folder))

    for digit in "1221":
        promote(digit)
        version = mlflow_store.get_model_version_by_alias("clipmill-depth", "promoted")
        assert version.tags["clipmill.digest"] == digit * 64
        assert version.source == f"s3://b/models/{digit}"
        assert version.tags["clipmill.RMSE"] == "0.5 m"
        run = mlflow_store.get_run(version.run_id)
        assert run.data.tags["clipmill.uri"] == version.source
    versions = mlflow_store.search_model_versions("name = 'clipmill-depth'")
    assert sorted(int(v.version) for v in versions) == [1, 2]


def test_tensorboard_shows_each_step_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv(tracking.TRACKING_VARIABLE, f"tensorboard:{tmp_path / 'board'}")
    uri = tmp_path / "store" / "encoders" / "real-0123456789ab"
    with pytest.raises(TrainingError):
        run_stage(uri, stop_after=5)
    run_stage(uri)
    events = EventAccumulator(str(tmp_path / "board" / uri.name))
    events.Reload()
    assert [e.step for e in events.Scalars("loss")] == list(range(1, CONFIG.steps + 1))
    assert "clipmill/text_summary" in events.Tags()["tensors"]


def test_weights_and_biases_writes_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv(tracking.TRACKING_VARIABLE, "wandb:captions")
    uri = tmp_path / "store" / "encoders" / "real-0123456789ab"
    run_stage(uri)
    (file,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    wandb.teardown()  # as at the process's end: its own process writes the file
    content = file.read_bytes()
    assert uri.name.encode() in content
    assert b"train.schedule.lr" in content
    assert content.count(b"gradient_norm") >= CONFIG.steps


class AwayTracker(Tracker):
    """One that fails a number of times, then keeps what it gets."""

    def __init__(self, num_failures: int) -> None:
        self.num_failures = num_failures
        self.steps: list[float] = []
        self.status = ""

    def fail(self) -> None:
        self.num_failures -= 1
        if self.num_failures >= 0:
            raise ConnectionError("connection refused")

    @property
    def last_step(self) -> int:
        return int(self.steps[-1]) if self.steps else -1

    def log_params(self, params: Any) -> None:
        self.fail()

    def log_metrics(self, records: Any) -> None:
        self.fail()
        self.steps += [record["step"] for record in records]

    def set_tags(self, tags: Any) -> None:
        self.fail()

    def set_status(self, status: str) -> None:
        self.status = status


def test_a_tracker_that_comes_back_gets_all(caplog: pytest.LogCaptureFixture) -> None:
    tracker = AwayTracker(num_failures=3)
    run = TrackedRun("clip", "json", lambda: tracker)
    run.log_params({"steps": 3})
    for step in (1, 2, 2, 3):
        run.log_metrics([{"step": step, "loss": 1.0}])
    run.close("finished")
    assert tracker.steps == [1, 2, 3]
    assert tracker.status == "finished"
    assert caplog.text.count("clip can't be tracked now: connection refused") == 1


def test_a_tracker_that_stays_away_ends_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(tracking.TRACKING_VARIABLE, "mlflow:http://127.0.0.1:9")
    monkeypatch.setitem(tracking._CLOSE_SECONDS, "finished", 1.0)
    uri = tmp_path / "store" / "encoders" / "real-0123456789ab"
    run_stage(uri)
    assert (uri / "model.json").exists()
    assert "the same command sends the rest later" in caplog.text


@pytest.mark.parametrize("text", ["comet:x", "mlflow", "tensorboard:", "http://127.0.0.1:5000"])
def test_an_unknown_tracker_is_refused_before_any_work(
    text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(tracking.TRACKING_VARIABLE, text)
    with pytest.raises(ConfigError, match="the tracker was"):
        check_tracking()
    command = ["pretrain", "clip", "D", "--store", str(tmp_path), "--tracking", text]
    result = CliRunner().invoke(app, command)
    assert isinstance(result.exception, ConfigError)


def test_a_package_that_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(tracking.TRACKING_VARIABLE, "wandb:x")
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="wandb isn't installed") as caught:
        check_tracking()
    assert caught.value.action == "pip install 'clipmill[wandb]'"


def test_other_ranks_track_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv(tracking.TRACKING_VARIABLE, f"mlflow:{tmp_path}")
    assert open_run(str(tmp_path), "a") is None
    assert list(tmp_path.iterdir()) == []


def test_trials_are_runs_below_their_sweeps(tmp_path: Path, mlflow_store: Any) -> None:
    sweep = str(tmp_path / "store" / "sweeps" / "depth-0123456789ab")
    for rate in (1e-3, 1e-2):
        trial = {
            "kind": "trial",
            "digest": f"{rate}",
            "config": {"train": {"schedule": {"lr": rate}}},
            "metrics": {"rmse": 100 * rate},
        }
        uri = f"{tmp_path}/store/trials/depth-{rate}"
        tracking.track_artifact(
            uri, trial, stage="sweep point", seconds=1.0, tags={"clipmill.sweep": sweep}
        )
    tracking.track_artifact(
        f"{tmp_path}/store/trials/other", trial, stage="sweep point", seconds=1.0
    )
    tracking.track_artifact(
        sweep, {"kind": "sweep", "metrics": {"rmse": 0.1}}, stage="sweep depth", seconds=2.0
    )
    runs = runs_of(mlflow_store)
    (parent,) = (r for r in runs if r.data.tags["clipmill.kind"] == "sweep")
    below = [r for r in runs if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    found = {r.data.params["train.schedule.lr"]: r.data.metrics["rmse"] for r in below}
    assert found == {"0.001": 0.1, "0.01": 1.0}
    assert parent.data.metrics == {"rmse": 0.1}
