"""Segmentation metrics against a confusion matrix worked by hand, and one counted by NumPy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clipmill.errors import ConfigError
from clipmill.openmmlab.segmentation import MeanIoU


def test_by_hand():
    truth = np.array([[0, 0, 0, 1], [1, 1, 255, 2]], np.uint8)
    prediction = np.array([[0, 0, 1, 1], [1, 2, 2, 2]], np.uint8)
    metric = MeanIoU(4)
    metric.update(prediction, truth)
    # Class 0: 2 of 3; class 1: 2 of 4; class 2: 1 of 2; class 3 is nowhere, and counts nowhere.
    ious = {c: iou for c, (iou, _) in metric.per_class().items()}
    assert [ious[c] for c in range(3)] == pytest.approx([200 / 3, 50, 50])
    assert math.isnan(ious[3])
    expected = {
        "mIoU": (200 / 3 + 50 + 50) / 3,
        "mAcc": 100 * (2 / 3 + 2 / 3 + 1) / 3,
        "aAcc": 100 * 5 / 7,
    }
    assert metric.result() == pytest.approx(expected)


def test_predicted_but_absent_counts_in_iou_alone():
    metric = MeanIoU(3)
    metric.update(np.array([[0, 2]]), np.array([[0, 0]]))
    assert metric.result() == pytest.approx({"mIoU": 25.0, "mAcc": 50.0, "aAcc": 50.0})


def test_images_are_summed_not_averaged():
    metric = MeanIoU(2)
    metric.update(np.zeros((1, 8), int), np.zeros((1, 8), int))
    metric.update(np.ones((1, 2), int), np.zeros((1, 2), int))
    assert {c: iou for c, (iou, _) in metric.per_class().items()} == pytest.approx(
        {0: 80.0, 1: 0.0}
    )


@given(
    data=st.data(),
    num_classes=st.integers(2, 6),
    shapes=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=3),
)
def test_equals_a_counted_confusion_matrix(data, num_classes, shapes):
    metric, confusion = MeanIoU(num_classes), np.zeros((num_classes, num_classes))
    for height, width in shapes:
        pixels = {"min_size": height * width, "max_size": height * width}
        labels = st.integers(0, num_classes - 1)
        truth, prediction = (
            np.array(data.draw(st.lists(drawn, **pixels)), np.uint8).reshape(height, width)
            for drawn in (labels | st.just(255), labels)
        )
        metric.update(prediction, torch.from_numpy(truth))
        known = truth != 255
        np.add.at(confusion, (truth[known], prediction[known]), 1)
    hits, true, predicted = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    union = true + predicted - hits
    expected = {
        "mIoU": mean(hits[c] / union[c] for c in range(num_classes) if union[c]),
        "mAcc": mean(hits[c] / true[c] for c in range(num_classes) if true[c]),
        "aAcc": mean([hits.sum() / true.sum()] if true.sum() else []),
    }
    assert metric.result() == pytest.approx(expected, nan_ok=True)


def mean(ratios):
    values = list(ratios)
    return 100 * sum(values) / len(values) if values else math.nan


def test_one_pixel_in_seventeen_million_is_not_lost():
    metric = MeanIoU(2)
    # Past 2^24, where float32 no longer tells a number from the next.
    right = torch.zeros(8_400_000, 1, dtype=torch.uint8)
    for _ in range(2):
        metric.update(right, right)
    metric.update(np.ones((1, 1), int), np.zeros((1, 1), int))
    assert metric.result()["aAcc"] == pytest.approx(100 - 100 / 16_800_001, rel=1e-12)


def test_read_only_labels_are_taken():
    labels = np.zeros((2, 2), np.uint8)
    labels.flags.writeable = False
    metric = MeanIoU(2)
    metric.update(labels, labels)
    assert metric.result()["mIoU"] == 100.0


@pytest.mark.parametrize("num_classes", [1, 256])
def test_impossible_number_of_classes(num_classes):
    with pytest.raises(ConfigError, match=f"labels of {num_classes} classes"):
        MeanIoU(num_classes)


def mmsegs(images, num_classes):
    """mmseg's own metric over whole images, through its public door."""
    from mmengine.logging import MMLogger

    from clipmill.openmmlab.ops import importing_openmmlab

    with importing_openmmlab():
        from mmseg.evaluation import IoUMetric
    MMLogger.get_instance("mmengine").setLevel("ERROR")
    metric = IoUMetric(ignore_index=255)
    metric.dataset_meta = {"classes": [str(c) for c in range(num_classes)]}
    for prediction, truth in images:
        sample = {
            "pred_sem_seg": {"data": torch.from_numpy(prediction).long()[None]},
            "gt_sem_seg": {"data": torch.from_numpy(truth).long()[None]},
        }
        metric.process({}, [sample])
    return metric.evaluate(len(images))


def random_images(seed, count=4, num_classes=7):
    random = np.random.default_rng(seed)
    for _ in range(count):
        truth = random.integers(0, num_classes, (9, 11)).astype(np.uint8)
        truth[random.random(truth.shape) < 0.2] = 255
        yield random.integers(0, num_classes, (9, 11)).astype(np.uint8), truth


FULL = np.full((5, 5), 255, np.uint8)
ZERO, ONE = np.zeros((5, 5), np.uint8), np.ones((5, 5), np.uint8)
ADVERSARIAL = {
    "random": list(random_images(0)),
    "classes that never occur": [
        (p % 3, np.where(t == 255, 255, t % 3)) for p, t in random_images(1)
    ],
    "an image of unknown alone": [(ZERO, FULL), (ZERO, ONE), (ONE, ONE)],
    "nothing right": [(ONE, ZERO), (ZERO, ONE)],
    "a class predicted only": [(ONE * 5, ZERO), (ZERO, ZERO)],
    "images of different sizes": [
        (ZERO, ZERO),
        (np.ones((1, 3), np.uint8), np.zeros((1, 3), np.uint8)),
    ],
}


@pytest.mark.parametrize("case", ADVERSARIAL)
def test_equals_mmsegs_metric(case):
    metric = MeanIoU(7)
    for prediction, truth in ADVERSARIAL[case]:
        metric.update(prediction, truth)
    # mmseg rounds to two places.
    expected = mmsegs(ADVERSARIAL[case], 7)
    assert metric.result() == pytest.approx(expected, abs=0.00501, nan_ok=True)
