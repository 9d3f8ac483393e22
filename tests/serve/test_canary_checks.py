"""Answers of a real server, held against an evaluation of the models that it serves."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipmill.cluster.canary_checks import check_answers
from clipmill.errors import GateError
from clipmill.lineage import Parent
from clipmill.serve.launch import ServerProcess
from clipmill.storage import join, write_bytes
from clipmill.tasks.evaluation import EvaluationResult
from clipmill.tasks.predictor import Predictor
from clipmill.tasks.registry import TASKS
from clipmill.tasks.visualization import encode_png
from helpers.small_models import save_model


@pytest.fixture(scope="module")
def served(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[str, dict[str, Predictor]]]:
    """A server of a model of each task, and the same models in this process."""
    folder = tmp_path_factory.mktemp("tasks")
    uris = {task: save_model(str(folder / task), task) for task in TASKS}
    with ServerProcess(uris, log_path=folder / "server.log") as server:
        yield server.url, {task: Predictor.open(uri) for task, uri in uris.items()}


def write_evaluation(
    folder: Path,
    predictor: Predictor,
    image_HW3: np.ndarray,
    prediction: Mapping[str, Any],
    truth: Mapping[str, Any],
) -> EvaluationResult:
    images = {
        "image": image_HW3,
        "prediction": predictor.visualize(prediction, image_HW3),
        "truth": predictor.visualize(truth, image_HW3),
    }
    for name, pixels_HW3 in images.items():
        write_bytes(join(str(folder), f"00-{name}.png"), encode_png(pixels_HW3))
    parent = Parent(role="model", uri="m", digest="m")
    return EvaluationResult(
        uri=str(folder),
        digest="e",
        task=predictor.task.name,
        model=parent,
        data=parent,
        metrics={},
        num_samples=1,
    )


def other_than(prediction: Mapping[str, Any]) -> dict[str, Any]:
    """A prediction of another model, in which nothing or everything is different."""
    if "scores" in prediction:
        return {name: array[:0] for name, array in prediction.items()}
    if "probabilities" in prediction:
        probabilities = prediction["probabilities"]
        return {"probabilities": np.eye(len(probabilities))[probabilities.argmin()]}
    if "classes" in prediction:
        return {"classes": (prediction["classes"] + 1) % 3}
    return {"depth_meters": 10.0 - prediction["depth_meters"]}


def check(url: str, result: EvaluationResult) -> str:
    return check_answers(url, result.task, result, min_agreement=0.9, answer_seconds=5.0)


@pytest.mark.parametrize("task", TASKS)
def test_a_model_that_answers_as_evaluated_passes(
    served: Any, picture: np.ndarray, tmp_path: Path, task: str
) -> None:
    url, predictors = served
    (prediction,) = predictors[task].predict([picture])
    other = other_than(prediction)
    result = write_evaluation(tmp_path, predictors[task], picture, prediction, other)
    seen = check(url, result)
    assert seen.startswith("1 labeled image of the evaluation: the answers agree with the")
    # Labels that the evaluated model didn't meet either are no reason to refuse it.
    assert "evaluation by 100%" in seen


@pytest.mark.parametrize("task", TASKS)
def test_a_model_that_answers_otherwise_is_refused(
    served: Any, picture: np.ndarray, tmp_path: Path, task: str
) -> None:
    url, predictors = served
    (prediction,) = predictors[task].predict([picture])
    other = other_than(prediction)
    result = write_evaluation(tmp_path, predictors[task], picture, other, other)
    with pytest.raises(GateError, match="doesn't answer as it was evaluated"):
        check(url, result)


def test_answers_that_meet_the_labels_less_than_evaluated_are_refused(
    served: Any, picture: np.ndarray, tmp_path: Path
) -> None:
    url, predictors = served
    predictor = predictors["segmentation"]
    (prediction,) = predictor.predict([picture])
    evaluated = {"classes": prediction["classes"].copy()}
    evaluated["classes"][:4] = (evaluated["classes"][:4] + 1) % 3  # 8 % of the pixels
    assert check(url, write_evaluation(tmp_path, predictor, picture, evaluated, prediction))
    result = write_evaluation(tmp_path, predictor, picture, evaluated, evaluated)
    with pytest.raises(GateError, match=r"with the labels by 92% \(evaluated: 100%\)"):
        check(url, result)
