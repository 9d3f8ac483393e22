"""Labeled folders: real scenes read back, and the layouts that are refused."""

import numpy as np
import pytest
from PIL import Image

from clipmill.data.labeled.dense import (
    IGNORED,
    DepthFolder,
    SegmentationFolder,
    segmentation_classes,
)
from clipmill.errors import SourceError
from clipmill.scenes import CLASSES, SceneConfig, draw, write_ade20k, write_nyu

SCENES = SceneConfig(size=32)


@pytest.fixture
def ade20k(tmp_path):
    write_ade20k(SCENES, range(2), tmp_path, "training")
    write_ade20k(SCENES, range(2, 5), tmp_path, "validation")
    return tmp_path


@pytest.fixture
def nyu(tmp_path):
    write_nyu(SCENES, range(2), tmp_path, "train")
    write_nyu(SCENES, range(2, 5), tmp_path, "test")
    return tmp_path


@pytest.mark.parametrize(("split", "first", "count"), [("training", 0, 2), ("validation", 2, 3)])
def test_ade20k(ade20k, split, first, count):
    folder = SegmentationFolder.open(ade20k, split)
    assert len(folder) == count
    for index in range(count):
        scene = draw(SCENES, first + index)
        assert np.array_equal(folder.classes_HW(index) + 1, scene.classes_HW)
        difference = folder.image_HW3(index).astype(int) - scene.image_HW3
        assert abs(difference).mean() < 4  # a JPEG's loss


def test_unlabeled_is_ignored(ade20k):
    (path, _) = sorted((ade20k / "annotations" / "training").iterdir())
    Image.fromarray(np.array([[0, 1], [14, 2]], np.uint8)).save(path)
    found = SegmentationFolder.open(ade20k, "training").classes_HW(0)
    assert found.tolist() == [[IGNORED, 0], [13, 1]]


def test_an_id_outside_of_the_list(ade20k):
    (path, _) = sorted((ade20k / "annotations" / "training").iterdir())
    Image.fromarray(np.array([[0, 1], [15, 2]], np.uint8)).save(path)
    with pytest.raises(SourceError, match=rf"{path.name} has the value 15\n.*to 14"):
        SegmentationFolder.open(ade20k, "training").classes_HW(0)


def test_a_mask_of_colors_or_16_bits(ade20k):
    (path, _) = sorted((ade20k / "annotations" / "training").iterdir())
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(path)
    with pytest.raises(SourceError, match="is no map of class ids"):
        SegmentationFolder.open(ade20k, "training").classes_HW(0)
    Image.fromarray(np.array([[0, 1], [3, 2]], np.uint16)).save(path)
    found = SegmentationFolder.open(ade20k, "training").classes_HW(0)
    assert found.tolist() == [[IGNORED, 0], [2, 1]]
    path.write_bytes(b"broken")
    with pytest.raises(SourceError, match=f"{path.name} can't be decoded"):
        SegmentationFolder.open(ade20k, "training").classes_HW(0)


def test_a_palettes_indices_are_ids(ade20k):
    (path, _) = sorted((ade20k / "annotations" / "training").iterdir())
    image = Image.fromarray(np.array([[0, 1], [3, 2]], np.uint8))
    image.putpalette([*range(256)] * 3)
    image.save(path)
    found = SegmentationFolder.open(ade20k, "training").classes_HW(0)
    assert found.tolist() == [[IGNORED, 0], [2, 1]]


@pytest.mark.parametrize(
    ("per_meter", "is_right"), [(1, False), (100, False), (1000, True), (10_000, False)]
)
def test_the_unit_of_depth(nyu, per_meter, is_right):
    """Meters, centimeters and tenths of millimeters are told from millimeters."""
    data = DepthFolder.open(nyu, "train")
    Image.fromarray(np.full((4, 4), 2.5 * per_meter).astype(np.uint16)).save(data.labels[0])
    if is_right:
        assert (data.depth_HW(0) == 2.5).all()
    else:
        with pytest.raises(SourceError, match="median depth"):
            data.depth_HW(0)


def test_bts_lists_images_without_depth(nyu):
    listed = nyu / "train_list.txt"
    whole = len(DepthFolder.open(nyu, "train"))
    listed.write_text(listed.read_text() + "/x/rgb_1.jpg None 518.8579\n")
    assert len(DepthFolder.open(nyu, "train")) == whole
    listed.write_text(listed.read_text() + "/x/rgb_1.jpg\n")
    with pytest.raises(SourceError, match=r"names no depth in entry 4: '/x/rgb_1\.jpg'"):
        DepthFolder.open(nyu, "train")


@pytest.mark.parametrize(("split", "first", "count"), [("train", 0, 2), ("test", 2, 3)])
def test_nyu(nyu, split, first, count):
    folder = DepthFolder.open(nyu, split)
    assert len(folder) == count
    for index in range(count):
        scene = draw(SCENES, first + index)
        depth = folder.depth_HW(index)
        assert depth.dtype == np.float32
        np.testing.assert_allclose(depth, scene.depth_HW, atol=0.00051)
        assert abs(folder.image_HW3(index).astype(int) - scene.image_HW3).mean() < 4


def test_lists_as_others_write_them(tmp_path):
    """With or without a leading slash or a focal length, and with blank lines."""
    for name in ("a", "b"):
        Image.new("RGB", (3, 2)).save(tmp_path / f"{name}.jpg")
        Image.fromarray(np.full((2, 3), 1500, np.uint16)).save(tmp_path / f"{name}.png")
    (tmp_path / "train_list.txt").write_text("/a.jpg /a.png 518.8579\n\nb.jpg b.png\n")
    folder = DepthFolder.open(tmp_path, "train")
    assert [path.name for path in folder.images] == ["a.jpg", "b.jpg"]
    assert (folder.depth_HW(1) == np.float32(1.5)).all()


def test_classes(ade20k, tmp_path):
    assert segmentation_classes(ade20k) == CLASSES
    lines = [
        "Idx\tRatio\tTrain\tVal\tName",
        "1\t0.16\t99\t9\twall",
        "2\t0.1\t9\t1\tdoor, double door",
    ]
    (tmp_path / "objectInfo150.txt").write_text("\n".join(lines) + "\n")
    assert segmentation_classes(tmp_path) == ("wall", "door")


@pytest.mark.parametrize(
    ("kind", "split", "said"),
    [
        (SegmentationFolder, "training", r"has no images/training/\*\.jpg"),
        (DepthFolder, "train", "has no train_list"),
    ],
)
def test_an_empty_folder(tmp_path, kind, split, said):
    with pytest.raises(SourceError, match=said):
        kind.open(tmp_path, split)


def test_no_classes(tmp_path):
    with pytest.raises(SourceError, match=r"objectInfo150\.txt is missing"):
        segmentation_classes(tmp_path)


def test_a_label_is_missing(ade20k):
    path = next((ade20k / "annotations" / "training").iterdir())
    path.unlink()
    with pytest.raises(SourceError, match=f"{path.name} is missing"):
        SegmentationFolder.open(ade20k, "training")


def test_a_picture_is_missing(nyu):
    path = next((nyu / "official_splits" / "test").glob("*/rgb_*.jpg"))
    path.unlink()
    with pytest.raises(SourceError, match=f"{path.name} is missing"):
        DepthFolder.open(nyu, "test")
