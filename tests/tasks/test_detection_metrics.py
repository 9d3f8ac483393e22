"""COCO's figures: by hand, and against pycocotools run on files."""

import contextlib
import io
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from clipmill.data.labeled.coco import CocoFolder
from clipmill.errors import SourceError
from clipmill.tasks.detection.training import CocoMetrics

SIDE = 40


def square(x, y, side, category=3, image=1, **more):
    polygon = [x, y, x + side, y, x + side, y + side, x, y + side]
    return {
        "image_id": image,
        "category_id": category,
        "bbox": [x, y, side, side],
        "area": side * side,
        "iscrowd": 0,
        "segmentation": [polygon],
        **more,
    }


def crowd(x, y, side, **more):
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[y : y + side, x : x + side] = 1
    flat = np.concatenate([[0], mask.ravel(order="F"), [2]])
    starts = np.flatnonzero(np.diff(flat))
    counts = np.diff(np.concatenate([[0], starts])).tolist()
    run_lengths = {"counts": counts, "size": [SIDE, SIDE]}
    return square(x, y, side, **more) | {"iscrowd": 1, "segmentation": run_lengths}


def folder(tmp_path, annotations, num_images=2):
    """Categories 3, 7 and 9; the last one is empty."""
    (tmp_path / "val").mkdir(exist_ok=True)
    (tmp_path / "annotations").mkdir(exist_ok=True)
    images = []
    for number in range(1, num_images + 1):
        Image.new("RGB", (SIDE, SIDE)).save(tmp_path / "val" / f"{number}.jpg")
        size = {"width": SIDE, "height": SIDE}
        images.append({"id": number, "file_name": f"{number}.jpg", **size})
    content = {
        "images": images,
        "categories": [{"id": 9, "name": "c"}, {"id": 3, "name": "a"}, {"id": 7, "name": "b"}],
        "annotations": [{"id": n, **a} for n, a in enumerate(annotations, start=1)],
    }
    (tmp_path / "annotations" / "instances_val.json").write_text(json.dumps(content))
    return CocoFolder.open(tmp_path, "val")


def prediction(*found):
    """Squares (x, y, side, label, score)."""
    masks = np.zeros((len(found), SIDE, SIDE), np.uint8)
    for mask, (x, y, side, _, _) in zip(masks, found, strict=True):
        mask[y : y + side, x : x + side] = 1
    boxes = [[x, y, x + side, y + side] for x, y, side, _, _ in found]
    return {
        "boxes": np.array(boxes, np.float32).reshape(-1, 4),
        "scores": np.array([f[4] for f in found], np.float32),
        "labels": np.array([f[3] for f in found], np.int64),
        "masks": masks,
    }


def judged(data, *predictions):
    metrics = CocoMetrics(data)
    for image, found in zip(data.images, predictions, strict=True):
        metrics.update(image.id, found)
    return metrics.result()


def test_the_truth_is_perfect(tmp_path):
    data = folder(tmp_path, [square(4, 4, 10), square(20, 8, 12, 7, 2)])
    found = judged(data, prediction((4, 4, 10, 0, 0.9)), prediction((20, 8, 12, 1, 0.8)))
    assert found["box_mAP"] == pytest.approx(100)
    assert found["mask_mAP"] == pytest.approx(100, abs=10)
    assert "box_mAP_large" not in found


def test_by_hand(tmp_path):
    """Overlap 80 / 120 = 2 / 3: right at thresholds 0.5, 0.55, 0.6 and 0.65 of ten."""
    data = folder(tmp_path, [square(0, 0, 10)], 1)
    found = prediction((0, 0, 10, 0, 0.9))
    found["boxes"][0] = [2, 0, 12, 10]
    assert judged(data, found)["box_mAP"] == pytest.approx(40)


def test_a_false_alarm_above_halves_precision(tmp_path):
    data = folder(tmp_path, [square(0, 0, 10)], 1)
    found = judged(data, prediction((0, 0, 10, 0, 0.5), (25, 25, 10, 0, 0.9)))
    assert found["box_mAP"] == pytest.approx(50)
    below = judged(data, prediction((0, 0, 10, 0, 0.9), (25, 25, 10, 0, 0.5)))
    assert below["box_mAP"] == pytest.approx(100)


def test_no_detections(tmp_path):
    data = folder(tmp_path, [square(4, 4, 10)])
    found = judged(data, prediction(), prediction())
    assert found["box_mAP"] == found["mask_mAP"] == 0


def test_what_lies_in_a_crowd_is_not_a_false_alarm(tmp_path):
    data = folder(tmp_path, [square(0, 0, 10), crowd(12, 12, 20)], 1)
    found = judged(data, prediction((0, 0, 10, 0, 0.5), (14, 14, 8, 0, 0.9)))
    assert found["box_mAP"] == pytest.approx(100)


def test_crowds_alone_are_nothing_to_judge(tmp_path):
    data = folder(tmp_path, [crowd(12, 12, 20)])
    with pytest.raises(SourceError, match="no object that counts"):
        judged(data, prediction((0, 0, 9, 0, 0.9)), prediction())


@pytest.mark.parametrize("seed", range(6))
def test_equals_pycocotools(tmp_path, seed):
    random = np.random.default_rng(seed)

    def squares(count):
        rows = random.integers([0, 0, 3], [25, 25, 15], (count, 3))
        return [tuple(row) for row in rows.tolist()]

    annotations = [
        (crowd if random.random() < 0.2 else square)(
            *s, category=int(random.choice([3, 7])), image=int(random.integers(1, 5))
        )
        for s in squares(12)
    ]
    data = folder(tmp_path, [square(1, 1, 5), *annotations], 4)
    results, predictions = [], []
    for image in data.images:
        near = [a for a in annotations if a["image_id"] == image.id and random.random() < 0.7]
        chosen = [(*a["bbox"][:3], int(random.integers(3))) for a in near]
        chosen += [(*s, int(random.integers(3))) for s in squares(int(random.integers(4)))]
        found = prediction(*((*s, round(float(random.random()), 6)) for s in chosen))
        found["boxes"] += random.integers(-1, 2, found["boxes"].shape).astype(np.float32)
        predictions.append(found)
        for box, score, label, mask in zip(*found.values(), strict=True):
            encoded = coco_mask.encode(np.asfortranarray(mask))
            results.append(
                {
                    "image_id": image.id,
                    "category_id": (3, 7, 9)[label],
                    "bbox": [*box[:2].tolist(), *(box[2:] - box[:2]).tolist()],
                    "score": float(score),
                    "segmentation": encoded | {"counts": encoded["counts"].decode()},
                }
            )
    found = judged(data, *predictions)
    (tmp_path / "results.json").write_text(json.dumps(results))
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(tmp_path / "annotations" / "instances_val.json"))
        for kind, prefix in (("bbox", "box"), ("segm", "mask")):
            evaluation = COCOeval(truth, truth.loadRes(str(tmp_path / "results.json")), kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            names = ("mAP", "AP50", "AP75", "mAP_small")
            for name, value in zip(names, evaluation.stats, strict=False):
                assert found[f"{prefix}_{name}"] == pytest.approx(100 * value, abs=1e-9)
            assert found[f"{prefix}_AR100"] == pytest.approx(100 * evaluation.stats[8], abs=1e-9)
