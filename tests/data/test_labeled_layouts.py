"""Labels as people have them: each layout written by a public library, and read back exactly."""

import csv
import json

import numpy as np
import pytest
import tifffile
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from clipmill.data.labeled.coco import CocoFolder, coco_classes
from clipmill.data.labeled.dense import (
    IGNORED,
    DepthFolder,
    SegmentationFolder,
    segmentation_classes,
)
from clipmill.data.labeled.folder import ImageFolder
from clipmill.errors import ConfigError, SourceError

MASK = np.array([[0, 1, 2], [255, 1, 0]], np.uint8)
COLORS = {"sky": (128, 128, 128), "road": (128, 64, 128), "car": (64, 0, 128)}


def image(path, size=(3, 2), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "teal").save(path, **options)


def mask(path, values=MASK):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def options(folder, task, **fields):
    (folder / f"{task}.json").write_text(json.dumps(fields))


def names(folder, *classes):
    (folder / "classes.txt").write_text("\n".join(classes) + "\n")


def folders(root, *, images="images/{}", masks="masks/{}"):
    for split in ("train", "val"):
        image(root / images.format(split) / "a.webp")
        mask(root / masks.format(split) / "a.png")
    names(root, *COLORS)
    return root


def test_masks_from_0_with_255_ignored(tmp_path):
    data = SegmentationFolder.open(folders(tmp_path), "val")
    assert data.classes == ("sky", "road", "car")
    assert data.classes_HW(0).tolist() == MASK.tolist()
    assert data.pair(0)[0].shape == (2, 3, 3)


def test_mmseg(tmp_path):
    folder = folders(tmp_path, images="img_dir/{}", masks="ann_dir/{}")
    assert SegmentationFolder.open(folder, "train").classes_HW(0).tolist() == MASK.tolist()


def test_flat_folders_with_lists_or_a_share(tmp_path):
    names(tmp_path, *COLORS)
    for number in range(40):
        image(tmp_path / "images" / f"{number}.png")
        mask(tmp_path / "masks" / f"{number}.png")
    with pytest.raises(SourceError, match=r"no list of train\n.*\n.*val_fraction"):
        SegmentationFolder.open(tmp_path, "train")
    options(tmp_path, "segmentation", val_fraction=0.25)
    train, val = (SegmentationFolder.open(tmp_path, split).images for split in ("train", "val"))
    assert not set(train) & set(val)
    assert len(train) + len(val) == 40
    assert 4 <= len(val) <= 16
    (tmp_path / "train.txt").write_text("3\n7.png\n")
    data = SegmentationFolder.open(tmp_path, "train")
    assert [path.name for path in data.labels] == ["3.png", "7.png"]


def test_voc(tmp_path):
    palette = Image.fromarray(MASK)
    palette.putpalette([*range(256)] * 3)
    for name in ("a", "b"):
        image(tmp_path / "JPEGImages" / f"{name}.jpg")
        (tmp_path / "SegmentationClass").mkdir(exist_ok=True)
        palette.save(tmp_path / "SegmentationClass" / f"{name}.png")
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a\n")
    (lists / "val.txt").write_text("b\n")
    data = SegmentationFolder.open(tmp_path, "val")
    assert [path.name for path in data.images] == ["b.jpg"]
    assert data.classes[:3] == ("background", "aeroplane", "bicycle")
    assert data.classes_HW(0).tolist() == MASK.tolist()


@pytest.mark.parametrize("kind", ["labelIds", "labelTrainIds"])
def test_cityscapes(tmp_path, kind):
    """Ids of cityscapesscripts: 7 is road, 8 sidewalk, 33 bicycle, 4 static, void."""
    values = [[7, 8, 33], [4, 0, 7]] if kind == "labelIds" else [[0, 1, 18], [255, 255, 0]]
    for split in ("train", "val"):
        image(tmp_path / "leftImg8bit" / split / "bonn" / "bonn_0_leftImg8bit.png")
        place = tmp_path / "gtFine" / split / "bonn" / f"bonn_0_gtFine_{kind}.png"
        mask(place, np.array(values, np.uint8))
    data = SegmentationFolder.open(tmp_path, "val")
    assert len(data.classes) == 19
    assert data.classes_HW(0).tolist() == [[0, 1, 18], [IGNORED, IGNORED, 0]]


def rgb(values):
    table = np.zeros((256, 3), np.uint8)
    for number, color in enumerate(COLORS.values()):
        table[number] = color
    return table[values]


@pytest.mark.parametrize("source", ["csv", "json", "labelmap", "options"])
def test_colors(tmp_path, source):
    """CamVid's class_dict.csv, a JSON list, CVAT's labelmap.txt, and options."""
    folder = folders(tmp_path)
    (folder / "classes.txt").unlink()
    for split in ("train", "val"):
        mask(folder / "masks" / split / "a.png", rgb(MASK))
    if source == "csv":
        with (folder / "class_dict.csv").open("w", newline="") as file:
            rows = [["name", "r", "g", "b"], *([n, *c] for n, c in COLORS.items())]
            csv.writer(file).writerows(rows)
        options(folder, "segmentation", ignored_colors=[[0, 0, 0]])
    elif source == "json":
        entries = [{"name": name, "color": list(color)} for name, color in COLORS.items()]
        (folder / "classes.json").write_text(json.dumps(entries))
        options(folder, "segmentation", ignored_colors=[[0, 0, 0]])
    elif source == "labelmap":
        lines = ["# label:color_rgb:parts:actions"]
        lines += [f"{name}:{','.join(map(str, color))}::" for name, color in COLORS.items()]
        (folder / "labelmap.txt").write_text("\n".join(lines))
        options(folder, "segmentation", ignored_colors=[[0, 0, 0]])
    else:
        options(folder, "segmentation", colors=COLORS, ignored_colors=[[0, 0, 0]])
    data = SegmentationFolder.open(folder, "train")
    assert data.classes == tuple(COLORS)
    assert data.classes_HW(0).tolist() == MASK.tolist()
    mask(data.labels[0], rgb(MASK) + np.uint8(1))
    with pytest.raises(SourceError, match=r"has the color \(129, 129, 129\)"):
        data.classes_HW(0)


def test_a_palettes_colors(tmp_path):
    folder = folders(tmp_path)
    options(folder, "segmentation", colors=COLORS, ignored_colors=[[0, 0, 0]])
    quantized = Image.fromarray(rgb(MASK)).quantize(8)
    quantized.save(folder / "masks" / "train" / "a.png")
    data = SegmentationFolder.open(folder, "train")
    assert data.classes_HW(0).tolist() == MASK.tolist()


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("classes.json", '{"7": "road", "9": "sky"}'),
        ("classes.json", '{"road": 7, "sky": 9}'),
        ("classes.json", '[{"id": 7, "name": "road"}, {"id": 9, "name": "sky"}]'),
        ("classes.csv", "id,name\n7,road\n9,sky\n"),
    ],
)
def test_any_ids(tmp_path, file, content):
    folder = folders(tmp_path)
    (folder / "classes.txt").unlink()
    (folder / file).write_text(content)
    options(folder, "segmentation", ignored=[3])
    mask(folder / "masks" / "train" / "a.png", np.array([[7, 9, 3], [9, 7, 7]], np.uint16))
    data = SegmentationFolder.open(folder, "train")
    assert data.classes == ("road", "sky")
    assert data.classes_HW(0).tolist() == [[0, 1, IGNORED], [1, 0, 0]]


def test_ade20ks_layout_with_ids_from_0(tmp_path):
    folder = folders(tmp_path, masks="annotations/{}")
    (folder / "objectInfo150.txt").write_text("Name\nsky\nroad\ncar\n")
    assert SegmentationFolder.open(folder, "train").classes_HW(0).tolist() == [
        [IGNORED, 0, 1],
        [IGNORED, 0, IGNORED],
    ]
    options(folder, "segmentation", first_class=0)
    assert SegmentationFolder.open(folder, "train").classes_HW(0).tolist() == MASK.tolist()


def test_labels_are_numbered_by_the_models_names(tmp_path):
    folder = folders(tmp_path)
    data = SegmentationFolder.open(folder, "val", ("car", "tree", "sky", "road"))
    assert data.classes_HW(0).tolist() == [[2, 3, 0], [255, 3, 2]]
    with pytest.raises(SourceError, match=r"class 'car' \(2\), which the model's list of 2"):
        SegmentationFolder.open(folder, "val", ("sky", "road"))


def test_a_mask_of_another_size_is_refused(tmp_path):
    folder = folders(tmp_path)
    mask(folder / "masks" / "train" / "a.png", MASK[:, :2])
    with pytest.raises(SourceError, match=r"is 2 x 2 pixels, and .* is 3 x 2"):
        SegmentationFolder.open(folder, "train").pair(0)


def test_exif(tmp_path):
    """A photo that EXIF turns: masks are drawn upright, or on the pixels as stored."""
    exif = Image.Exif()
    exif[0x0112] = 6
    folder = folders(tmp_path)
    image(folder / "images" / "train" / "a.webp", exif=exif)
    with pytest.raises(SourceError, match='exif to "ignore"'):
        SegmentationFolder.open(folder, "train").pair(0)
    options(folder, "segmentation", exif="ignore")
    assert SegmentationFolder.open(folder, "train").pair(0)[0].shape == (2, 3, 3)


def test_files_without_a_partner(tmp_path):
    folder = folders(tmp_path)
    mask(folder / "masks" / "train" / "lost.png")
    (folder / "images" / "train" / "b.gif").write_bytes(b"")
    (folder / "images" / "train" / ".DS_Store").write_bytes(b"")
    data = SegmentationFolder.open(folder, "train")
    assert sorted(path.name for path in data.passed_over) == ["b.gif", "lost.png"]


def test_an_unknown_option(tmp_path):
    options(folders(tmp_path), "segmentation", ignore=[0])
    with pytest.raises(ConfigError, match=r"segmentation\.json\.ignore is not a field"):
        segmentation_classes(tmp_path)


def depth_folder(root, suffix, values, **fields):
    for split in ("train", "test"):
        image(root / "images" / split / "a b.png")
        path = root / "depth" / split / f"a b{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if suffix == ".npy":
            np.save(path, values)
        elif suffix == ".tiff":
            tifffile.imwrite(path, values)
        else:
            Image.fromarray(values).save(path)
    if fields:
        options(root, "depth", **fields)
    return DepthFolder.open(root, "test")


METERS = np.array([[1.5, 2, 4], [0, 3, 2.5]], np.float32)


@pytest.mark.parametrize(
    ("suffix", "values", "fields"),
    [
        (".png", METERS * 1000, {}),
        (".png", METERS * 256, {"values_per_meter": 256}),
        (".png", METERS * 100, {"values_per_meter": 100}),
        (".tiff", METERS, {}),
        (".npy", METERS, {}),
        (".npy", METERS[None], {}),
        (".npy", METERS * 1000, {"values_per_meter": 1000}),
    ],
)
def test_units_of_depth(tmp_path, suffix, values, fields):
    values = values.astype(np.uint16) if suffix == ".png" else values
    data = depth_folder(tmp_path, suffix, values, **fields)
    np.testing.assert_array_equal(data.depth_HW(0), METERS)


def test_invalid_depth(tmp_path):
    values = np.array([[np.nan, 2, -1], [np.inf, 3, 99]], np.float32)
    data = depth_folder(tmp_path, ".npy", values, invalid=[99])
    np.testing.assert_array_equal(data.depth_HW(0), [[0, 2, 0], [0, 3, 0]])


def test_depth_of_another_resolution(tmp_path):
    data = depth_folder(tmp_path, ".npy", METERS.repeat(2, 0).repeat(2, 1))
    np.testing.assert_array_equal(data.pair(0)[1], METERS)
    other = depth_folder(tmp_path, ".npy", METERS[:, :2])
    with pytest.raises(SourceError, match="is 2 x 2 pixels"):
        other.pair(0)


def test_kittis_units_without_the_option(tmp_path):
    data = depth_folder(tmp_path, ".png", (METERS * 100 / 10).astype(np.uint16))
    with pytest.raises(SourceError, match=r"median depth of 0\.025 m.*\n.*\n.*values_per_meter"):
        data.depth_HW(0)


def test_a_csv_list_with_spaces_in_names(tmp_path):
    image(tmp_path / "my photos" / "a.png")
    Image.fromarray((METERS * 1000).astype(np.uint16)).save(tmp_path / "my photos" / "d 1.png")
    (tmp_path / "train.csv").write_text("image,depth\nmy photos/a.png,my photos/d 1.png\n")
    data = DepthFolder.open(tmp_path, "train")
    np.testing.assert_array_equal(data.depth_HW(0), METERS)


@pytest.mark.parametrize("form", ["train.csv", "metadata.jsonl", "metadata.csv", "split"])
def test_tables_of_classes(tmp_path, form):
    """CSV, and Hugging Face's imagefolder metadata; names with spaces and umlauts."""
    rows = [("1.jpg", "große Katze"), ("2.webp", "dog"), ("3.png", "dog")]
    for name, _ in rows:
        image(tmp_path / "train" / name)
    if form == "metadata.jsonl":
        lines = [json.dumps({"file_name": n, "label": c}) for n, c in rows]
        (tmp_path / "train" / form).write_text("\n".join(lines))
    else:
        table = {
            "train.csv": (tmp_path / "train.csv", ["path", "class"], "train/"),
            "metadata.csv": (tmp_path / "train" / form, ["file_name", "label"], ""),
            "split": (tmp_path / "labels.csv", ["file_name", "label", "split"], "train/"),
        }
        path, header, prefix = table[form]
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(header)
            writer.writerows([prefix + n, c, "train"][: len(header)] for n, c in rows)
    data = ImageFolder.open(tmp_path, "train")
    assert data.classes == ("dog", "große Katze")
    assert [(p.name, data.classes[n]) for p, n in zip(data.images, data.labels, strict=True)] == (
        rows
    )


def test_whole_numbers_are_places_in_the_list(tmp_path):
    image(tmp_path / "train" / "1.jpg")
    (tmp_path / "train" / "metadata.csv").write_text("file_name,label\n1.jpg,1\n")
    names(tmp_path, "cat", "dog")
    options(tmp_path, "classification", classes="classes.txt")
    data = ImageFolder.open(tmp_path, "train")
    assert (data.labels, data.classes) == ((1,), ("cat", "dog"))


def test_classes_of_val_are_numbered_by_name(tmp_path):
    for place in ("train/a", "train/b", "val/b"):
        image(tmp_path / place / "1.jpg")
    (tmp_path / "val" / ".ipynb_checkpoints").mkdir()
    assert ImageFolder.open(tmp_path, "val", ("a", "b")).labels == (1,)
    (tmp_path / "val" / "c").mkdir()
    with pytest.raises(SourceError, match="class 'c'"):
        ImageFolder.open(tmp_path, "val", ("a", "b"))


SQUARE = [2, 3, 9, 3, 9, 8, 2, 8]


def coco(folder, annotations, **changes):
    (folder / "annotations").mkdir(exist_ok=True)
    image(folder / "train" / "a.jpg", (20, 16))
    content = {
        "images": [{"id": "a", "file_name": "a.jpg", "width": 20, "height": 16}],
        "categories": [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}],
        "annotations": [
            {"image_id": "a", "category_id": 1, "bbox": [2, 3, 7, 5], **a} for a in annotations
        ],
        **changes,
    }
    path = folder / "annotations" / "instances_train.json"
    path.write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        ([[]], "degenerate_polygon"),
        ([[2, 3, 9, 3, 9]], "degenerate_polygon"),
        ([[2, 3]], "degenerate_polygon"),
        ([[2, 3, 9, 8]], "degenerate_polygon"),
        ("text", "degenerate_polygon"),
        ({"size": [16, 20], "counts": [5, 5]}, "bad_run_lengths"),
        ({"size": [16, 20], "counts": "52"}, "bad_run_lengths"),
        ({"size": [20, 16], "counts": [320]}, "bad_run_lengths"),
        (None, "no_mask"),
        ([], "no_mask"),
    ],
)
def test_masks_that_are_none_leave_the_box(tmp_path, segmentation, reason):
    data = CocoFolder.open(coco(tmp_path, [{"segmentation": segmentation}]), "train")
    assert data.skipped == {reason: 1}
    assert data.images[0].instances[0].box == (2, 3, 9, 8)
    assert len(data.truth) == 1
    assert not data.masks_MHW(0).any()


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # pycocotools' own
def test_masks_equal_pycocotools(tmp_path):
    rng = np.random.default_rng(0)
    drawn = (rng.random((16, 20)) < 0.5).astype(np.uint8)
    compressed = coco_mask.encode(np.asfortranarray(drawn))
    compressed["counts"] = compressed["counts"].decode()
    polygons = [(rng.random((n, 2)) * [20, 16]).round(2).ravel().tolist() for n in (3, 5, 9)]
    masks = [[SQUARE], SQUARE, *([p] for p in polygons), polygons, compressed]
    folder = coco(tmp_path, [{"segmentation": m, "id": n} for n, m in enumerate(masks)])
    data = CocoFolder.open(folder, "train")
    assert data.skipped == {}
    reference = COCO()
    reference.imgs = {"a": {"height": 16, "width": 20}}
    for found, given in zip(data.masks_MHW(0), masks, strict=True):
        polygons = [given] if given is SQUARE else given
        expected = reference.annToMask({"image_id": "a", "segmentation": polygons})
        np.testing.assert_array_equal(found, expected)
    assert data.masks_MHW(0)[0].sum() == 7 * 5


@pytest.mark.parametrize("ids", [[0, 1], [5, 5], ["x", "x"], [None, None]])
def test_any_annotation_ids(tmp_path, ids):
    data = CocoFolder.open(coco(tmp_path, [{"id": i} for i in ids]), "train")
    assert [a["id"] for a in data.truth] == [1, 2]


def test_sizes_that_the_file_lacks(tmp_path):
    folder = coco(tmp_path, [{}], images=[{"id": "a", "file_name": "a.jpg"}])
    assert CocoFolder.open(folder, "train").images[0].width == 20


def test_categories_are_matched_by_name(tmp_path):
    folder = coco(tmp_path, [{}])
    data = CocoFolder.open(folder, "train", ("dog", "cow", "cat"))
    assert data.images[0].instances[0].label == 0
    assert data.truth[0]["category_id"] == data.category_ids[0]


def test_annotations_on_pixels_as_stored(tmp_path):
    folder = coco(tmp_path, [{}])
    exif = Image.Exif()
    exif[0x0112] = 6
    image(folder / "train" / "a.jpg", (20, 16), exif=exif)
    assert CocoFolder.open(folder, "train").image_HW3(0).shape == (16, 20, 3)
    content = json.loads((folder / "annotations" / "instances_train.json").read_text())
    content["images"][0] |= {"width": 16, "height": 20}
    (folder / "annotations" / "instances_train.json").write_text(json.dumps(content))
    assert CocoFolder.open(folder, "train").image_HW3(0).shape == (20, 16, 3)


VOC = """<annotation><filename>wrong.jpg</filename>
<size><width>20</width><height>16</height><depth>3</depth></size>
<object><name>dog</name><difficult>0</difficult>
<bndbox><xmin>3</xmin><ymin>4</ymin><xmax>9</xmax><ymax>8</ymax></bndbox></object>
<object><name>cat</name><difficult>1</difficult>
<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>20</xmax><ymax>16</ymax></bndbox></object>
</annotation>"""


def test_vocs_xml(tmp_path):
    """The first pixel is 1: the second box is the image."""
    for split in ("train", "val"):
        image(tmp_path / "JPEGImages" / f"{split}.jpg", (20, 16))
        (tmp_path / "Annotations").mkdir(exist_ok=True)
        (tmp_path / "Annotations" / f"{split}.xml").write_text(VOC)
        (tmp_path / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
        (tmp_path / "ImageSets" / "Main" / f"{split}.txt").write_text(f"{split}\n")
    assert coco_classes(tmp_path) == ("cat", "dog")
    data = CocoFolder.open(tmp_path, "val")
    dog, cat = data.images[0].instances
    assert (dog.box, dog.label, dog.is_crowd) == ((2, 3, 9, 8), 1, False)
    assert (cat.box, cat.is_crowd) == ((0, 0, 20, 16), True)
    assert (data.num_objects, data.num_masks) == (2, 0)
    options(tmp_path, "detection", first_pixel=0)
    assert CocoFolder.open(tmp_path, "val").images[0].instances[0].box == (3, 4, 9, 8)


@pytest.mark.parametrize(
    "places", [("images/{}", "labels/{}"), ("{}/images", "{}/labels")], ids=["ultralytics", "other"]
)
def test_yolo(tmp_path, places):
    for split in ("train", "val"):
        image_root, label_root = (tmp_path / place.format(split) for place in places)
        image(image_root / "a.jpg", (20, 16))
        image(image_root / "empty.jpg", (20, 16))
        label_root.mkdir(parents=True)
        polygon = " ".join(f"{v / s}" for v, s in zip(SQUARE, [20, 16] * 4, strict=True))
        (label_root / "a.txt").write_text(f"1 0.5 0.5 0.25 0.5\n0 {polygon}\n")
    (tmp_path / "data.yaml").write_text("names:\n  0: cat\n  1: dog\n")
    data = CocoFolder.open(tmp_path, "val")
    box, polygon = data.images[0].instances
    assert data.classes == ("cat", "dog")
    assert (box.box, box.label, box.segmentation) == ((7.5, 4, 12.5, 12), 1, None)
    assert polygon.box == pytest.approx((2, 3, 9, 8))
    assert polygon.mask_HW(16, 20).sum() == 35
    assert data.images[1].instances == ()
    label = tmp_path / places[1].format("val") / "a.txt"
    label.write_text("1 0.5 0.5\n")
    with pytest.raises(SourceError, match=r"a\.txt, line 1 can't be read"):
        CocoFolder.open(tmp_path, "val")
