"""Detection: batches, network, evaluation, and a run from an encoder to a judged model."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch

from clipmill.data.labeled.coco import CocoFolder
from clipmill.errors import SourceError
from clipmill.models.checkpoint import read_embedding
from clipmill.recipes.registry import get_recipe
from clipmill.scenes import OBJECTS, SceneConfig, write_coco
from clipmill.tasks.detection.objective import unpack_bits
from clipmill.tasks.detection.training import DetectionConfig, DetectionTraining
from clipmill.tasks.evaluation import evaluate, read_evaluation
from clipmill.tasks.finetune import FinetuneConfig, finetune
from clipmill.tasks.predictor import Predictor
from helpers import program_environment
from helpers.tiny_tasks import CONV, VIT

TASK = DetectionTraining()
CONFIG = DetectionConfig(
    image_size=32,
    scale=(0.8, 1.25),
    drop_path=0.0,
    neck_channels=8,
    roi_hidden_dim=8,
    anchor_scale=4.0,
    num_proposals=20,
    rois_per_image=16,
    num_workers=0,
)


def silent(done, total, words):
    pass


@pytest.fixture(scope="module")
def coco_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("coco")
    for split, indices in (("train2017", range(6)), ("val2017", range(6, 9))):
        write_coco(SceneConfig(size=32), indices, folder, split)
    return folder


def batches(folder, **changes):
    options = {"batch_size": 3, "seed": 0, "start_step": 0, "rank": 0, "world_size": 1, **changes}
    return TASK.train_dataloader(CONFIG, folder, **options)


def test_batches(coco_folder):
    (batch,) = itertools.islice(batches(coco_folder), 1)
    most = batch["labels"].shape[1]
    assert batch["images"].shape == (3, 32, 32, 3)
    assert batch["boxes"].shape == (3, most, 4)
    masks = unpack_bits(batch["masks"], 32)
    assert masks.shape == (3, most, 32, 32)
    counts = (batch["labels"] >= 0).sum(1)
    assert counts.max() == most
    for boxes, labels, objects in zip(batch["boxes"], batch["labels"], masks, strict=True):
        for box, label, mask in zip(boxes, labels, objects, strict=True):
            assert mask.any() == (label >= 0)
            if label >= 0:
                rows, columns = mask.nonzero(as_tuple=True)
                edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                assert box.tolist() == [int(e) for e in edges]


def test_batches_go_on_where_they_were(coco_folder):
    third = list(itertools.islice(batches(coco_folder), 3))[2]
    (again,) = itertools.islice(batches(coco_folder, start_step=2), 1)
    assert all(torch.equal(third[k], again[k]) for k in third)


def test_unpack_inverts_numpy():
    bits = np.random.default_rng(0).integers(0, 2, (2, 3, 13), dtype=np.uint8)
    packed = torch.from_numpy(np.packbits(bits, axis=-1))
    assert unpack_bits(packed, 13).numpy().tolist() == bits.tolist()


@pytest.mark.parametrize("encoder", [VIT, CONV])
@pytest.mark.parametrize("num_stages", [1, 3])
def test_trained_tensors_are_the_served_networks(encoder, num_stages, coco_folder):
    torch.manual_seed(0)
    config = CONFIG.override([f"num_stages={num_stages}"])
    objective = TASK.build_objective(config, encoder, OBJECTS)
    losses = objective(next(batches(coco_folder)))
    sum(losses.values()).backward()
    still = [n for n, p in objective.encoder.named_parameters() if p.grad is None]
    assert still == []
    served = TASK.build_inference_model(config, encoder, OBJECTS)
    served.load_state_dict({TASK.inference_key(k): v for k, v in objective.state_dict().items()})
    served.eval()
    with torch.no_grad():
        served.heads["roi_head"].bbox_head[-1].fc_cls.bias.normal_()
        for size in ((32, 32), (20, 50), (70, 33)):
            for found in served(torch.rand(2, 3, *size)):
                number = len(found["labels"])
                assert found["boxes"].shape == (number, 4)
                assert found["scores"].shape == (number,)
                assert found["masks"].shape == (number, *size)
                limits = torch.tensor([size[1], size[0]] * 2)
                assert (found["boxes"] <= limits + 1e-3).all()
                assert (found["scores"].diff() <= 0).all()


def test_rate_falls_with_depth_in_the_encoder_alone():
    objective = TASK.build_objective(CONFIG, VIT, OBJECTS)
    assert objective.layer_id("encoder.trunk.conv1.weight") == 0
    assert objective.layer_id("heads.rpn_head.rpn_cls.weight") is None


def test_the_truth_is_judged_nearly_perfect(coco_folder):
    data = CocoFolder.open(coco_folder, "val2017")
    truths = {}
    for index, image in enumerate(data.images):
        objects = image.instances
        truths[data.image_HW3(index).tobytes()] = {
            "boxes": np.array([o.box for o in objects], np.float32),
            "scores": np.ones(len(objects), np.float32),
            "labels": np.array([o.label for o in objects]),
            "masks": data.masks_MHW(index),
        }
    found = TASK.evaluate(
        lambda image: truths[image.tobytes()], CONFIG, coco_folder, num_samples=2, report=silent
    )
    assert found.metrics["box_mAP"] == pytest.approx(100)
    assert found.metrics["mask_mAP"] == pytest.approx(100)
    assert len(found.samples) == 2
    for sample in found.samples:
        for name, array in sample.truth.items():
            np.testing.assert_array_equal(array, sample.prediction[name])
        drawn = TASK.visualize(sample.prediction, sample.image_HW3, data.classes)
        bare = sample.image_HW3.repeat(5, 0).repeat(5, 1)  # 32 pixels have no room for names
        assert drawn.shape == bare.shape
        assert (drawn != bare).any()


TINY = [
    "train.steps=2",
    "train.batch_size=2",
    "train.log_every=1",
    "train.checkpoint_every=1",
    "model.image_size=32",
    "model.neck_channels=8",
    "model.roi_hidden_dim=8",
    "model.num_proposals=10",
]


@pytest.mark.parametrize("name", ["mask-rcnn-tiny", "cascade-mask-rcnn-tiny"])
def test_from_an_encoder_to_a_judged_model(name, coco_folder, tmp_path):
    config = get_recipe(name, FinetuneConfig, TINY)
    store = str(tmp_path / "store")

    def stop_after_one(done, total, words):
        if done == 1:
            raise KeyboardInterrupt

    straight = finetune(config, "random:timm/test_vit", str(coco_folder), store, report=silent)
    with pytest.raises(KeyboardInterrupt):
        finetune(
            config, "random:timm/test_vit", str(coco_folder), f"{store}2", report=stop_after_one
        )
    again = f"{store}2"
    resumed = finetune(config, "random:timm/test_vit", str(coco_folder), again, report=silent)
    cards = [Predictor.open(uri).metadata for uri in (straight, resumed)]
    assert cards[0].digest == cards[1].digest
    assert read_embedding(cards[0]) == read_embedding(cards[1]) is not None
    judged = read_evaluation(evaluate(straight, str(coco_folder), store, report=silent))
    assert 0 <= judged.metrics["box_mAP"] <= 100
    other = tmp_path / "other"
    write_coco(SceneConfig(size=32), range(2), other, "val")
    path = other / "annotations" / "instances_val.json"
    path.write_text(path.read_text().replace('"sphere"', '"globe"'))
    with pytest.raises(SourceError, match="class 'globe'"):
        evaluate(straight, str(other), store, report=silent)


def test_serving_needs_no_openmmlab():
    script = """
import sys
from pathlib import Path
import torch
from helpers.tiny_tasks import VIT
from clipmill.tasks.config import DetectionConfig
from clipmill.tasks.training_registry import get_training_task
task = get_training_task("detection")
config = DetectionConfig(image_size=32, neck_channels=8, roi_hidden_dim=8)
network = task.build_inference_model(config, VIT, ("a", "b")).eval()
with torch.inference_mode():
    network(torch.rand(1, 3, 32, 32))
print([m for m in sys.modules if m.split(".")[0] in ("mmcv", "mmdet", "mmengine", "mmseg")])
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=program_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"
