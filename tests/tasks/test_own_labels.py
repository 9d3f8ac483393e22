"""Own labels from training to metrics: equal to the references, matched by name, never silent."""

import contextlib
import csv
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from clipmill.engine.config import TrainConfig
from clipmill.errors import ConfigError, SourceError
from clipmill.recipes.registry import get_recipe
from clipmill.tasks.checks import check_before, check_data
from clipmill.tasks.classification.training import ClassificationTraining
from clipmill.tasks.config import (
    ClassificationConfig,
    DepthConfig,
    DetectionConfig,
    SegmentationConfig,
)
from clipmill.tasks.depth.training import DepthTraining
from clipmill.tasks.detection.training import DetectionTraining
from clipmill.tasks.evaluation import evaluate, read_evaluation
from clipmill.tasks.finetune import FinetuneConfig, finetune
from clipmill.tasks.predictor import Predictor
from clipmill.tasks.segmentation.training import SegmentationTraining
from helpers.tiny_tasks import SEGMENTATION

SIDE = 40
RNG = np.random.default_rng(0)


def silent(done, total, words):
    pass


def image(path, size=(SIDE, SIDE)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, (*size[::-1], 3), np.uint8)).save(path)


def options(folder, task, **fields):
    (folder / f"{task}.json").write_text(json.dumps(fields))


def coco(folder, split, categories, *, with_masks=0.5, first_id=0):
    """Random objects, some without a mask, ids from 0."""
    rng = np.random.default_rng(len(split))
    images, annotations = [], []
    for number in range(4):
        image(folder / split / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": SIDE, "height": SIDE})
        for _ in range(3):
            x, y, side = rng.integers([0, 0, 6], [24, 24, 16]).tolist()
            square = [x, y, x + side, y, x + side, y + side, x, y + side]
            annotations.append(
                {
                    "id": first_id + len(annotations),
                    "image_id": number,
                    "category_id": int(rng.choice(list(categories))),
                    "bbox": [x, y, side, side],
                    "area": side * side,
                    "iscrowd": 0,
                    "segmentation": [square] if rng.random() < with_masks else [],
                }
            )
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": key, "name": name} for key, name in categories.items()],
    }
    path = folder / "annotations" / f"instances_{split}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))
    return content


def perturbed(truth, seed):
    """Predictions near the truth, with a wrong class or box here and there."""
    rng = np.random.default_rng(seed)
    boxes = (truth["boxes"] + rng.normal(0, 1.5, truth["boxes"].shape)).astype(np.float32)
    masks = np.zeros((len(boxes), SIDE, SIDE), np.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.round().astype(int).clip(0), strict=True):
        mask[y1:y2, x1:x2] = 1
    wrong = rng.random(len(boxes)) < 0.2
    return {
        "boxes": boxes,
        "scores": rng.random(len(boxes)).astype(np.float32),
        "labels": np.where(wrong, 0, truth["labels"]),
        "masks": masks,
    }


def test_detection_equals_pycocotools(tmp_path):
    """Ids from 0, objects without masks, and categories in another order than the model's."""
    names = {7: "c", 3: "a", 5: "b"}
    content = coco(tmp_path, "val", names)
    classes = ("b", "c", "a")
    split = DetectionTraining().test_split(DetectionConfig(), tmp_path, classes)
    ids = {name: key for key, name in names.items()}
    results = []
    for index in range(len(split)):
        truth = split.truth(index)
        prediction = perturbed(truth, index)
        split.update(index, truth, prediction)
        for n, (x1, y1, x2, y2) in enumerate(prediction["boxes"].tolist()):
            encoded = coco_mask.encode(np.asfortranarray(prediction["masks"][n]))
            found = {
                "image_id": index,
                "category_id": ids[classes[prediction["labels"][n]]],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": float(prediction["scores"][n]),
                "segmentation": encoded,
            }
            results.append(found)
    metrics = split.compute()
    for kind, prefix in (("bbox", "box"), ("segm", "mask")):
        annotations = [a | {"id": a["id"] + 1} for a in content["annotations"]]
        if kind == "segm":
            annotations = [a for a in annotations if a["segmentation"]]
        with contextlib.redirect_stdout(io.StringIO()):
            reference = COCO()
            reference.dataset = content | {"annotations": annotations}
            reference.createIndex()
            detections = reference.loadRes([dict(r) for r in results])
            evaluation = COCOeval(reference, detections, kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        sizes = ("small", "medium", "large")
        names = (
            *("mAP", "AP50", "AP75", *(f"mAP_{size}" for size in sizes)),
            *("AR1", "AR10", "AR100", *(f"AR_{size}" for size in sizes)),
        )
        stats = {n: v for n, v in zip(names, evaluation.stats, strict=True) if v >= 0}
        # Each class alone, by name.
        for name, key in ids.items():
            evaluation.params.catIds = [key]
            with contextlib.redirect_stdout(io.StringIO()):
                evaluation.evaluate()
                evaluation.accumulate()
                evaluation.summarize()
            if evaluation.stats[0] >= 0:
                stats[f"AP.{name}"] = evaluation.stats[0]
        assert len([name for name in stats if name.startswith("AP.")]) > 1
        assert {n for n in metrics if n.startswith(prefix)} == {f"{prefix}_{n}" for n in stats}
        for name, value in stats.items():
            assert metrics[f"{prefix}_{name}"] == pytest.approx(100 * value, abs=1e-6)
        assert 5 < metrics[f"{prefix}_mAP"] < 95


@pytest.mark.parametrize("layout", ["flat255", "colors"])
def test_segmentation_equals_mmsegs_iou_metric(tmp_path, layout):
    from clipmill.openmmlab.ops import importing_openmmlab

    with importing_openmmlab():
        from mmseg.evaluation.metrics.iou_metric import IoUMetric

    names = ("sky", "road", "car")
    colors = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90]], np.uint8)
    masks = RNG.choice([0, 1, 2, 255], (3, 12, 16)).astype(np.uint8)
    for number, mask in enumerate(masks):
        image(tmp_path / "images" / "val" / f"{number}.jpg", (16, 12))
        (tmp_path / "masks" / "val").mkdir(parents=True, exist_ok=True)
        stored = mask
        if layout == "colors":
            table = np.zeros((256, 3), np.uint8)
            table[:3] = colors
            stored = table[mask]
        Image.fromarray(stored).save(tmp_path / "masks" / "val" / f"{number}.png")
    fields = {"classes": list(names)}
    if layout == "colors":
        fields |= {
            "colors": dict(zip(names, colors.tolist(), strict=True)),
            "ignored_colors": [[0, 0, 0]],
        }
    options(tmp_path, "segmentation", **fields)
    split = SegmentationTraining().test_split(SegmentationConfig(), tmp_path, names)
    rows = []
    for index, mask in enumerate(masks):
        predicted = RNG.integers(0, 3, mask.shape).astype(np.uint8)
        split.update(index, split.truth(index), {"classes": predicted})
        pair = (torch.from_numpy(predicted).long(), torch.from_numpy(mask).long())
        rows.append(IoUMetric.intersect_and_union(*pair, 3, 255))
    areas = [torch.stack(column).sum(0).double() for column in zip(*rows, strict=True)]
    found = IoUMetric.total_area_to_metrics(*areas, ["mIoU"])
    expected = {"mIoU": np.mean(found["IoU"]), "mAcc": np.mean(found["Acc"]), "aAcc": found["aAcc"]}
    for kind in ("IoU", "Acc"):
        expected |= {f"{kind}.{n}": v for n, v in zip(names, found[kind], strict=True)}
    percent = {name: 100 * float(value) for name, value in expected.items()}
    assert split.compute() == pytest.approx(percent, abs=1e-6)


def test_depth_of_kitti_equals_a_script_of_its_own(tmp_path):
    """16-bit PNGs of 256 values a meter, 0 unknown, evaluated up to 80 m."""
    stored = RNG.integers(0, 100 * 256, (2, 10, 14)).astype(np.uint16)
    stored[stored < 2000] = 0
    for number, values in enumerate(stored):
        image(tmp_path / "images" / "test" / f"{number}.png", (14, 10))
        (tmp_path / "depth" / "test").mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(tmp_path / "depth" / "test" / f"{number}.png")
    options(tmp_path, "depth", values_per_meter=256)
    config = DepthConfig(max_depth_meters=80.0)
    split = DepthTraining().test_split(config, tmp_path)
    rows = []
    for index, values in enumerate(stored):
        predicted = RNG.uniform(1, 90, values.shape).astype(np.float32)
        split.update(index, split.truth(index), {"depth_meters": predicted})
        truth = values / 256
        valid = (truth > 1e-3) & (truth < 80)
        t, p = truth[valid], np.minimum(predicted[valid].astype(np.float64), 80)
        worst, log = np.maximum(t / p, p / t), np.log(p) - np.log(t)
        rows.append(
            {
                **{f"d{n}": np.mean(worst < 1.25**n) for n in (1, 2, 3)},
                "abs_rel": np.mean(np.abs(t - p) / t),
                "sq_rel": np.mean((t - p) ** 2 / t),
                "rmse": np.sqrt(np.mean((t - p) ** 2)),
                "rmse_log": np.sqrt(np.mean(log**2)),
                "log10": np.mean(np.abs(np.log10(t) - np.log10(p))),
                "silog": np.sqrt(np.mean(log**2) - 0.5 * np.mean(log) ** 2),
            }
        )
    expected = {name: np.mean([row[name] for row in rows]) for name in rows[0]}
    assert split.compute() == pytest.approx(expected | {"num_eigen_cropped": 0}, abs=1e-6)


def test_classification_equals_a_script_of_its_own(tmp_path):
    """top_k_accuracy_score, recall_score and confusion_matrix as scikit-learn defines them."""
    names = ("10", "9", "b, c", "d", "e", "f", "g")  # the last has no image
    for split in ("train", "val"):
        for place, name in enumerate(names[: 6 if split == "val" else 7]):
            for number in range(2 + place):
                image(tmp_path / split / name / f"{number}.png")
    task = ClassificationTraining()
    classes = tuple(reversed(task.classes(tmp_path)))  # a model's own order
    split = task.test_split(ClassificationConfig(), tmp_path, classes)
    scores_BC, labels_B = RNG.random((len(split), len(names))), []
    for index, scores_C in enumerate(scores_BC):
        truth = split.truth(index)
        labels_B.append(int(truth["probabilities"].argmax()))
        split.update(index, truth, {"probabilities": scores_C.astype(np.float32)})
    labels_B = np.array(labels_B)
    better_B = (scores_BC > scores_BC[np.arange(len(labels_B)), labels_B][:, None]).sum(1)
    predicted_B = scores_BC.argmax(1)
    expected = {f"top{k}": 100 * np.mean(better_B < k) for k in (1, 5)}
    confusion_CC = np.array(
        [[np.sum((labels_B == t) & (predicted_B == p)) for p in range(7)] for t in range(7)]
    )
    for number, name in enumerate(classes):
        if confusion_CC[number].any():
            recall = confusion_CC[number, number] / confusion_CC[number].sum()
            expected[f"Acc.{name}"] = 100 * recall
    assert split.compute() == pytest.approx(expected, abs=1e-6)
    assert len(expected) == 8
    rows = list(csv.reader(io.StringIO(split.tables()["confusion_matrix.csv"])))
    assert rows[0] == ["true class", *classes]
    assert [row[0] for row in rows[1:]] == list(classes)
    assert np.array_equal(np.array([row[1:] for row in rows[1:]], int), confusion_CC)


@pytest.mark.parametrize("present", [("a", "b", "c"), ("b", "c"), ("c",)])
def test_a_class_without_validation_images_moves_no_other(tmp_path, present):
    for split, names in (("train", ("a", "b", "c")), ("val", present)):
        for name in names:
            image(tmp_path / split / name / "1.png")
    task = ClassificationTraining()
    classes = task.classes(tmp_path)
    split = task.test_split(ClassificationConfig(), tmp_path, classes)
    for index, name in enumerate(present):
        truth = split.truth(index)
        perfect = np.eye(3, dtype=np.float32)[classes.index(name)]
        assert np.array_equal(truth["probabilities"], perfect)
        split.update(index, truth, {"probabilities": perfect})
    assert split.compute()["top1"] == 100


def test_samples_are_spread_over_the_split(tmp_path):
    for split in ("train", "val"):
        for number in range(11):
            image(tmp_path / split / ("a", "b")[number % 2] / f"{number:02d}.png")
    task = ClassificationTraining()
    output = task.evaluate(
        lambda image_HW3: {"probabilities": np.array([1, 0], np.float32)},
        ClassificationConfig(),
        tmp_path,
        num_samples=3,
        report=silent,
    )
    data = task.test_split(ClassificationConfig(), tmp_path)
    for sample, index in zip(output.samples, (0, 5, 10), strict=True):
        assert np.array_equal(sample.image_HW3, data.image_HW3(index))


DETECTION = DetectionConfig(
    image_size=64, neck_channels=8, roi_hidden_dim=8, num_workers=0, drop_path=0.0, num_proposals=20
)


def config_of(task, model, batch_size=2):
    return FinetuneConfig(task=task, model=model, train=TrainConfig(steps=2, batch_size=batch_size))


@pytest.mark.parametrize("num_stages", [1, 3])
def test_objects_with_and_without_masks_train(tmp_path, num_stages):
    content = coco(tmp_path, "train", {0: "a", 1: "b"})
    assert {bool(a["segmentation"]) for a in content["annotations"]} == {True, False}
    task = DetectionTraining()
    model = DETECTION.override([f"num_stages={num_stages}"])
    from helpers.tiny_tasks import CONV

    objective = task.build_objective(model, CONV, ("a", "b"))
    batch = next(
        task.train_dataloader(
            model, tmp_path, batch_size=4, seed=0, start_step=0, rank=0, world_size=1
        )
    )
    assert 0 < batch["has_mask"].sum() < (batch["labels"] >= 0).sum()
    losses = objective(batch)
    assert all(torch.isfinite(loss) for loss in losses.values())
    batch["has_mask"][:] = False
    without = objective(batch)
    assert all(without[name].detach() == 0 for name in without if "loss_mask" in name)


def test_boxes_only(tmp_path):
    """Without a mask head boxes train, evaluate and are drawn; with one, training refuses."""
    for split in ("train", "val", "test"):
        coco(tmp_path / "data", split, {0: "a", 1: "b"}, with_masks=0)
    store = str(tmp_path / "store")
    encoder, folder = "random:timm/test_resnet", str(tmp_path / "data")
    with pytest.raises(SourceError, match=r"model\.mask_head=false"):
        finetune(config_of("detection", DETECTION), encoder, folder, store, report=silent)
    boxes = DETECTION.override(["mask_head=false"])
    model = finetune(config_of("detection", boxes), encoder, folder, store, report=silent)
    predictor = Predictor.open(model)
    assert [output.name for output in predictor.outputs] == ["boxes", "scores", "labels"]
    pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
    prediction = predictor.predict([pixels])[0]
    assert set(prediction) == {"boxes", "scores", "labels"}
    predictor.visualize(prediction, pixels)
    found = read_evaluation(evaluate(model, folder, store, report=silent))
    assert "box_mAP" in found.metrics
    assert not any(name.startswith("mask") for name in found.metrics)
    test = evaluate(model, folder, store, split="test", report=silent)
    assert test != found.uri
    assert evaluate(model, folder, store, split="val", report=silent) == found.uri


def segmentation_folder(root, classes=("a", "b", "c")):
    for split in ("train", "val"):
        for number in range(2):
            image(root / "images" / split / f"{number}.png")
            (root / "masks" / split).mkdir(parents=True, exist_ok=True)
            values = RNG.integers(0, len(classes), (SIDE, SIDE)).astype(np.uint8)
            Image.fromarray(values).save(root / "masks" / split / f"{number}.png")
    (root / "classes.txt").write_text("\n".join(classes))
    return root


def test_a_batch_of_one_with_batch_norm(tmp_path):
    folder = segmentation_folder(tmp_path)
    config = config_of("segmentation", SEGMENTATION, batch_size=1)
    with pytest.raises(ConfigError, match="a batch of 1 leaves batch norm a single value"):
        finetune(config, "random:timm/test_resnet", str(folder), str(tmp_path / "s"), report=silent)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: segmentation_folder(f, ("a",)), "lists 1 class"),
        (
            lambda f: Image.new("L", (9, 9)).save(f / "masks" / "train" / "0.png"),
            "is 9 x 9 pixels",
        ),
        (
            lambda f: Image.new("L", (SIDE, SIDE), 77).save(f / "masks" / "val" / "1.png"),
            "has the value 77",
        ),
    ],
)
def test_training_refuses_what_the_check_refuses(tmp_path, spoil, words):
    folder = segmentation_folder(tmp_path)
    spoil(folder)
    assert not check_data("segmentation", folder, report=silent).is_usable
    config = config_of("segmentation", SEGMENTATION)
    with pytest.raises(SourceError, match=words):
        finetune(config, "random:timm/test_resnet", str(folder), str(tmp_path / "s"), report=silent)


def test_nothing_labeled_is_no_number(tmp_path):
    folder = segmentation_folder(tmp_path)
    split = SegmentationTraining().test_split(SEGMENTATION, folder)
    ignored = {"classes": np.full((SIDE, SIDE), 255, np.uint8)}
    split.update(0, ignored, {"classes": np.zeros((SIDE, SIDE), np.uint8)})
    with pytest.raises(SourceError, match="all are ignored"):
        split.compute()


def test_crops_are_taken_at_the_scale_of_the_test(tmp_path):
    """A photo of 320 x 160 with one pixel a class boundary: at 32 px it shows all of its height."""
    for split in ("train", "val"):
        image(tmp_path / "images" / split / "0.png", (320, 160))
        (tmp_path / "masks" / split).mkdir(parents=True)
        rows = np.repeat(np.arange(160)[:, None] // 40, 320, axis=1).astype(np.uint8)
        Image.fromarray(rows).save(tmp_path / "masks" / split / "0.png")
    (tmp_path / "classes.txt").write_text("a\nb\nc\nd")
    model = SEGMENTATION.override(["scale=[1.0, 1.0]", "crop_size=32"])
    for scale_of, expected in (("test", 4), ("image", 1)):
        samples = SegmentationTraining().training_samples(
            model.override([f"scale_of={scale_of}", "cat_max_ratio=1.0"]), tmp_path
        )
        labels = samples.load(0, np.random.default_rng(1))["labels"]
        assert len(np.unique(labels)) in {expected, expected + (scale_of == "image")}


def test_unknown_classes_are_refused_before_anything_runs(tmp_path):
    folder = segmentation_folder(tmp_path)
    with pytest.raises(SourceError, match="class 'c'"):
        check_before(
            "segmentation", folder, splits=("val",), config=SEGMENTATION, classes=("a", "b")
        )


@pytest.mark.parametrize(
    "assignment", ["model.drop_path=7", "model.scale=[0, 0]", "model.scale=[2, 1]"]
)
def test_values_out_of_range(assignment):
    with pytest.raises(ConfigError):
        get_recipe("upernet-tiny", FinetuneConfig, [assignment])


@pytest.mark.parametrize("task", ["segmentation", "depth"])
def test_dinov3s_linear_protocol(task):
    """The recipe's head and loss on a small network: finite, and only the head learns."""
    config = get_recipe(f"linear-{task}-dinov3", FinetuneConfig)
    assert (config.train.batch_size, config.model.freeze_encoder) == (16, True)
    from clipmill.tasks.training_registry import get_training_task
    from helpers.tiny_tasks import VIT

    model = config.model.override(["crop_size=32"])
    objective = get_training_task(task).build_objective(model, VIT, ("a", "b", "c")).train()
    batch = {
        "images": torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8),
        "labels": torch.randint(0, 3, (2, 32, 32)),
        "depth": torch.rand(2, 32, 32) * 9 + 0.5,
    }
    (loss,) = objective(batch).values()
    loss.backward()
    assert torch.isfinite(loss)
    assert all(p.grad is None for p in objective.encoder.parameters())
    network = get_training_task(task).build_inference_model(model, VIT, ("a", "b", "c")).eval()
    with torch.no_grad():
        output = network(torch.rand(1, 3, 40, 48))
    assert output.shape == (1, 40, 48)
    if task == "depth":
        assert 0 < output.min() <= output.max() <= 10
