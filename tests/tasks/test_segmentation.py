"""Segmentation: what is trained is what is served; batches and evaluation on real scenes."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from clipmill.data.labeled.dense import IGNORED, SegmentationFolder
from clipmill.models import execution
from clipmill.scenes import CLASSES as SCENE_CLASSES
from clipmill.tasks.segmentation.training import SegmentationTraining
from helpers.tiny_tasks import CLASSES, CONV, SEGMENTATION, VIT

TASK = SegmentationTraining()


def silent(done, total, words):
    pass


def batches(folder, config=SEGMENTATION, **changes):
    options = {"batch_size": 2, "seed": 0, "start_step": 0, "rank": 0, "world_size": 1, **changes}
    return TASK.train_dataloader(config, folder, **options)


def test_weights_that_the_served_model_would_lack_are_an_error():
    assert TASK.inference_key("heads.auxiliary_head.conv_seg.weight") is None
    with pytest.raises(KeyError, match="another_head"):
        TASK.inference_key("heads.another_head.conv_seg.weight")


@torch.no_grad()
@pytest.mark.parametrize("head", ["upernet", "semantic-fpn"])
@pytest.mark.parametrize("encoder", [VIT, CONV])
def test_served_network_equals_the_trained_heads(encoder, head):
    """mmseg's head as it was trained, its logits brought to the picture's size."""
    torch.manual_seed(0)
    config = replace(SEGMENTATION, head=head)
    objective = TASK.build_objective(config, encoder, CLASSES)
    for name, buffer in objective.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(std=0.1)
    # The classifier starts so small that all logits would be alike.
    objective.heads.decode_head.conv_seg.weight.normal_()
    objective.eval()
    trained = {TASK.inference_key(k): v for k, v in objective.state_dict().items()}
    left = {k for k in objective.state_dict() if TASK.inference_key(k) is None}
    assert bool(left) == (head == "upernet")
    assert all(name.startswith("heads.auxiliary_head.") for name in left)
    trained.pop(None, None)
    served = TASK.build_inference_model(config, encoder, CLASSES)
    served.load_state_dict(trained)  # strict: not one too many, none missing
    served.eval()

    images = torch.rand(2, 3, 64, 64)
    served._short_side = 64
    maps = objective.pyramid(objective.encoder(images))
    if head == "semantic-fpn":
        maps = objective.heads.neck(maps)
    logits = objective.heads.decode_head(maps)
    logits = F.interpolate(logits, (64, 64), mode="bilinear")
    torch.testing.assert_close(served._logits(images), logits, rtol=1e-5, atol=1e-5)
    assert torch.equal(served(images), logits.argmax(1).to(torch.uint8))
    assert len(served(images).unique()) > 1


@torch.no_grad()
@pytest.mark.parametrize("size", [(32, 32), (33, 50), (20, 16)])
def test_network_gives_class_ids_at_the_images_size(size):
    torch.manual_seed(0)
    served = TASK.build_inference_model(SEGMENTATION, VIT, CLASSES).eval()
    found = served(torch.rand(2, 3, *size))
    assert found.shape == (2, *size)
    assert found.dtype == torch.uint8
    assert found.max() < len(CLASSES)


@torch.no_grad()
def test_logits_too_many_for_one_map(monkeypatch):
    torch.manual_seed(0)
    served = TASK.build_inference_model(SEGMENTATION, VIT, CLASSES).eval()
    images = torch.rand(3, 3, 32, 48)
    whole = served(images)
    monkeypatch.setattr(execution, "MAX_ELEMENTS", len(CLASSES) * 32 * 48 * 2)
    seen = []
    served.encoder.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    assert torch.equal(served(images), whole)
    assert seen == [2, 1]


def test_batches(ade20k_folder):
    (batch,) = itertools.islice(batches(ade20k_folder), 1)
    assert batch["images"].shape == (2, 32, 32, 3)
    assert batch["images"].dtype == batch["labels"].dtype == torch.uint8
    assert batch["labels"].shape == (2, 32, 32)
    known = batch["labels"][batch["labels"] != IGNORED]
    assert known.max() < len(SCENE_CLASSES)


def test_a_picture_smaller_than_the_crop_is_filled_with_ignored(ade20k_folder):
    config = replace(SEGMENTATION, scale=(0.5, 0.5))
    (batch,) = itertools.islice(batches(ade20k_folder, config), 1)
    for labels in batch["labels"]:
        known = labels != IGNORED
        if not known[0, 0]:  # mirrored
            known = known.flip(1)
        assert known[:16, :16].all()
        assert known.sum() == 16 * 16


def test_ranks_share_a_batch(ade20k_folder):
    whole = list(itertools.islice(batches(ade20k_folder, batch_size=4), 3))
    parts = [
        list(itertools.islice(batches(ade20k_folder, batch_size=4, rank=r, world_size=2), 3))
        for r in range(2)
    ]
    for step, batch in enumerate(whole):
        for rank in range(2):
            for name, tensor in batch.items():
                assert torch.equal(parts[rank][step][name], tensor[rank::2])


def test_the_truth_is_judged_perfect(ade20k_folder):
    data = SegmentationFolder.open(ade20k_folder, "validation")
    truths = {data.image_HW3(i).tobytes(): data.classes_HW(i) for i in range(len(data))}
    found = TASK.evaluate(
        lambda image: {"classes": truths[image.tobytes()]},
        SEGMENTATION,
        ade20k_folder,
        num_samples=5,
        report=silent,
    )
    assert found.metrics["mIoU"] == pytest.approx(100)
    assert found.metrics["aAcc"] == pytest.approx(100)
    assert len(found.samples) == 2


def test_one_class_everywhere_is_judged_by_its_share(ade20k_folder):
    data = SegmentationFolder.open(ade20k_folder, "validation")
    floor = np.mean([data.classes_HW(i) == 0 for i in range(len(data))])
    seen = {c for i in range(len(data)) for c in np.unique(data.classes_HW(i)).tolist()}
    found = TASK.evaluate(
        lambda image: {"classes": np.zeros(image.shape[:2], np.uint8)},
        SEGMENTATION,
        ade20k_folder,
        num_samples=0,
        report=silent,
    )
    assert found.metrics["aAcc"] == pytest.approx(100 * floor, abs=0.01)
    assert found.metrics["mIoU"] == pytest.approx(100 * floor / len(seen), abs=0.01)
    assert found.samples == ()


def test_classes(ade20k_folder):
    assert TASK.classes(ade20k_folder) == SCENE_CLASSES


@torch.no_grad()
def test_sliding_test():
    """A longer image is the average of its windows' logits; a square one is seen whole."""
    torch.manual_seed(0)
    config = replace(SEGMENTATION, test_mode="slide", test_stride=16)
    served = TASK.build_inference_model(config, VIT, CLASSES).eval()
    served.head.conv_seg.weight.normal_()
    images = torch.rand(2, 3, 32, 64)
    parts = [served._logits(images[..., start : start + 32]) for start in (0, 16, 32)]
    first, middle, last = parts
    expected = torch.cat(
        [
            first[..., :16],
            (first[..., 16:] + middle[..., :16]) / 2,
            (middle[..., 16:] + last[..., :16]) / 2,
            last[..., 16:],
        ],
        dim=-1,
    )
    torch.testing.assert_close(served._sliding_window(images), expected)
    assert torch.equal(served(images), expected.argmax(1).to(torch.uint8))
    served._test_mode = "whole"
    assert not torch.equal(served(images), expected.argmax(1).to(torch.uint8))


def test_the_table_by_class(ade20k_folder):
    """Hand-counted, for one class guessed everywhere."""
    data = SegmentationFolder.open(ade20k_folder, "validation")
    truths = [data.classes_HW(i) for i in range(len(data))]
    found = TASK.evaluate(
        lambda image: {"classes": np.zeros(image.shape[:2], np.uint8)},
        SEGMENTATION,
        ade20k_folder,
        num_samples=0,
        report=silent,
    ).metrics
    seen = {c for truth in truths for c in np.unique(truth).tolist()} - {IGNORED}
    assert {k.removeprefix("IoU.") for k in found if k.startswith("IoU.")} == {
        SCENE_CLASSES[c] for c in seen
    }
    known = sum((truth != IGNORED).sum() for truth in truths)
    floor = sum((truth == 0).sum() for truth in truths)
    assert found[f"IoU.{SCENE_CLASSES[0]}"] == pytest.approx(100 * floor / known)
    assert found[f"Acc.{SCENE_CLASSES[0]}"] == 100
    assert {found[f"Acc.{SCENE_CLASSES[c]}"] for c in seen - {0}} == {0.0}
