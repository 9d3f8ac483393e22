"""A promotion's record becomes an endpoint: lineage, the task, what isn't there, patience."""

from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Timer

import numpy as np
import pytest

from clipmill.cluster import canary_checks
from clipmill.cluster.canary_checks import agreement, check_answers
from clipmill.cluster.kserve import InferenceServiceConfig, served_model
from clipmill.cluster.rollout import RolloutConfig, deploy_promotion, rollback
from clipmill.errors import ArtifactError, ConfigError, GateError, NotFoundError, ServerError
from clipmill.lineage import Parent, read_artifact
from clipmill.models.checkpoint import CheckpointMetadata, save_checkpoint
from clipmill.processes import free_port
from clipmill.registry import REGISTRY_VARIABLE, KubeflowRegistry, open_registry
from clipmill.storage import join, write_bytes, write_json
from clipmill.tasks.evaluation import EvaluationResult, read_evaluation
from clipmill.tasks.visualization import encode_png
from helpers.kserve_cluster import ISVC, KServe
from helpers.kubeflow_registry import Registry, serving

ENDPOINT = InferenceServiceConfig(name="depth", namespace="ml")
QUICK = RolloutConfig(
    ready_seconds=1.0, answer_seconds=0.0, observation_seconds=0.0, poll_interval_seconds=0.01
)
IMAGE = np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8)


def checkpoint(store, name, task="depth"):
    import torch

    parents = (Parent(role="encoder", uri="e", digest="abc"),)
    metadata = CheckpointMetadata(
        kind="task-model", architecture={"task": task}, recipe={"n": name}, parents=parents
    )
    return save_checkpoint(join(store, "models", name), metadata, {"w": torch.zeros(1)})


@pytest.fixture
def promotion(tmp_path):
    """A promoted depth model; nothing of it can be served here."""
    store = str(tmp_path)
    metadata = checkpoint(store, "m")
    evaluation = join(store, "evaluations/e")
    write_bytes(join(evaluation, "00-image.png"), encode_png(IMAGE))
    data = {"role": "data", "uri": "d", "digest": "d"}
    write_json(
        join(evaluation, "evaluation.json"),
        {
            "format": 1, "kind": "evaluation", "digest": "e", "task": "depth",
            "metrics": {"rmse": 0.4}, "num_samples": 1,
            "parents": [metadata.as_parent("model").to_json(), data],
        },
    )  # fmt: skip
    write_json(join(store, "serving/depth/promotion.json"), {"evaluation": evaluation})
    return join(store, "serving/depth")


def test_the_model_is_created_with_its_lineage_and_asked(cluster, promotion):
    KServe(cluster)
    with pytest.raises(ServerError, match=r"depth-endpoint\.ml"):
        deploy_promotion(promotion, ENDPOINT, QUICK, api=cluster.api())
    model = served_model(cluster.resources[ISVC + "depth"]["spec"]["predictor"])
    assert model.uri.endswith("models/m")
    assert model.parents == {"encoder": "abc"}
    assert model.metrics == {"rmse": 0.4}


def test_an_image_of_the_model_is_served_in_the_stores_place(cluster, promotion):
    KServe(cluster)
    image = "oci+native://registry.example.com/depth:1"
    with pytest.raises(ServerError, match=r"depth-endpoint\.ml"):
        deploy_promotion(promotion, ENDPOINT, QUICK, image=image, api=cluster.api())
    model = served_model(cluster.resources[ISVC + "depth"]["spec"]["predictor"])
    assert (model.uri, model.metrics) == (image, {"rmse": 0.4})
    with pytest.raises(ConfigError, match="the image was"):
        deploy_promotion(
            promotion, ENDPOINT, QUICK, image="registry.example.com/depth:1", api=cluster.api()
        )


def test_the_task_of_a_chart_endpoint_is_read_from_its_model(cluster, promotion, tmp_path):
    kserve = KServe(cluster)
    with pytest.raises(ServerError):
        deploy_promotion(promotion, ENDPOINT, QUICK, api=cluster.api())
    other = checkpoint(str(tmp_path), "seg", "segmentation")
    predictor = kserve.endpoint()["spec"]["predictor"]
    predictor["model"]["env"] = [{"name": "MODEL_URI", "value": other.uri}]
    with pytest.raises(ConfigError, match="serves the task segmentation, and the model's is depth"):
        deploy_promotion(promotion, ENDPOINT, QUICK, api=cluster.api())
    predictor["model"]["env"][0]["value"] = "/nowhere"
    # A model that is gone can be replaced; the canary then isn't reached from here.
    with pytest.raises(GateError, match=r"depth-rev-[0-9a-f]{8}-predictor\.ml"):
        deploy_promotion(promotion, ENDPOINT, QUICK, api=cluster.api())


def test_a_promotion_that_isnt_there_is_said(cluster, tmp_path):
    with pytest.raises(NotFoundError):
        deploy_promotion(str(tmp_path / "none"), ENDPOINT, QUICK, api=cluster.api())
    assert cluster.requests == []


# A server of which only its description is asked: the evaluation keeps no image.

NO_IMAGE = EvaluationResult(
    uri="e",
    digest="e",
    task="depth",
    model=Parent(role="model", uri="m", digest="m"),
    data=Parent(role="data", uri="d", digest="d"),
    metrics={},
    num_samples=0,
)


class Describing(BaseHTTPRequestHandler):
    """A server that describes its model, or answers 500."""

    status = 200
    num_requests = 0

    def log_message(self, *args):
        """Be quiet."""

    def do_GET(self):
        Describing.num_requests += 1
        self.send_response(Describing.status)
        self.end_headers()
        self.wfile.write(b'{"parameters": {"classes": []}}')


@contextmanager
def describing(port, *, after_seconds=0.0, status=200):
    Describing.status, Describing.num_requests = status, 0
    servers = []

    def serve():
        servers.append(HTTPServer(("127.0.0.1", port), Describing))
        servers[0].serve_forever(0.01)

    timer = Timer(after_seconds, serve)
    timer.daemon = True
    timer.start()
    yield f"http://127.0.0.1:{port}"
    servers[0].shutdown()
    servers[0].server_close()


def check(url, seconds):
    return check_answers(
        url,
        "depth",
        NO_IMAGE,
        min_agreement=0.9,
        answer_seconds=seconds,
        poll_interval_seconds=0.05,
    )


def test_refused_connections_are_tried_again_within_a_limit():
    with pytest.raises(ServerError, match="can't be queried"):
        check(f"http://127.0.0.1:{free_port('127.0.0.1')}", 0.2)
    with describing(free_port("127.0.0.1"), after_seconds=0.3) as url:
        assert "keeps no image" in check(url, 30.0)


def test_an_answer_of_500_isnt_tried_again():
    with describing(free_port("127.0.0.1"), status=500) as url:
        with pytest.raises(ServerError, match="answered 500"):
            check(url, 30.0)
        assert Describing.num_requests == 1


def test_agreement_counts_what_is_drawn():
    plain, drawn = IMAGE.copy(), IMAGE.copy()
    drawn[:10] = 255
    assert agreement(plain, plain, IMAGE) == 1.0
    assert agreement(drawn, drawn, IMAGE) == 1.0
    assert agreement(drawn, plain, IMAGE) < 0.05
    assert agreement(drawn, drawn[:50], IMAGE) == 0.0


@pytest.fixture
def registered(promotion, tmp_path, monkeypatch):
    """A registry with two versions of the depth model, the second promoted; their evaluations."""
    versions = {"m": join(str(tmp_path), "evaluations/e")}
    other = checkpoint(str(tmp_path), "n")
    versions["n"] = join(str(tmp_path), "evaluations/f")
    data = {"role": "data", "uri": "d", "digest": "d"}
    write_bytes(join(versions["n"], "00-image.png"), encode_png(IMAGE))
    write_json(
        join(versions["n"], "evaluation.json"),
        {
            "format": 1, "kind": "evaluation", "digest": "f", "task": "depth",
            "metrics": {"rmse": 0.3}, "num_samples": 1,
            "parents": [other.as_parent("model").to_json(), data],
        },
    )  # fmt: skip
    with serving(Registry()) as url:
        monkeypatch.setenv(REGISTRY_VARIABLE, f"kubeflow:{url}")
        for evaluation in versions.values():
            result = read_evaluation(evaluation)
            model = read_artifact(result.model.uri) | {"uri": result.model.uri}
            found = {"uri": evaluation, "metrics": result.metrics}
            KubeflowRegistry(url).register("depth", model, found)
        yield versions


@pytest.fixture
def answering(monkeypatch):
    """Endpoints that answer as evaluated: nothing can be served here."""
    monkeypatch.setattr(canary_checks, "check_answers", lambda *_, **__: "all images")


def serves(kserve):
    resource = kserve.endpoint()
    model = served_model(resource["spec"]["predictor"])
    labels = resource["metadata"]["labels"]
    version = labels.get("modelregistry.kubeflow.org/model-version-id")
    assert (
        labels.get("clipmill.io/model-version")
        == version
        == model.labels.get("clipmill.io/model-version")
    )
    return model.uri.rpartition("/")[2], version


@pytest.mark.usefixtures("answering")
def test_an_endpoint_is_rolled_back_by_version_and_by_digest(cluster, promotion, registered):
    kserve = KServe(cluster)
    api = cluster.api()
    deploy_promotion(promotion, ENDPOINT, QUICK, api=api)
    newest, oldest = open_registry().versions("clipmill-depth")
    assert serves(kserve) == ("m", oldest.version)
    assert rollback(newest.version, ENDPOINT, QUICK, api=api).changed
    assert serves(kserve) == ("n", newest.version)
    done = rollback(oldest.digest[:12], ENDPOINT, QUICK, api=api)
    assert (done.changed, done.digest) == (True, oldest.digest)
    assert serves(kserve) == ("m", oldest.version)
    # It serves already.
    assert not rollback(oldest.version, ENDPOINT, QUICK, api=api).changed
    assert served_model(kserve.endpoint()["spec"]["predictor"]).metrics == {"rmse": 0.4}


@pytest.mark.usefixtures("answering")
def test_a_rollback_to_what_isnt_there_changes_nothing(
    cluster, promotion, registered, tmp_path, monkeypatch
):
    kserve, api = KServe(cluster), cluster.api()
    with pytest.raises(ConfigError, match="no endpoint depth"):
        rollback("1", ENDPOINT, QUICK, api=api)
    deploy_promotion(promotion, ENDPOINT, QUICK, api=api)
    before = serves(kserve)
    newest, _ = open_registry().versions("clipmill-depth")
    with pytest.raises(NotFoundError, match="no version 77"):
        rollback("77", ENDPOINT, QUICK, api=api)
    # Another model lies where the version's was.
    checkpoint(str(tmp_path), "n", task="segmentation")
    with pytest.raises(ArtifactError, match="restore the model"):
        rollback(newest.version, ENDPOINT, QUICK, api=api)
    (tmp_path / "models" / "n" / "model.json").unlink()
    with pytest.raises(NotFoundError):
        rollback(newest.version, ENDPOINT, QUICK, api=api)
    monkeypatch.delenv(REGISTRY_VARIABLE)
    with pytest.raises(ConfigError, match="no registry is configured"):
        rollback(newest.version, ENDPOINT, QUICK, api=api)
    assert serves(kserve) == before


@pytest.mark.usefixtures("answering")
def test_a_registry_that_is_away_holds_no_deployment_up(cluster, promotion, monkeypatch, caplog):
    kserve = KServe(cluster)
    monkeypatch.setenv(REGISTRY_VARIABLE, f"kubeflow:http://127.0.0.1:{free_port()}")
    deploy_promotion(promotion, ENDPOINT, QUICK, api=cluster.api())
    assert serves(kserve) == ("m", None)
    assert "no labels of the registry" in caplog.text
