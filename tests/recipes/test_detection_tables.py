"""Recipes of classification and detection, line by line beside Tables 12 and 13."""

import pytest
import torch

from clipmill.models.config import EncoderConfig, VisionConfig
from clipmill.recipes import classification, finetune
from clipmill.tasks.registry import get_task

EPOCH = 1_281_167 // 1024
COCO_IMAGES = 118_287


@pytest.mark.parametrize(
    ("make", "freeze_encoder", "rate", "weight_decay"),
    [
        (classification.classification_vit_b16, False, 1e-4, 0.05),
        (classification.linear_probe_vit_b16, True, 5e-4, 0.0005),
    ],
)
def test_table_12(make, freeze_encoder, rate, weight_decay):
    config = make()
    model, train = config.model, config.train
    assert config.task == "classification"
    assert (model.image_size, model.test_size) == (224, 224)
    assert (model.mixup, model.cutmix, model.random_erasing_prob) == (0, 0, 0)
    assert model.label_smoothing == 0.1
    assert model.drop_path == 0.1
    assert model.freeze_encoder is freeze_encoder
    assert train.batch_size == 1024
    assert train.steps == 100 * EPOCH
    assert train.ema_decay == 0.9995
    assert (train.schedule.name, train.schedule.lr) == ("cosine", rate)
    assert train.schedule.warmup_steps == 5 * EPOCH
    assert train.optimizer.weight_decay == weight_decay


def test_evaluation_at_384():
    model = classification.classification_vit_b16_384().model
    assert (model.image_size, model.test_size, model.test_crop) == (384, 384, 1.0)


@pytest.mark.parametrize(
    ("make", "stages", "epochs", "falls", "weight_decay"),
    [
        (finetune.mask_rcnn_1x, 1, 12, (8, 11), 0.1),
        (finetune.cascade_mask_rcnn_3x, 3, 36, (27, 33), 0.05),
    ],
)
def test_table_13(make, stages, epochs, falls, weight_decay):
    config = make()
    model, train = config.model, config.train
    assert config.task == "detection"
    assert model.num_stages == stages
    assert model.image_size == 1024
    assert model.scale == (0.1, 2.0)
    assert 0 <= model.drop_path <= 0.3
    assert train.batch_size == 16
    assert train.steps == epochs * -(-COCO_IMAGES // 16)
    assert train.optimizer.weight_decay == weight_decay
    assert train.schedule.name == "step"
    assert train.schedule.lr in (5e-4, 2e-4, 1e-4)
    rates = [train.schedule.lr_at(e * train.steps // epochs, train.steps) for e in range(1, epochs)]
    expected = [train.schedule.lr * 0.1 ** sum(e >= f for f in falls) for e in range(1, epochs)]
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize("make", [finetune.mask_rcnn_1x, finetune.cascade_mask_rcnn_3x])
def test_the_full_network_can_be_built(make):
    config = make()
    with torch.device("meta"):
        network = get_task("detection").build_inference_model(
            config.model, EncoderConfig(vision=VisionConfig()), ("a",) * 80
        )
    assert network.neck.strides == (4, 8, 16, 32, 64)
    assert sum(p.numel() for p in network.parameters()) > 100e6


@pytest.mark.parametrize(
    ("timm_model", "millions"),
    [("fastvit_mci0", 31.0), ("fastvit_mci1", 41.1), ("fastvit_mci2", 55.0)],
)
def test_mobile_parameters_are_the_papers(timm_model, millions):
    config = finetune.mask_rcnn_1x().model
    encoder = EncoderConfig(vision=VisionConfig(timm_model=timm_model))
    network = get_task("detection").build_inference_model(config, encoder, ("a",) * 80)
    found = sum(p.numel() for p in network.parameters()) / 1e6
    assert found == pytest.approx(millions, rel=0.01)
