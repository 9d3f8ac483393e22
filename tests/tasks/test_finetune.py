"""From an encoder to a promoted model, on a few real scenes."""

import pytest
import torch

from clipmill.data.scenes import SceneConfig, write_ade20k, write_nyu
from clipmill.errors import GateError
from clipmill.recipes.registry import recipe
from clipmill.tasks.evaluation import evaluate, read_evaluation
from clipmill.tasks.finetune import FinetuneConfig, finetune
from clipmill.tasks.predictor import Predictor
from clipmill.tasks.promotion import GateConfig, promote

SCENES = SceneConfig(size=32)
TINY = ["train.steps=2", "train.batch_size=2", "model.crop_size=32", "train.log_steps=1"]


def quiet(done, total, words):
    assert 0 <= done <= total
    assert words


def fail(done, total, words):
    pytest.fail("worked again")


@pytest.fixture
def ade20k(tmp_path):
    for split, indices in (("training", range(4)), ("validation", range(4, 6))):
        write_ade20k(SCENES, indices, tmp_path / "ade20k", split)
    return str(tmp_path / "ade20k")


@pytest.fixture
def nyu(tmp_path):
    for split, indices in (("train", range(4)), ("test", range(4, 6))):
        write_nyu(SCENES, indices, tmp_path / "nyu", split)
    return str(tmp_path / "nyu")


def test_segmentation_from_scratch_to_a_gate(ade20k, tmp_path):
    store = str(tmp_path / "store")
    config = recipe("upernet-miniature", FinetuneConfig, TINY)
    model = finetune(config, "timm:test_resnet", ade20k, store, report=quiet)
    assert finetune(config, "timm:test_resnet", ade20k, store, report=fail) == model
    judged = evaluate(model, ade20k, store, report=quiet)
    assert evaluate(model, ade20k, store, report=fail) == judged
    found = read_evaluation(judged)
    assert 0 <= found.metrics["mIoU"] <= 100
    with pytest.raises(GateError, match="at least 101"):
        promote(GateConfig(task="segmentation", threshold=101), [judged], store)
    promoted = promote(GateConfig(task="segmentation", threshold=0), [judged], store)
    assert promoted.replaced
    assert promoted.evaluation.model.uri == model
    again = promote(GateConfig(task="segmentation", threshold=101), [judged], store)
    assert not again.replaced


def test_depth_is_resumed_with_equal_weights(nyu, tmp_path):
    config = recipe("depth-miniature", FinetuneConfig, [*TINY, "train.checkpoint_steps=1"])

    def stop_after_two(done, total, words):
        if done == 2:
            raise KeyboardInterrupt

    straight = finetune(config, "timm:test_resnet", nyu, str(tmp_path / "a"), report=quiet)
    with pytest.raises(KeyboardInterrupt):
        finetune(config, "timm:test_resnet", nyu, str(tmp_path / "b"), report=stop_after_two)
    resumed = finetune(config, "timm:test_resnet", nyu, str(tmp_path / "b"), report=quiet)
    assert Predictor(resumed).card.digest == Predictor(straight).card.digest


def test_a_prediction_has_its_images_size(nyu, tmp_path):
    config = recipe("depth-miniature", FinetuneConfig, TINY)
    model = finetune(config, "timm:test_resnet", nyu, str(tmp_path), report=quiet)
    images = [torch.randint(0, 255, size, dtype=torch.uint8).numpy() for size in SIZES]
    found = Predictor(model).predict(images)
    assert [f.shape for f in found] == [size[:2] for size in SIZES]
    assert all((f > 0).all() and (f < 10).all() for f in found)


SIZES = [(32, 32, 3), (50, 41, 3), (32, 32, 3)]
