"""An evaluation as an artifact: figures, pictures, where it lies."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from clipmill.data.labeled.dense import DepthFolder
from clipmill.errors import NotFoundError, SourceError
from clipmill.lineage import lineage
from clipmill.models.checkpoint import CheckpointMetadata, save_checkpoint
from clipmill.tasks.depth.training import DepthMetrics, DepthTraining
from clipmill.tasks.evaluation import evaluate, read_evaluation
from clipmill.tasks.predictor import Predictor
from helpers.tiny_tasks import DEPTH, VIT


def silent(done, total, words):
    pass


def fail(done, total, words):
    pytest.fail("worked again")


@pytest.fixture
def model(tmp_path):
    return save_model(tmp_path / "model", seed=0)


def save_model(folder, seed):
    torch.manual_seed(seed)
    task = DepthTraining()
    architecture = {"task": "depth", "classes": [], "encoder": VIT.to_json()}
    metadata = CheckpointMetadata(
        kind="task",
        architecture=architecture | {"config": DEPTH.to_json()},
        recipe={"train": {"num_threads": 0}},
    )
    return save_checkpoint(
        str(folder), metadata, task.build_inference_model(DEPTH, VIT, ()).state_dict()
    )


def test_figures_are_those_of_the_models_predictions(model, nyu_folder, tmp_path):
    uri = evaluate(model.uri, str(nyu_folder), str(tmp_path), report=silent)
    found = read_evaluation(uri)
    predictor, data = Predictor.open(model.uri), DepthFolder.open(nyu_folder, "test")
    expected = DepthMetrics(max_depth_meters=10.0)
    for index in range(len(data)):
        (prediction,) = predictor.predict([data.image_HW3(index)])
        expected.update(prediction["depth_meters"], data.depth_HW(index))
    assert found.metrics == pytest.approx(expected.result() | {"num_eigen_cropped": 0})
    assert found.task == "depth"
    assert found.model == model.as_parent("model")
    assert found.data.uri == str(nyu_folder)


def test_pictures_are_kept(model, nyu_folder, tmp_path):
    uri = evaluate(model.uri, str(nyu_folder), str(tmp_path), report=silent)
    found, data = read_evaluation(uri), DepthFolder.open(nyu_folder, "test")
    assert found.num_samples == len(data) == 2
    task = DepthTraining()
    for index in range(2):
        shown = {
            name: np.asarray(Image.open(io.BytesIO(found.read_image(index, name))))
            for name in ("image", "truth", "prediction")
        }
        assert np.array_equal(shown["image"], data.image_HW3(index))
        assert np.array_equal(
            shown["truth"],
            task.visualize({"depth_meters": data.depth_HW(index)}, shown["image"], ()),
        )
        (prediction,) = Predictor.open(model.uri).predict([data.image_HW3(index)])
        difference = shown["prediction"].astype(int) - task.visualize(
            prediction, shown["image"], ()
        )
        assert abs(difference).max() <= 1
    with pytest.raises(NotFoundError):
        found.read_image(2, "image")


def test_done_once(model, nyu_folder, tmp_path):
    uri = evaluate(model.uri, str(nyu_folder), str(tmp_path), report=silent)
    assert evaluate(model.uri, str(nyu_folder), str(tmp_path), report=fail) == uri


def test_another_model_is_judged_elsewhere(model, nyu_folder, tmp_path):
    other = save_model(tmp_path / "other", seed=1)
    uris = {evaluate(m.uri, str(nyu_folder), str(tmp_path), report=silent) for m in (model, other)}
    assert len(uris) == 2


def test_lineage_leads_to_model_and_data(model, nyu_folder, tmp_path):
    node = lineage(evaluate(model.uri, str(nyu_folder), str(tmp_path), report=silent))
    assert node.kind == "evaluation"
    assert [(p.role, p.kind) for p in node.parents] == [("model", "task"), ("data", "folder")]
    assert node.detail["rmse"].endswith(" m")


def test_no_model(nyu_folder, tmp_path):
    with pytest.raises(NotFoundError):
        evaluate(str(tmp_path / "nothing"), str(nyu_folder), str(tmp_path), report=silent)


def test_no_data(model, tmp_path):
    with pytest.raises(SourceError, match="is not a folder"):
        evaluate(model.uri, str(tmp_path / "nothing"), str(tmp_path), report=silent)
