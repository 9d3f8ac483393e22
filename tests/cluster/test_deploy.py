"""A promotion's record becomes an endpoint, judged by the answers of a real server."""

import urllib.error

import numpy as np
import pytest

from clipmill.cluster.canary_checks import agreement, check_answers
from clipmill.cluster.kserve import InferenceServiceConfig, served_model
from clipmill.cluster.rollout import RolloutConfig, deploy_promotion
from clipmill.errors import ConfigError, GateError, NotFoundError, ServerError
from clipmill.lineage import Parent
from clipmill.models.checkpoint import CheckpointMetadata, save_checkpoint
from clipmill.storage import join, write_bytes, write_json
from clipmill.tasks.evaluation import EvaluationResult
from clipmill.tasks.registry import get_task
from clipmill.tasks.visualization import encode_png
from helpers.kserve_cluster import ISVC, KServe

ENDPOINT = InferenceServiceConfig(name="depth", namespace="ml")
QUICK = RolloutConfig(
    ready_seconds=1.0, answer_seconds=0.0, observation_seconds=0.0, poll_interval_seconds=0.01
)
IMAGE = np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8)
LIMITS = {"min_agreement": 0.9, "answer_seconds": 0.0, "poll_interval_seconds": 0.01}


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


# Answers, of each task, as a client of ours would return them.

MASK = np.zeros((1, 200, 200), np.uint8)
MASK[0, 50:150, 50:150] = 1
PREDICTIONS = {
    "segmentation": {"classes": np.full((200, 200), 3, np.uint8)},
    "depth": {"depth_metres": np.full((200, 200), 4.0, np.float32)},
    "detection": {
        "boxes": np.array([[50, 50, 150, 150]], np.float32),
        "scores": np.array([0.9], np.float32),
        "labels": np.array([1]),
        "masks": MASK,
    },
    "classification": {"probabilities": np.array([0.1, 0.7, 0.2], np.float32)},
}
WRONG = {
    "segmentation": {"classes": np.full((200, 200), 4, np.uint8)},
    "depth": {"depth_metres": np.full((200, 200), 9.0, np.float32)},
    "detection": {**PREDICTIONS["detection"], "scores": np.array([0.1], np.float32)},
    "classification": {"probabilities": np.array([0.8, 0.1, 0.1], np.float32)},
}
CLASSES = ("floor", "wall", "cube", "ball", "cone")


class Answering:
    """A client whose server answers what a test says, after some refused connections."""

    answer: dict
    refused = 0
    error: Exception | None = None

    def __init__(self, url):
        pass

    def metadata(self, name):
        if Answering.refused:
            Answering.refused -= 1
            cause = Answering.error or ConnectionRefusedError("no way")
            raise ServerError("can't be queried", expected="it", action="wait") from cause
        return {"parameters": {"classes": list(CLASSES)}}

    def infer(self, name, images):
        return {key: value[None] for key, value in self.answer.items()}

    def detect(self, name, images):
        return [self.answer]


@pytest.fixture
def evaluated(tmp_path, monkeypatch):
    """A function from a task to its evaluation of one image, whose label is the prediction."""
    from clipmill.cluster import canary_checks

    monkeypatch.setattr(canary_checks, "Client", Answering)
    Answering.refused, Answering.error = 0, None

    def result(task, truth=None):
        drawn = get_task(task).visualize(PREDICTIONS[task], IMAGE, CLASSES)
        label = get_task(task).visualize(truth or PREDICTIONS[task], IMAGE, CLASSES)
        images = {"image": IMAGE, "prediction": drawn, "truth": label}
        for name, pixels in images.items():
            write_bytes(join(str(tmp_path), f"00-{name}.png"), encode_png(pixels))
        parent = Parent(role="model", uri="m", digest="d")
        return EvaluationResult(
            uri=str(tmp_path),
            digest="d",
            task=task,
            model=parent,
            data=parent,
            metrics={},
            num_samples=1,
        )

    return result


@pytest.mark.parametrize("task", PREDICTIONS)
def test_answers_of_every_task_are_held_against_the_evaluation(evaluated, task):
    Answering.answer = PREDICTIONS[task]
    seen = check_answers("http://x", task, evaluated(task), **LIMITS)
    assert (
        "1 labeled images of the evaluation: the answers agree with the evaluation by 100%" in seen
    )
    Answering.answer = WRONG[task]
    with pytest.raises(GateError, match="doesn't answer as it was evaluated"):
        check_answers("http://x", task, evaluated(task), **LIMITS)


def test_answers_that_meet_the_labels_less_than_evaluated_are_refused(evaluated):
    almost = PREDICTIONS["segmentation"]["classes"].copy()
    almost[:16] = 4  # 8 % of the pixels
    Answering.answer = {"classes": almost}
    assert check_answers("http://x", "s", evaluated("segmentation", {"classes": almost}), **LIMITS)
    with pytest.raises(GateError, match=r"with the labels by 92% \(evaluated: 100%\)"):
        check_answers("http://x", "s", evaluated("segmentation"), **LIMITS)


def test_refused_connections_are_tried_again_within_a_limit(evaluated):
    Answering.answer = PREDICTIONS["depth"]
    Answering.refused = 3
    patient = {**LIMITS, "answer_seconds": 5.0}
    assert check_answers("http://x", "depth", evaluated("depth"), **patient)
    Answering.refused = 3
    with pytest.raises(ServerError):
        check_answers("http://x", "depth", evaluated("depth"), **LIMITS)


def test_an_answer_of_500_isnt_tried_again(evaluated):
    Answering.answer = PREDICTIONS["depth"]
    Answering.refused = 2
    Answering.error = urllib.error.HTTPError("u", 500, "broken", None, None)
    with pytest.raises(ServerError):
        check_answers("http://x", "depth", evaluated("depth"), **{**LIMITS, "answer_seconds": 5.0})
    assert Answering.refused == 1


def test_agreement_counts_what_is_drawn():
    plain, drawn = IMAGE.copy(), IMAGE.copy()
    drawn[:10] = 255
    assert agreement(plain, plain, IMAGE) == 1.0
    assert agreement(drawn, drawn, IMAGE) == 1.0
    assert agreement(drawn, plain, IMAGE) < 0.05
    assert agreement(drawn, drawn[:50], IMAGE) == 0.0
