"""Scenes as a source: four sets, which share no scene where they mustn't."""

from dataclasses import replace
from functools import lru_cache

import pytest

from clipmill.data.labeled.coco import CocoFolder
from clipmill.data.labeled.dense import DepthFolder, SegmentationFolder
from clipmill.data.labeled.folder import ImageFolder
from clipmill.lineage import lineage
from clipmill.scenes import SceneConfig, draw, formats, write_ade20k, write_nyu
from clipmill.scenes.source import (
    CAPTIONING,
    LABELS,
    PAIRS,
    ScenesSourceConfig,
    draw_source,
)
from clipmill.storage import exists, join, read_json, unpack_dir

CONFIG = ScenesSourceConfig(
    size=32, labeled_size=48, num_pairs=5, num_captioner_pairs=4, num_labeled=3, num_test=2
)


def silent(done, total, words):
    pass


def fail(done, total, words):
    pytest.fail("worked again")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    store = tmp_path_factory.mktemp("store")
    told = []
    uri = draw_source(CONFIG, str(store), report=lambda done, total, _: told.append((done, total)))
    assert told[-1] == (19, 19)  # 5 + 4 + 3 + 2, and the labeled ones twice
    return uri


def test_labels_of_every_task(tmp_path, monkeypatch):
    config = replace(CONFIG, num_captioner_pairs=0, tasks=("detection", "classification"))
    uri = draw_source(config, str(tmp_path), report=silent)
    assert not exists(join(uri, CAPTIONING))
    coco = unpack_dir(join(uri, LABELS["detection"]), tmp_path / "copies")
    shown = unpack_dir(join(uri, LABELS["classification"]), tmp_path / "copies")
    for split, ours, count in (("train2017", "train", 3), ("val2017", "val", 2)):
        assert len(CocoFolder.open(coco, split)) == count
        pictures = ImageFolder.open(shown, ours)
        assert len(pictures) == count
        for path, label in zip(pictures.images, pictures.labels, strict=True):
            seen = draw(SceneConfig(size=48, min_objects=1, max_objects=1), int(path.stem)).objects
            assert [o.name for o in seen] == [pictures.classes[label]]


def numbers(paths):
    return sorted(int(path.stem.rpartition("_")[2]) for path in paths)


def test_sets(source, tmp_path):
    folders = {
        name: unpack_dir(join(source, name), tmp_path)
        for name in (PAIRS, CAPTIONING, LABELS["segmentation"], LABELS["depth"])
    }
    assert numbers(folders[PAIRS].glob("*.jpg")) == list(range(5))
    assert numbers(folders[CAPTIONING].glob("*.jpg")) == list(range(5, 9))
    ade20k = {
        split: SegmentationFolder.open(folders[LABELS["segmentation"]], split)
        for split in ("training", "validation")
    }
    assert numbers(ade20k["training"].images) == [9, 10, 11]
    assert numbers(ade20k["validation"].images) == [12, 13]
    for theirs, split in (("training", "train"), ("validation", "test")):
        nyu = DepthFolder.open(folders[LABELS["depth"]], split)
        assert numbers(nyu.images) == numbers(ade20k[theirs].images)
        for index in range(len(nyu)):
            assert (nyu.image_HW3(index) == ade20k[theirs].image_HW3(index)).all()
            assert nyu.depth_HW(index).shape == (48, 48)


def test_tasks_drawn_together_are_drawn_as_alone(source, tmp_path):
    """Segmentation and depth share a drawing; each tar is what the task alone would have."""
    together = read_json(join(source, "source.json"))["files"]
    for task in ("segmentation", "depth"):
        config = replace(CONFIG, num_pairs=1, num_captioner_pairs=8, tasks=(task,))  # starts agree
        alone = draw_source(config, str(tmp_path), report=silent)
        files = read_json(join(alone, "source.json"))["files"]
        assert files[LABELS[task]] == together[LABELS[task]]
        assert len(files) == 3


def test_scenes_of_two_tasks_are_drawn_once(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        formats, "_draw", lru_cache(lambda *given: drawn.append(given) or draw(*given))
    )
    config = SceneConfig(size=32)
    for task, write in (("ade20k", write_ade20k), ("nyu", write_nyu)):
        write(config, range(3), tmp_path / task, "training" if task == "ade20k" else "train")
    assert drawn == [(config, index) for index in range(3)]


def test_captions_are_of_the_quality_asked_for(source, tmp_path):
    """The captioner's set speaks of what is seen; alt text, half of the time, of nothing true."""
    from clipmill.scenes import SceneConfig, draw

    pairs, good = (unpack_dir(join(source, name), tmp_path) for name in (PAIRS, CAPTIONING))
    scene = SceneConfig(size=32, seed=0)
    assert (pairs / "000003.txt").read_text() == draw(scene, 3).captions["alt"]
    assert (good / "000007.txt").read_text() == draw(scene, 7).captions["terse"]


def test_done_once(source):
    store = source.rpartition("/sources/")[0]
    assert draw_source(CONFIG, store, report=fail) == source


def test_other_scenes_lie_elsewhere(source):
    store = source.rpartition("/sources/")[0]
    config = CONFIG.override(["seed=1", "num_pairs=1", "num_captioner_pairs=1"])
    other = draw_source(config, store, report=silent)
    assert other != source
    digests = [read_json(join(uri, "source.json"))["digest"] for uri in (source, other)]
    assert digests[0] != digests[1]


def test_equal_configs_give_equal_bytes(source, tmp_path):
    again = draw_source(CONFIG, str(tmp_path), report=silent)
    digests = [read_json(join(uri, "source.json"))["files"] for uri in (source, again)]
    assert digests[0] == digests[1]


def test_lineage_ends_here(source):
    node = lineage(source)
    assert (node.kind, node.parents) == ("source", ())
    assert node.detail["captions"] == "alt; captioner's: terse"
