"""Small and odd batches of every recipe for trials: an error before training, or a finite loss."""

import json

import numpy as np
import pytest
from PIL import Image

from clipmill.errors import ConfigError, SourceError
from clipmill.recipes.registry import get_recipe
from clipmill.storage import exists, join, open_store, read_bytes
from clipmill.tasks.evaluation import evaluate, read_evaluation
from clipmill.tasks.finetune import FinetuneConfig, finetune

SIDE = 40
RECIPES = {
    "classification-tiny": 64,
    "linear-probe-tiny": 64,
    "depth-tiny": 64,
    "linear-depth-tiny": 64,
    "linear-depth-dinov3": 64,
    "mask-rcnn-tiny": 64,
    "cascade-mask-rcnn-tiny": 64,
    "semantic-fpn-tiny": 64,
    "linear-segmentation-tiny": 64,
    "linear-segmentation-dinov3": 64,
    "upernet-tiny": 64,
}
"""Fine-tuning recipes with the side of their images here."""

REFUSED_ALONE = {"upernet-tiny"}
"""Recipes whose pyramid pooling normalizes a single pixel of a batch of one."""


def silent(done, total, words):
    pass


def odd_folder(task, root):
    """Three images a split; one has no label, and of three classes one has no sample."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for split in ("train", "test" if task == "depth" else "val"):
        images.clear()
        annotations.clear()
        for number in range(3):
            pixels = Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8))
            is_labeled = number > 0
            if task == "classification":
                path = root / split / "ab"[number % 2] / f"{number}.png"
            elif task == "detection":
                path = root / split / f"{number}.png"
            else:
                path = root / "images" / split / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels.save(path)
            if task == "detection":
                size = {"width": SIDE, "height": SIDE}
                images.append({"id": number, "file_name": path.name, **size})
                if is_labeled:
                    box = {"bbox": [4, 4, 20, 20], "area": 400, "iscrowd": 0}
                    square = [[4, 4, 24, 4, 24, 24, 4, 24]]
                    ids = {"id": number, "image_id": number, "category_id": number - 1}
                    annotations.append(ids | box | {"segmentation": square})
            if task in {"segmentation", "depth"}:
                low, high = (0, 2) if task == "segmentation" else (500, 9000)
                values = rng.integers(low, high, (SIDE, SIDE))
                if not is_labeled:
                    values[:] = 255 if task == "segmentation" else 0
                name, kind = ("masks", np.uint8) if task == "segmentation" else ("depth", np.uint16)
                label = root / name / split / f"{number}.png"
                label.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(values.astype(kind)).save(label)
        if task == "detection":
            names = [{"id": i, "name": n} for i, n in enumerate("abc")]
            content = {"images": images, "annotations": annotations, "categories": names}
            file = root / "annotations" / f"instances_{split}.json"
            file.parent.mkdir(exist_ok=True)
            file.write_text(json.dumps(content))
    (root / "classes.txt").write_text("a\nb\nc\n")
    if task == "classification":
        (root / "train" / "c").mkdir()
        (root / "val" / "c").mkdir()


def losses(uri):
    lines = read_bytes(join(uri, "log.jsonl")).decode().splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_small_batch_of_odd_data(recipe, batch_size, tmp_path):
    """Three images: batches of one, and of two, of which the last begins a new pass."""
    config = get_recipe(recipe, FinetuneConfig, [f"train.batch_size={batch_size}"])
    side = "image_size" if config.task in {"classification", "detection"} else "crop_size"
    config = config.override(
        ["train.steps=3", "train.log_every=1", f"model.{side}={RECIPES[recipe]}"]
        + ["model.num_workers=0"] * hasattr(config.model, "num_workers")
    )
    odd_folder(config.task, tmp_path / "data")
    data, store = str(tmp_path / "data"), str(tmp_path / "store")
    if batch_size == 1 and recipe in REFUSED_ALONE:
        with pytest.raises(ConfigError, match=r"set train\.batch_size to 2 or more"):
            finetune(config, "random:timm/test_resnet", data, store, report=silent)
        assert not any(key.endswith("model.json") for key in open_store(store).list("models/"))
        return
    model = finetune(config, "random:timm/test_resnet", data, store, report=silent)
    found = losses(model)
    assert len(found) == 3
    assert np.isfinite(found).all()
    metrics = read_evaluation(evaluate(model, data, store, report=silent)).metrics
    assert np.isfinite(list(metrics.values())).all()
    assert not any(name.endswith(".c") for name in metrics)
    assert exists(join(model, "model.json"))


@pytest.mark.parametrize("task", ["segmentation", "depth"])
def test_data_without_any_label_is_refused(task, tmp_path):
    odd_folder(task, tmp_path)
    for path in (tmp_path / ("masks" if task == "segmentation" else "depth")).rglob("*.png"):
        with Image.open(path) as label:
            empty = np.full_like(label, 255 if task == "segmentation" else 0)
        Image.fromarray(empty).save(path)
    config = get_recipe(f"linear-{task}-tiny", FinetuneConfig)
    with pytest.raises(SourceError, match=r"all pixels are ignored|no map has a pixel"):
        finetune(config, "random:timm/test_resnet", str(tmp_path), "s", report=silent)
