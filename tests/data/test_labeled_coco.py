"""COCO's layout: what is read, what is left out, what is refused."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from clipmill.data.labeled.coco import CocoFolder, coco_classes, coco_split
from clipmill.errors import SourceError
from clipmill.scenes import OBJECTS, SceneConfig, write_coco

SIZE = {"width": 20, "height": 16}
WHOLE = [[2, 3, 9, 3, 9, 8, 2, 8]]


def annotation(**changes):
    base = {"id": 1, "image_id": 5, "category_id": 4, "bbox": [2, 3, 7, 5], "segmentation": WHOLE}
    return base | changes


def written(folder, annotations, *, split="val", **changes):
    (folder / split).mkdir(exist_ok=True)
    (folder / "annotations").mkdir(exist_ok=True)
    for name in ("a.jpg", "b.jpg"):
        Image.new("RGB", (20, 16)).save(folder / split / name)
    content = {
        "images": [{"id": n, "file_name": f"{a}.jpg", **SIZE} for n, a in ((6, "b"), (5, "a"))],
        "categories": [{"id": 9, "name": "dog"}, {"id": 4, "name": "cat"}],
        "annotations": annotations,
        **changes,
    }
    path = folder / "annotations" / f"instances_{split}.json"
    path.write_text(json.dumps(content))
    return folder


def test_images_and_objects(tmp_path):
    folder = written(tmp_path, [annotation(), annotation(id=2, category_id=9, iscrowd=1)])
    data = CocoFolder.open(folder, "val")
    assert data.classes == coco_classes(folder) == ("cat", "dog")
    assert data.category_ids == (4, 9)
    assert [image.id for image in data.images] == [5, 6]
    cat, dog = data.images[0].instances
    assert (cat.box, cat.label, cat.is_crowd) == ((2, 3, 9, 8), 0, False)
    assert (dog.label, dog.is_crowd) == (1, True)
    assert data.images[1].instances == ()  # an image without annotations is ground to learn from
    assert data.masks_MHW(1).shape == (0, 16, 20)
    assert data.image_HW3(0).shape == (16, 20, 3)
    assert data.skipped == {}


@pytest.mark.parametrize(
    "bbox", [[2, 3, 0, 5], [2, 3, 7, -1], [30, 3, 7, 5], [19.5, 3, 7, 5], [float("nan"), 3, 7, 5]]
)
def test_a_box_without_area_is_left_out_and_counted(tmp_path, bbox):
    folder = written(tmp_path, [annotation(bbox=bbox), annotation(id=2)])
    data = CocoFolder.open(folder, "val")
    assert len(data.images[0].instances) == 1
    assert data.skipped == {"degenerate_box": 1}


def test_a_box_is_cut_at_the_edge(tmp_path):
    data = CocoFolder.open(written(tmp_path, [annotation(bbox=[-3, 10, 30, 30])]), "val")
    assert data.images[0].instances[0].box == (0, 10, 20, 16)


@pytest.mark.parametrize("segmentation", [[], None])
def test_an_object_without_a_mask_is_left_out_and_counted(tmp_path, segmentation):
    folder = written(tmp_path, [annotation(segmentation=segmentation)])
    assert CocoFolder.open(folder, "val").skipped == {"no_mask": 1}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"category_id": 77}, "annotation 1 has category_id 77"),
        ({"image_id": 77}, "annotation 1 has image_id 77"),
    ],
)
def test_what_nobody_listed_is_refused(tmp_path, changes, words):
    with pytest.raises(SourceError, match=words):
        CocoFolder.open(written(tmp_path, [annotation(**changes)]), "val")


def test_missing_images_are_counted(tmp_path):
    folder = written(tmp_path, [annotation()])
    (folder / "val" / "a.jpg").unlink()
    (folder / "val" / "b.jpg").unlink()
    with pytest.raises(SourceError, match=r"a\.jpg is missing, and 1 more"):
        CocoFolder.open(folder, "val")


def test_another_picture_than_the_annotated_one(tmp_path):
    folder = written(tmp_path, [annotation()])
    Image.new("RGB", (21, 16)).save(folder / "val" / "a.jpg")
    with pytest.raises(SourceError, match="is 21 x 16 pixels"):
        CocoFolder.open(folder, "val").image_HW3(0)


def test_a_broken_picture_is_named(tmp_path):
    folder = written(tmp_path, [annotation()])
    whole = (folder / "val" / "a.jpg").read_bytes()
    (folder / "val" / "a.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SourceError, match=r"a\.jpg can't be decoded"):
        CocoFolder.open(folder, "val").image_HW3(0)


def test_wrong_layouts(tmp_path):
    with pytest.raises(SourceError, match=r"no annotations/instances_val\.json"):
        CocoFolder.open(tmp_path, "val")
    with pytest.raises(SourceError, match=r"0 files annotations/instances_train\*\.json"):
        coco_split(tmp_path, "train")
    folder = written(tmp_path, [], images=[])
    with pytest.raises(SourceError, match="lists no image"):
        CocoFolder.open(folder, "val")
    (folder / "annotations" / "instances_val.json").write_text('{"images": []}')
    with pytest.raises(SourceError, match="can't be read"):
        CocoFolder.open(folder, "val")


def test_splits_with_a_year(tmp_path):
    assert coco_split(written(tmp_path, [], split="val2017"), "val") == "val2017"


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # pycocotools' own
def test_scenes_masks_equal_pycocotools(tmp_path):
    write_coco(SceneConfig(size=48), range(4), tmp_path, "train")
    data = CocoFolder.open(tmp_path, "train")
    assert data.classes == OBJECTS
    coco = COCO(str(tmp_path / "annotations" / "instances_train.json"))
    for index, image in enumerate(data.images):
        expected = [coco.annToMask(a) for a in coco.imgToAnns[image.id]]
        np.testing.assert_array_equal(data.masks_MHW(index), expected)


def test_compressed_run_lengths(tmp_path):
    from pycocotools import mask as coco_mask

    mask = np.zeros((16, 20), np.uint8)
    mask[3:8, 2:9] = 1
    encoded = coco_mask.encode(np.asfortranarray(mask))
    encoded["counts"] = encoded["counts"].decode()
    data = CocoFolder.open(written(tmp_path, [annotation(segmentation=encoded)]), "val")
    np.testing.assert_array_equal(data.masks_MHW(0)[0], mask)
