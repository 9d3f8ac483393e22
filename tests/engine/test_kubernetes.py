"""A training in a pod: progress to Kubeflow Trainer and Events to the API server, over HTTPS."""

import json
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from clipmill.engine import kubernetes
from clipmill.engine.config import ScheduleConfig, TrainConfig
from clipmill.engine.kubernetes import POD_VARIABLES, PodEvents, TrainJobStatus
from clipmill.engine.trainer import train
from helpers.regression import Regression, regression_batches
from helpers.strict_schemas import definitions

CONFIG = TrainConfig(
    steps=8, batch_size=8, schedule=ScheduleConfig(lr=1e-2), checkpoint_every=3, log_every=1
)
STATUS = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/ml/trainjobs/clip/status"
EVENTS = "/api/v1/namespaces/ml/events"


class ControlPlane:
    """Takes posts over HTTPS by the token alone, and keeps them by path."""

    def __init__(self, folder: Path) -> None:
        self.posts: list[tuple[str, dict[str, Any]]] = []
        self.refusals = 0
        self.came = threading.Event()
        self.folder = folder
        self.token = folder / "token"
        self.authority = folder / "ca.crt"
        self.token.write_text("first\n")
        subject = ("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1")
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
                *("-keyout", folder / "key", "-out", self.authority, *subject),
            ],
            check=True,
            capture_output=True,
        )
        plane = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                is_allowed = (
                    self.headers["Authorization"] == f"Bearer {plane.token.read_text().strip()}"
                )
                if is_allowed:
                    plane.posts.append((self.path, json.loads(body)))
                    plane.came.set()
                else:
                    plane.refusals += 1
                self.send_response(200 if is_allowed else 403)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.authority, folder / "key")
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def port(self) -> int:
        return self.server.server_address[1]

    def at(self, path: str) -> list[dict[str, Any]]:
        return [body for known, body in self.posts if known == path]


@pytest.fixture
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    plane = ControlPlane(tmp_path_factory.mktemp("plane"))
    yield plane
    plane.server.shutdown()
    plane.server.server_close()


@pytest.fixture
def trainjob(plane: ControlPlane, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Kubeflow Trainer puts into the containers of a TrainJob."""
    monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_URL", f"https://127.0.0.1:{plane.port}{STATUS}")
    monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_CA_CERT", str(plane.authority))
    monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_TOKEN", str(plane.token))


@pytest.fixture
def pod(plane: ControlPlane, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the chart puts into a pod, and Kubernetes next to it."""
    for variable, value in zip(POD_VARIABLES, ("clip-node-0-0", "ml", "u-1"), strict=True):
        monkeypatch.setenv(variable, value)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(plane.port))
    monkeypatch.setattr(kubernetes, "SERVICE_ACCOUNT", plane.folder)


def run(uri: str, batches: Callable[..., Any] | None = None, steps: int = CONFIG.steps) -> None:
    def source(step: int, _dist: object) -> Any:
        return regression_batches(step)

    train(
        lambda _dist: Regression(),
        batches or source,
        CONFIG.override([f"steps={steps}"]),
        name="clip",
        checkpoint_uri=uri,
        report=lambda *_: None,
    )


def test_progress_and_metrics_of_a_trainjob(plane, trainjob, tmp_path):
    run(str(tmp_path))
    posts = plane.at(STATUS)
    assert 1 <= len(posts) <= 3  # the first, and what came until the end within 10 s
    last = posts[-1]["trainerStatus"]
    assert set(posts[-1]) == {"trainerStatus"}
    assert last["progressPercentage"] == 100
    assert last["estimatedRemainingSeconds"] == 0
    metrics = {m["name"]: float(m["value"]) for m in last["metrics"]}
    assert {"loss", "learning_rate", "samples_per_second"} <= set(metrics)
    when = datetime.fromisoformat(last["lastUpdatedTime"])
    assert timedelta() <= datetime.now(UTC) - when < timedelta(minutes=1)
    # As the CRD of Kubeflow Trainer wants it.
    crd = next(
        value
        for path in definitions().rglob("trainer.kubeflow.org_trainjobs.yaml")
        for value in yaml.safe_load_all(path.read_text())
    )
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]
    allowed = schema["properties"]["trainerStatus"]["properties"]
    assert set(last) <= set(allowed)
    for metric in last["metrics"]:
        limits = allowed["metrics"]["items"]["properties"]
        assert 1 <= len(metric["name"]) <= limits["name"]["maxLength"]
        assert 1 <= len(metric["value"]) <= limits["value"]["maxLength"]


def test_posts_are_limited_and_the_token_is_read_again(plane, trainjob, monkeypatch):
    monkeypatch.setattr(kubernetes, "STATUS_SECONDS", 0.05)
    status = TrainJobStatus.from_environment()
    for step in range(1, 200):
        status.report(step, 200, {"loss": 1.0})
    assert plane.came.wait(10)
    plane.token.write_text("renewed")
    status.report(200, 200, {"loss": float("0.123456789")})
    status.close()
    posts = plane.at(STATUS)
    assert len(posts) < 20
    assert posts[-1]["trainerStatus"]["metrics"] == [{"name": "loss", "value": "0.123457"}]
    assert plane.refusals == 0


def test_a_training_waits_for_no_endpoint(trainjob, pod, tmp_path, monkeypatch, plane, caplog):
    plane.server.shutdown()
    plane.server.server_close()
    run(str(tmp_path))
    assert "the TrainJob's progress can't be reported now" in caplog.text


def test_nothing_is_posted_elsewhere(trainjob, pod, plane, monkeypatch, tmp_path):
    monkeypatch.setenv("RANK", "1")
    assert TrainJobStatus.from_environment() is None
    assert PodEvents.from_environment() is None
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("KUBEFLOW_TRAINER_SERVER_TOKEN")
    monkeypatch.delenv("CLIPMILL_POD_UID")
    assert TrainJobStatus.from_environment() is None
    assert PodEvents.from_environment() is None
    monkeypatch.setenv("CLIPMILL_POD_UID", "u-1")
    monkeypatch.setattr(kubernetes, "SERVICE_ACCOUNT", tmp_path)
    assert PodEvents.from_environment() is None


def test_events_of_a_resume_and_of_skipped_updates(pod, plane, tmp_path):
    def broken(step: int, _dist: object) -> Any:
        for number, batch in enumerate(regression_batches(step), start=step):
            if number in {5, 6}:
                batch["x"].fill_(float("nan"))
            yield batch

    run(str(tmp_path), steps=4)
    assert plane.posts == []
    run(str(tmp_path), broken)
    events = {event["reason"]: event for event in plane.at(EVENTS)}
    assert set(events) == {"TrainingResumed", "UpdatesSkipped"}
    resumed, skipped = events["TrainingResumed"], events["UpdatesSkipped"]
    assert resumed["message"] == "clip: resumed from step 3 of 8"
    assert resumed["type"] == "Normal"
    assert resumed["involvedObject"] == {
        "apiVersion": "v1",
        "kind": "Pod",
        "name": "clip-node-0-0",
        "namespace": "ml",
        "uid": "u-1",
    }
    assert (skipped["type"], skipped["count"]) == ("Warning", 2)
    assert "2 not_finite; the last at step 7" in skipped["message"]
    assert len(plane.posts) <= 3
