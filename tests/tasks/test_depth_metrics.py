"""Depth's figures against hand-computed ones, and against a plain reference."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipmill.errors import SourceError
from clipmill.tasks.depth.training import DepthMetrics


def figures(*pairs, max_depth_meters=10.0):
    metrics = DepthMetrics(max_depth_meters=max_depth_meters)
    for prediction, truth in pairs:
        metrics.update(np.array(prediction, np.float32), np.array(truth, np.float32))
    return metrics.result()


def test_by_hand():
    """Truths 1, 2, 4, 8 taken for 2, 2, 2, 2: ratios 2, 1, 2, 4."""
    found = figures(([[2, 2], [2, 2]], [[1, 2], [4, 8]]))
    log2 = math.log(2)
    assert found == pytest.approx(
        {
            "d1": 0.25,
            "d2": 0.25,
            "d3": 0.25,
            "abs_rel": (1 + 0 + 0.5 + 0.75) / 4,
            "sq_rel": (1 + 0 + 1 + 4.5) / 4,
            "rmse": math.sqrt((1 + 0 + 4 + 36) / 4),
            "rmse_log": log2 * math.sqrt((1 + 0 + 1 + 4) / 4),
            "log10": math.log10(2) * (1 + 0 + 1 + 2) / 4,
            "silog": log2 * math.sqrt(6 / 4 - 0.5 * (-2 / 4) ** 2),
        }
    )


def test_thresholds():
    found = figures(([[1.24, 1.5, 1.9, 2.0]], [[1, 1, 1, 1]]))
    assert (found["d1"], found["d2"], found["d3"]) == (0.25, 0.5, 0.75)


def test_pixels_without_truth_do_not_count():
    """0 is unknown, and what is as far as the range or farther isn't judged."""
    clean = figures(([[1.5, 3.0]], [[1, 2]]))
    wild = figures(([[1.5, 3.0, 9.0, 0.1, 5.0]], [[1, 2, 0, 10, 30]]))
    assert wild == clean
    assert clean["rmse"] == pytest.approx(math.sqrt((0.25 + 1) / 2))


def test_predictions_are_clipped_to_the_range():
    assert figures(([[50.0]], [[9]]))["rmse"] == pytest.approx(1.0)
    assert figures(([[-3.0]], [[1]]))["abs_rel"] == pytest.approx(0.999)


def test_each_image_weighs_the_same():
    """A mean over images, not over pixels."""
    large = (np.full((10, 10), 2.0), np.full((10, 10), 1.0))
    small = ([[4.0]], [[1.0]])
    assert figures(large, small)["rmse"] == pytest.approx((1 + 3) / 2)


def test_an_image_without_truth_is_left_out():
    judged = ([[2.0]], [[1.0]])
    assert figures(judged, ([[2.0]], [[0.0]])) == figures(judged)


def test_nothing_to_judge_is_the_datas_fault():
    with pytest.raises(SourceError, match="no test image has a pixel of known depth"):
        figures(([[2.0]], [[0.0]]))


def reference(prediction, truth, max_depth):
    """Pixel by pixel."""
    pairs = [
        (min(max(float(p), 1e-3), max_depth), float(t))
        for p, t in zip(prediction.ravel(), truth.ravel(), strict=True)
        if 1e-3 < t < max_depth
    ]
    mean = lambda values: sum(values) / len(pairs)  # noqa: E731
    logs = [math.log(p / t) for p, t in pairs]
    return {
        **{f"d{n}": mean([max(p / t, t / p) < 1.25**n for p, t in pairs]) for n in (1, 2, 3)},
        "abs_rel": mean([abs(p - t) / t for p, t in pairs]),
        "sq_rel": mean([(p - t) ** 2 / t for p, t in pairs]),
        "rmse": math.sqrt(mean([(p - t) ** 2 for p, t in pairs])),
        "rmse_log": math.sqrt(mean([d * d for d in logs])),
        "log10": mean([abs(d) for d in logs]) / math.log(10),
        "silog": math.sqrt(mean([d * d for d in logs]) - 0.5 * mean(logs) ** 2),
    }


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), max_depth=st.sampled_from([3.0, 10.0]))
def test_equals_the_reference(seed, max_depth):
    random = np.random.default_rng(seed)
    truth = random.uniform(0, 12, (7, 5)).astype(np.float32)
    truth[random.random((7, 5)) < 0.3] = 0
    truth[0, 0] = 1
    prediction = random.uniform(-1, 14, (7, 5)).astype(np.float32)
    found = figures((prediction, truth), max_depth_meters=max_depth)
    assert found == pytest.approx(reference(prediction, truth, max_depth), rel=1e-5, abs=1e-7)


def test_eigens_crop_by_hand():
    """Rows 45 to 470 and columns 41 to 600 of NYUv2's images, and of no other size."""
    truth = np.full((480, 640), 2.0, np.float32)
    prediction = np.full((480, 640), 9.0, np.float32)
    prediction[45:471, 41:601] = 3.0
    cropped = DepthMetrics(max_depth_meters=10, eigen_crop=True)
    cropped.update(prediction, truth)
    assert cropped.result()["rmse"] == 1.0
    assert cropped.num_cropped == 1
    for size in ((479, 640), (480, 641)):
        whole = DepthMetrics(max_depth_meters=10, eigen_crop=True)
        whole.update(np.resize(prediction, size), np.full(size, 2.0, np.float32))
        assert whole.num_cropped == 0
        assert whole.result()["rmse"] > 1.0
    # The corners of the crop are within, what's beside them isn't.
    for row, column, counts in ((45, 41, 1), (470, 600, 1), (44, 41, 0), (470, 601, 0)):
        truth = np.zeros((480, 640), np.float32)
        truth[row, column] = 1
        metrics = DepthMetrics(max_depth_meters=10, eigen_crop=True)
        metrics.update(np.ones_like(truth), truth)
        assert metrics.num_cropped == counts


def test_predictions_that_are_no_numbers():
    """As GLPDepth: NaN is the nearest depth, infinity the farthest."""
    assert figures(([[math.nan]], [[1]]))["rmse"] == pytest.approx(0.999)
    assert figures(([[math.inf]], [[9]]))["rmse"] == pytest.approx(1.0)
