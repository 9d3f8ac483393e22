"""Task models as ONNX graphs, run by ONNX Runtime and held against the predictor."""

import json

import numpy as np
import pytest

from clipmill.errors import ConfigError
from clipmill.models.checkpoint import load_checkpoint, save_checkpoint
from clipmill.tasks.export import export
from clipmill.tasks.predictor import Predictor
from helpers.small_models import save_model

onnxruntime = pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.filterwarnings("ignore")  # of torch.onnx about its own libraries


@pytest.mark.parametrize("task", ["segmentation", "depth", "classification"])
def test_onnx_runtime_answers_as_the_predictor_for_any_batch(tmp_path, task):
    uri = save_model(str(tmp_path / "model"), task)
    if task == "depth":  # whose random weights give logits of thousands, all of them saturated
        metadata, tensors = load_checkpoint(uri)
        tensors["decoder.head.2.weight"] *= 1e-4
        save_checkpoint(uri, metadata, tensors)
    made = export(uri, tmp_path / "out", "onnx")
    session = onnxruntime.InferenceSession(made.name)
    (images,), (output,) = session.get_inputs(), session.get_outputs()
    predictor = Predictor.open(uri)
    (spec,) = predictor.outputs
    assert (images.name, output.name) == ("images", spec.name)
    assert images.shape[0] == output.shape[0] == "batch"
    side = images.shape[2]
    for batch in (1, 3):
        pictures = np.random.default_rng(batch).integers(0, 256, (batch, side, side, 3), np.uint8)
        images_B3SS = pictures.transpose(0, 3, 1, 2) / np.float32(255)
        (found,) = session.run(None, {"images": images_B3SS})
        expected = np.stack([p[spec.name] for p in predictor.predict(list(pictures))])
        assert found.dtype == expected.dtype
        assert expected.std() > 0
        if task == "segmentation":  # rounding may decide between classes as likely as each other
            assert (found == expected).mean() > 0.999
        else:
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    about = session.get_modelmeta().custom_metadata_map
    assert about["clipmill.task"] == task
    assert json.loads(about["clipmill.classes"]) == list(predictor.classes)
    assert about["clipmill.digest"] == predictor.metadata.digest
    assert 'library_name: "onnx"' in (tmp_path / "out" / "README.md").read_text()


def test_detection_is_refused_and_says_which_tasks_can(tmp_path):
    uri = save_model(str(tmp_path / "model"), "detection")
    with pytest.raises(ConfigError, match="detection model") as error:
        export(uri, tmp_path / "out", "onnx")
    assert error.value.expected == "a segmentation, depth or classification model"
    assert not (tmp_path / "out").exists()
