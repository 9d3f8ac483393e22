"""A promotion's record becomes an endpoint: lineage, the task, what isn't there, patience."""

from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Timer

import numpy as np
import pytest

from clipmill.cluster.canary_checks import agreement, check_answers
from clipmill.cluster.kserve import InferenceServiceConfig, served_model
from clipmill.cluster.rollout import RolloutConfig, deploy_promotion
from clipmill.errors import ConfigError, GateError, NotFoundError, ServerError
from clipmill.lineage import Parent
from clipmill.models.checkpoint import CheckpointMetadata, save_checkpoint
from clipmill.processes import free_port
from clipmill.storage import join, write_bytes, write_json
from clipmill.tasks.evaluation import EvaluationResult
from clipmill.tasks.visualization import encode_png
from helpers.kserve_cluster import ISVC, KServe

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
