"""A new task is one file: saliency, from data to a promoted model, touching no other room."""

import numpy as np
import pytest

from clipmill.engine.config import TrainConfig
from clipmill.tasks.evaluation import evaluate, read_evaluation
from clipmill.tasks.finetune import FinetuneConfig, finetune
from clipmill.tasks.predictor import Predictor
from clipmill.tasks.promotion import PromotionConfig, promote
from clipmill.tasks.registry import TASKS
from clipmill.tasks.training_registry import TRAINING_TASKS
from helpers.saliency import SaliencyConfig, SaliencyTask


def silent(done, total, words):
    pass


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """Do what a line in each registry's dict does."""
    monkeypatch.setitem(TASKS, "saliency", SaliencyTask())
    monkeypatch.setitem(TRAINING_TASKS, "saliency", SaliencyTask())


@pytest.mark.parametrize("encoder", ["random:timm/test_vit", "random:timm/test_resnet"])
def test_saliency_from_an_encoder_to_a_gate(encoder, ade20k_folder, tmp_path):
    data, store = str(ade20k_folder), str(tmp_path)
    config = FinetuneConfig(
        task="saliency",
        model=SaliencyConfig(size=32),
        train=TrainConfig(steps=3, batch_size=2, log_every=1),
    )
    assert FinetuneConfig.from_json(config.to_json()) == config
    model = finetune(config, encoder, data, store, report=silent)
    judged = evaluate(model, data, store, report=silent)
    found = read_evaluation(judged)
    assert 0 <= found.metrics["mae"] <= 1
    assert found.read_image(0, "prediction").startswith(b"\x89PNG")
    assert promote(PromotionConfig(task="saliency", threshold=1), [judged], store).replaced
    predictor = Predictor.open(model)
    image = np.zeros((40, 50, 3), np.uint8)
    (prediction,) = predictor.predict([image])
    assert prediction["saliency"].shape == (40, 50)
    assert predictor.visualize(prediction, image).shape == (40, 50, 3)
