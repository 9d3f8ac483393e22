"""Every kind of bad data is found before training, with its file, and good data is fit."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from clipmill import stages
from clipmill.cli import app
from clipmill.engine.config import TrainConfig
from clipmill.errors import ConfigError, SourceError
from clipmill.models.checkpoint import CheckpointMetadata, save_checkpoint
from clipmill.scenes import SceneConfig, write_ade20k, write_coco, write_nyu
from clipmill.tasks.checks import check_data
from clipmill.tasks.config import ClassificationConfig, DetectionConfig
from clipmill.tasks.finetune import FinetuneConfig, finetune
from helpers.tiny_tasks import DEPTH, SEGMENTATION

SCENES = SceneConfig(size=32)
TRAIN = TrainConfig(steps=1, batch_size=2)


def silent(done, total, words):
    pass


def fail(done, total, words):
    pytest.fail("trained")


def found(task, folder, **options):
    check = check_data(task, folder, report=silent, **options)
    return check, {f.reason: f for f in check.issues}


def faults(check):
    return {f.reason: f.count for f in check.issues if f.is_error}


@pytest.fixture
def ade20k(tmp_path):
    for split, indices in (("training", range(3)), ("validation", range(3, 5))):
        write_ade20k(SCENES, indices, tmp_path, split)
    return tmp_path


@pytest.fixture
def nyu(tmp_path):
    for split, indices in (("train", range(3)), ("test", range(3, 5))):
        write_nyu(SCENES, indices, tmp_path, split)
    return tmp_path


@pytest.fixture
def coco(tmp_path):
    for split, indices in (("train2017", range(3)), ("val2017", range(3, 5))):
        write_coco(SCENES, indices, tmp_path, split)
    return tmp_path


@pytest.fixture
def classes(tmp_path):
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / split / name / "1.jpg")
    return tmp_path


@pytest.mark.parametrize(
    ("task", "layout", "splits"),
    [
        ("segmentation", "ade20k", {"train": 3, "val": 2}),
        ("depth", "nyu", {"train": 3, "test": 2}),
        ("detection", "coco", {"train": 3, "val": 2}),
        ("classification", "classes", {"train": 2, "val": 2}),
    ],
)
def test_good_data_is_fit(task, layout, splits, request):
    check, _ = found(task, request.getfixturevalue(layout))
    assert check.is_usable
    assert check.num_samples == splits


@pytest.mark.parametrize("task", ["segmentation", "depth", "detection", "classification"])
def test_an_empty_folder_says_what_was_looked_for(task, tmp_path):
    check, by_reason = found(task, tmp_path)
    assert not check.is_usable
    looked_for = {
        "segmentation": "objectInfo150.txt",
        "depth": "train_list.txt",
        "detection": "annotations/instances_train.json",
        "classification": "train/CLASS/*.jpg",
    }
    assert looked_for[task] in by_reason["layout"].examples[0]


def test_segmentation(ade20k):
    masks = sorted((ade20k / "annotations" / "training").iterdir())
    images = sorted((ade20k / "images" / "training").iterdir())
    Image.fromarray(np.full((32, 32), 15, np.uint8)).save(masks[0])
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(masks[1])
    Image.fromarray(np.ones((16, 32), np.uint8)).save(masks[2])
    images[1].write_bytes(images[1].read_bytes()[:300])
    (lost, _) = sorted((ade20k / "annotations" / "validation").iterdir())
    lost.unlink()
    check, by_reason = found("segmentation", ade20k)
    assert faults(check) == {
        "layout": 1,
        "mask": 1,
        "mask_of_another_size": 1,
        "unreadable_image": 1,
    }
    assert by_reason["layout"].examples == (f"{lost} is missing",)
    assert by_reason["mask"].examples == (f"{masks[0]} has the value 15",)
    assert str(images[1]) in by_reason["unreadable_image"].examples[0]
    # All classes but the one in the last mask.
    assert by_reason["class_without_pixels"].count == 13


def test_depth(nyu):
    maps = sorted((nyu / "scenes_0000").glob("*.png"))
    Image.fromarray(np.full((32, 32), 2, np.uint16)).save(maps[0])  # meters
    Image.fromarray(np.zeros((32, 32), np.uint16)).save(maps[1])
    Image.fromarray(np.full((32, 32), 12_000, np.uint16)).save(maps[2])
    check, by_reason = found("depth", nyu)
    assert faults(check) == {"depth": 1, "depth_unit": 1}
    assert "median depth of 0.002 m" in by_reason["depth"].examples[0]
    assert by_reason["no_depth_known"].examples == (str(maps[1]),)
    assert by_reason["mostly_out_of_range"].count == 1


def depth_maps(folder, meters, unit, **options):
    """Maps of a declared unit, 6 a split, as 16-bit PNGs in folders."""
    for split in ("train", "test"):
        for number, meters_HW in enumerate(meters):
            for name, pixels in (
                ("images", np.zeros((*meters_HW.shape, 3), np.uint8)),
                ("depth", np.rint(meters_HW * unit).astype(np.uint16)),
            ):
                path = folder / name / split / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    if options:
        (folder / "depth.json").write_text(json.dumps(options))
    return folder


def street():
    """Sparse depth of a street as a laser measures it: half below 12 m, some to 80 m."""
    rng = np.random.default_rng(0)
    maps = (4 + rng.exponential(12, (6, 20, 60))).clip(max=80)
    maps[rng.random(maps.shape) < 0.7] = 0
    return maps


def room(farthest=6.0):
    return np.random.default_rng(0).uniform(0.8, farthest, (6, 20, 30))


@pytest.mark.parametrize(
    ("meters", "unit", "expected"),
    [
        (street(), 256, "error"),  # KITTI
        (room(), 5000, "error"),  # TUM
        (room(), 100, "error"),  # centimeters: a median of 0.34 m
        (room(9.0), 256, "warning"),
        (room(), 1000, ""),
        (room(9.9), 1000, ""),
    ],
)
def test_depth_of_another_unit_than_the_millimeter(tmp_path, meters, unit, expected):
    """As one's own and without the option it's noticed, and each of the units is shown."""
    _, by_reason = found("depth", depth_maps(tmp_path, meters, unit))
    issue = by_reason.get("depth_unit")
    assert (issue and ("error" if issue.is_error else "warning")) == (expected or None)
    if issue:
        known = meters[meters > 0]
        median = float(np.median([np.median(one[one > 0]) for one in meters]))
        words = f"median {median:.3g} m, up to {known.max():.3g} m"
        units = issue.examples[0].rpartition("By unit: ")[2].split("; ")
        shown = dict(text.split(" (") for text in units)
        assert shown[str(unit)].partition("): ")[2] == words
        assert "Set values_per_meter in depth.json" in issue.examples[0]
    declared, _ = found("depth", depth_maps(tmp_path, meters, unit, values_per_meter=unit))
    assert declared.is_usable
    assert "depth_unit" not in {one.reason for one in declared.issues}


def test_training_names_the_doubtful_unit(tmp_path, caplog):
    store, encoder = str(tmp_path / "s"), "random:timm/test_resnet"
    config = FinetuneConfig(task="depth", model=DEPTH, train=TRAIN)
    kitti = str(depth_maps(tmp_path / "a", street(), 256))
    with pytest.raises(SourceError, match="256 \\(KITTI\\): median"):
        finetune(config, encoder, kitti, store, report=silent)
    finetune(config, encoder, str(depth_maps(tmp_path / "b", room(9), 256)), store, report=silent)
    assert "256 (KITTI): median" in caplog.text


def test_detection(coco):
    path = coco / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    annotations = content["annotations"]
    annotations[0]["bbox"][2] = 0
    annotations[1]["category_id"] = 99
    annotations[2]["image_id"] = 77
    annotations[3]["bbox"] = [30, 30, 20, 20]
    annotations[3]["image_id"] = annotations[0]["image_id"]
    lonely = content["images"][-1]["id"]
    content["annotations"] = [a for a in annotations if a["image_id"] != lonely]
    path.write_text(json.dumps(content))
    (coco / "val2017" / f"{3:012d}.jpg").unlink()
    file = io.BytesIO()
    Image.new("RGB", (20, 32)).save(file, "JPEG")
    (coco / "val2017" / f"{4:012d}.jpg").write_bytes(file.getvalue())
    check, by_reason = found("detection", coco)
    assert faults(check) == {
        "image_of_another_size": 1,
        "missing_image": 1,
        "unknown_category": 1,
        "unknown_image": 1,
    }
    assert "category_id 99" in by_reason["unknown_category"].examples[0]
    assert by_reason["degenerate_box"].count == 1
    assert by_reason["box_out_of_image"].count == 1
    assert by_reason["image_without_annotation"].examples == (f"{lonely:012d}.jpg",)
    path.write_text("[]")
    assert "can't be read" in found("detection", coco)[1]["layout"].examples[0]


def test_classification(classes):
    (classes / "val" / "cat" / "1.jpg").write_bytes(b"broken")
    (classes / "val" / "cow").mkdir()
    check, by_reason = found("classification", classes)
    assert faults(check) == {"unreadable_image": 1, "class_not_trained": 1}
    assert by_reason["class_without_images"].examples == ("val/cow",)


LAYOUTS = {
    "classification": ("classes", ClassificationConfig(num_workers=0, drop_path=0.0)),
    "depth": ("nyu", DEPTH),
    "detection": (
        "coco",
        DetectionConfig(neck_channels=8, roi_hidden_dim=8, num_workers=0, drop_path=0.0),
    ),
    "segmentation": ("ade20k", SEGMENTATION),
}
SIDES = {
    "classification": ("image_size", "test_size"),
    "depth": ("crop_size",),
    "detection": ("image_size",),
    "segmentation": ("crop_size",),
}


@pytest.mark.parametrize(
    ("task", "field"), [(task, field) for task, fields in SIDES.items() for field in fields]
)
def test_an_encoder_whose_stride_does_not_fit(task, field, request, tmp_path):
    """The check says so, and training refuses before its first step."""
    fixture, model = LAYOUTS[task]
    folder, encoder = request.getfixturevalue(fixture), "random:open_clip/ViT-B-16"
    for side, is_usable in ((48, True), (40, False)):
        sides = [f"{other}=48" for other in SIDES[task]] + [f"{field}={side}"]
        config = FinetuneConfig(task=task, model=model.override(sides), train=TRAIN)
        check, by_reason = found(task, folder, encoder=encoder, config=config.model)
        assert faults(check) == ({} if is_usable else {"encoder": 1})
    assert "images of 40 pixels a side, on an encoder of stride 16" in str(by_reason)
    with pytest.raises(ConfigError, match="of 40 pixels a side, on an encoder of stride 16"):
        finetune(config, encoder, str(folder), str(tmp_path / "store"), report=fail)


@pytest.mark.parametrize(
    ("encoder", "words"),
    [
        ("random:timm/test_resnet", ""),
        ("random:timm/vit_tiny_patch16_224", ""),
        ("random:timm/vit_small_patch14_dinov2", "stride 14"),
        ("random:timm/test_vit_relpos", "can't take the recipe's images"),
    ],
)
def test_encoders_of_other_families(encoder, words, nyu):
    check, by_reason = found("depth", nyu, encoder=encoder, config=DEPTH)
    assert check.is_usable == (not words)
    assert words in str(by_reason)


def test_a_recipe_of_another_task(ade20k):
    with pytest.raises(ConfigError, match="the recipe is for depth"):
        stages.check_data("segmentation", str(ade20k), recipe="linear-depth-tiny")


def test_a_model_for_another_list_of_classes(ade20k):
    uri = str(ade20k / "model")
    architecture = {"task": "segmentation", "classes": ["floor", "sky"]}
    metadata = CheckpointMetadata(
        kind="task", architecture=architecture, recipe=SEGMENTATION.to_json()
    )
    save_checkpoint(uri, metadata, {})
    check, by_reason = found("segmentation", ade20k, model=uri)
    assert faults(check) == {"another_class_list": 1}
    (example,) = by_reason["another_class_list"].examples
    assert "class 'wall' (1), which the model's list of 2" in example


def test_command(ade20k):
    command = CliRunner()
    answer = command.invoke(app, ["data", "validate", "segmentation", str(ade20k)])
    assert answer.exit_code == 0, answer.output
    assert "train: 3 samples" in answer.stdout
    (mask, *_) = sorted((ade20k / "annotations" / "training").iterdir())
    Image.fromarray(np.full((32, 32), 15, np.uint8)).save(mask)
    answer = command.invoke(app, ["data", "validate", "segmentation", str(ade20k)])
    assert "fault: mask, 1 times" in answer.stdout
    assert mask.name in answer.stdout
    assert "can't be used for segmentation: mask (1)" in str(answer.exception)
    with pytest.raises(ConfigError, match="no check of data for 'saliency'"):
        check_data("saliency", ade20k, report=silent)
