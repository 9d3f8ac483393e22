"""DataCompDR as it is published: replay against torchvision, with images and joined to them."""

import gzip
import io
import itertools
import json
import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from clipmill.data import import_reinforcements as module
from clipmill.data.dataset import Dataset, cache_folder
from clipmill.data.import_reinforcements import ReinforcementConfig, import_reinforcements
from clipmill.data.layers import read_layer
from clipmill.data.loading.view import View, ViewConfig
from clipmill.data.shards.plan import ShardConfig
from clipmill.data.shards.read import read_shard
from clipmill.data.shards.write import write_dataset
from clipmill.data.sources import open_source
from clipmill.data.transforms.torchvision_replay import OPERATIONS, TorchvisionReplay, fit_crop
from clipmill.errors import ArtifactError, ConfigError, SourceError
from clipmill.lineage import lineage
from helpers.reinforced import SIZE, WIDTH, augment, reinforcement, scene
from helpers.sources import read_all, write_tar

SIZES = [(300, 200), (160, 240), (512, 384), (91, 93)]
CAPTIONS, TEACHER, SELECT = "captions/datacompdr", "teacher/datacompdr", "select/datacompdr"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPMILL_CACHE", str(tmp_path / "cache"))


def silent(done, total, words):
    pass


def picture(number):
    return scene(number, SIZES[number % len(SIZES)])


def opened(data):
    return Image.open(io.BytesIO(data))


def reinforced(number, **options):
    return reinforcement(number, opened(picture(number)), **options)


def with_image(number, **options):
    key = f"{number:032x}"
    own = [(f"{key}.jpg", picture(number)), (f"{key}.txt", f"picture {number}".encode())]
    return [*own, *reinforced(number, **options)]


def joined(samples):
    return list(itertools.chain.from_iterable(samples))


def shard(source, tmp_path, **options):
    config = ShardConfig(samples_per_shard=3, **options)
    return Dataset.open(write_dataset(config, str(source), str(tmp_path / "store")))


def rows_of(dataset, layer):
    dataset = Dataset.open(dataset.uri)
    return [
        row
        for index in range(len(dataset.shards))
        for row in read_layer(dataset, layer, index, cache_folder()).to_pylist()
    ]


def numbers_of(dataset):
    """The number of each sample's picture, in the dataset's order."""
    numbers = []
    for index in range(len(dataset.shards)):
        with read_shard(dataset, index, cache_folder()) as reader:
            numbers += [int(reader.caption(row).split()[1]) for row in range(len(reader))]
    return numbers


def join(dataset, source, by="key"):
    config = ReinforcementConfig(by=by)
    return import_reinforcements(config, dataset.uri, str(source), report=silent)


def test_replay_is_torchvisions(tmp_path):
    """Every operation with either sign, and none, from the tar to the loader's pixels."""
    num_augmentations = 40
    samples = [with_image(n, num_augmentations=num_augmentations) for n in range(8)]
    dataset = shard(write_tar(tmp_path / "dr.tar", joined(samples)), tmp_path)
    rows, numbers = rows_of(dataset, TEACHER), numbers_of(dataset)
    replay, seen, num_wrong = TorchvisionReplay(SIZE), Counter(), 0
    for row, number in zip(rows, numbers, strict=True):
        data = picture(number)
        for k, values in enumerate(row["torchvision_augmentation"]):
            expected, _ = augment(opened(data), 1000 * number + k, 0.8)
            pixels = replay(data, np.array(values, np.float32)).permute(1, 2, 0).numpy()
            num_wrong += not np.array_equal(pixels, np.asarray(expected))
            operations = values[4:]
            seen[()] += not operations
            seen.update(zip(operations[::2], np.sign(operations[1::2]), strict=True))
    assert num_wrong == 0
    assert sum(len(row["torchvision_augmentation"]) for row in rows) == 8 * num_augmentations
    signed = {OPERATIONS.index(name) for name in OPERATIONS[1:10]}
    assert {index for index, _ in seen.keys() - {()}} == set(range(len(OPERATIONS)))
    assert all(seen[index, sign] for index in signed for sign in (1, -1))
    assert seen[()] > num_augmentations


def test_images_in_the_tar_make_layers(tmp_path):
    samples = [with_image(n) for n in range(7)]
    dataset = shard(write_tar(tmp_path / "dr.tar", joined(samples)), tmp_path)
    assert not dataset.quarantine
    numbers = numbers_of(dataset)
    assert [row["captions"] for row in rows_of(dataset, CAPTIONS)] == [
        [f"synthetic {number} {k}" for k in range(5)] for number in numbers
    ]
    for number, row in zip(numbers, rows_of(dataset, TEACHER), strict=True):
        (npz,) = (data for name, data in reinforced(number) if name.endswith(".npz"))
        stored = np.load(io.BytesIO(npz))
        for name, key in (("image", "image_emb"), ("text", "text_emb")):
            found = np.array(row[name], np.float16)
            np.testing.assert_array_equal(found, stored[key].astype(np.float16))
    parents = {p.role: p.digest for p in lineage(dataset.layer_uri(TEACHER)).parents}
    assert parents["captions"] == dataset.layers[CAPTIONS].digest


def test_first_samples_may_lack_a_member(tmp_path):
    first = [member for member in with_image(0) if not member[0].endswith((".npz", ".syn.json"))]
    broken = [(n, b"x" if n.endswith(".npz") else data) for n, data in with_image(1)]
    path = write_tar(tmp_path / "dr.tar", [*first, *broken, *with_image(2)])
    dataset = shard(path, tmp_path)
    assert dataset.quarantine == {"damaged_record": 1}
    assert numbers_of(dataset) == [0, 2]
    assert [row["image"] is None for row in rows_of(dataset, TEACHER)] == [True, False]
    with pytest.raises(SourceError, match="embeddings of the first samples can't be read"):
        open_source(str(write_tar(tmp_path / "broken.tar", broken)))


def test_bfloat16_of_pytorch(tmp_path):
    path = write_tar(tmp_path / "dr.tar", [*with_image(0, pth=True), *with_image(1, pth=True)])
    first, _ = read_all(open_source(str(path)))
    row = first.load().rows[TEACHER]
    (npz,) = (data for name, data in reinforced(0) if name.endswith(".npz"))
    expected = torch.tensor(np.load(io.BytesIO(npz))["image_emb"]).bfloat16()
    assert row["image"].dtype == np.float16
    np.testing.assert_allclose(row["image"], expected.float().numpy(), atol=2e-7)
    assert row["text"].shape == (6, WIDTH)


class Exploit:
    def __reduce__(self):
        return print, ("unpickled",)


@pytest.mark.parametrize(
    "data",
    [
        gzip.compress(pickle.dumps(Exploit(), protocol=2)),
        gzip.compress(pickle.dumps({"image_emb": Exploit()}, protocol=2)),
        gzip.compress(b"PK\x03\x04"),
        gzip.compress(bytes(70_000_000)),
        b"no gzip",
    ],
    ids=["call", "call within", "cut", "bomb", "other"],
)
def test_only_tensors_are_unpickled(tmp_path, data, capsys):
    broken = [(n, data if n.endswith(".gz") else d) for n, d in with_image(1, pth=True)]
    dataset = shard(write_tar(tmp_path / "dr.tar", [*with_image(0, pth=True), *broken]), tmp_path)
    assert dataset.quarantine == {"damaged_record": 1}
    assert "unpickled" not in capsys.readouterr().out


def test_an_exif_turn_is_ignored_as_the_teachers_did(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    opened(picture(0)).save(buffer, "JPEG", exif=exif)
    turned = buffer.getvalue()
    sample = [(n, turned if n.endswith(".jpg") else d) for n, d in with_image(0)]
    dataset = shard(write_tar(tmp_path / "dr.tar", sample), tmp_path)
    (row,) = rows_of(dataset, TEACHER)
    for k, values in enumerate(row["torchvision_augmentation"]):
        expected, _ = augment(opened(turned), k, 0.8)
        pixels = TorchvisionReplay(SIZE)(turned, np.array(values, np.float32))
        np.testing.assert_array_equal(pixels.permute(1, 2, 0).numpy(), np.asarray(expected))
    again = ShardConfig(resize_shorter_side=100, jpeg_quality=90)
    with pytest.raises(SourceError, match="before its EXIF turn"):
        write_dataset(again, str(tmp_path / "dr.tar"), str(tmp_path / "again"))


def test_a_resized_image_has_its_crops_resized(tmp_path):
    path = write_tar(tmp_path / "dr.tar", with_image(0, num_augmentations=20))
    (full,) = rows_of(shard(path, tmp_path), TEACHER)
    (half,) = rows_of(shard(path, tmp_path, resize_shorter_side=100, jpeg_quality=95), TEACHER)
    column = "torchvision_augmentation"
    for before, after in zip(full[column], half[column], strict=True):
        assert after[4:] == before[4:]
        np.testing.assert_allclose(after[:4], np.array(before[:4]) / 2, atol=1)
        top, left, height, width = after[:4]
        assert (left + width, top + height) <= (150, 100)


def test_crops_that_do_not_fit():
    numbers = [10.0, 20.0, 30.0, 40.0, 5.0, 9.0]
    assert fit_crop(numbers, (60, 40), (60, 40)) == numbers
    assert fit_crop(numbers, (60, 40), (30, 20)) == [5, 10, 15, 20, 5, 9]
    assert fit_crop([0, 0, 1, 1], (60, 40), (15, 10)) == [0, 0, 1, 1]
    assert fit_crop([39, 59, 1, 1], (60, 40), (6, 4)) == [3, 5, 1, 1]
    for drawn_on, stored in (((59, 40), (59, 40)), ((60, 39), (60, 39)), ((60, 40), (40, 40))):
        with pytest.raises(ValueError, match=r"isn't inside|another aspect"):
            fit_crop(numbers, drawn_on, stored)


@pytest.fixture
def images(tmp_path):
    """Images and captions of seven samples, with DataComp's record beside each."""
    members = []
    for number in range(7):
        record = {"uid": f"{number:032x}", "url": f"https://example.com/{number}.jpg"}
        members += [
            (f"{number:032x}.jpg", picture(number)),
            (f"{number:032x}.txt", f"picture {number}".encode()),
            (f"{number:032x}.json", json.dumps(record).encode()),
        ]
    return shard(write_tar(tmp_path / "images.tar", members), tmp_path)


@pytest.mark.parametrize("by", ["key", "uid", "url"])
def test_tars_without_images_are_joined(images, tmp_path, by):
    """In any order, over several tars; some are unknown, some repeated, one sample has none."""
    write_tar(tmp_path / "dr/0.tar", joined(reinforced(n) for n in (5, 9, 0, 3)))
    write_tar(tmp_path / "dr/1.tar", joined(reinforced(n) for n in (2, 5, 1, 8, 4)))
    imported = join(images, tmp_path / "dr", by)
    assert imported.layers == (CAPTIONS, TEACHER, SELECT)
    counts = imported.counts
    assert (counts.matched, counts.missing, counts.unknown, counts.duplicate) == (6, 1, 2, 1)
    assert imported.damaged == 0
    whole = write_tar(tmp_path / "whole.tar", joined(with_image(n) for n in range(7)))
    sharded = shard(whole, tmp_path / "other")
    assert numbers_of(sharded) == numbers_of(images)
    for layer in (CAPTIONS, TEACHER):
        found, expected = rows_of(images, layer), rows_of(sharded, layer)
        for row in (*found, *expected):
            row.pop("uid")
        assert found[:6] == expected[:6]
        assert found[6] == (
            {"captions": ["picture 6"], "fallback": True}
            if layer == CAPTIONS
            else {"image": None, "text": None, "torchvision_augmentation": None}
        )
    view = View(
        Dataset.open(images.uri),
        ViewConfig(captions="both", layer=CAPTIONS, selection_layers=(SELECT,)),
    )
    assert sum(view.shard_sizes()) == 6
    assert join(images, tmp_path / "dr", by) == imported


def test_processes_write_the_same_layers(images, tmp_path, monkeypatch):
    path = write_tar(tmp_path / "dr.tar", joined(reinforced(n) for n in range(6)))
    alone = join(images, path)
    monkeypatch.setattr(module, "_MIN_SAMPLES_FOR_PROCESSES", 1)
    monkeypatch.setattr(module, "available_cpus", lambda: 2)
    # A committed layer takes equal rows alone.
    assert join(images, path) == alone


def test_damaged_reinforcements_are_counted(images, tmp_path):
    broken = [(n, b"x" if n.endswith(".npz") else d) for n, d in reinforced(1)]
    # Of a larger picture, such as the original of one that was resized on the way.
    moved = reinforcement(3, opened(scene(0, (900, 700))))
    path = write_tar(tmp_path / "dr.tar", [*reinforced(0), *broken, *reinforced(2), *moved])
    imported = join(images, path)
    assert (imported.counts.matched, imported.counts.missing, imported.damaged) == (2, 5, 2)
    assert [row["image"] is None for row in rows_of(images, TEACHER)] == [False, True, False] + (
        [True] * 4
    )
    with pytest.raises(ArtifactError, match="no reinforcement in"):
        join(images, write_tar(tmp_path / "none.tar", reinforced(90)))
    with pytest.raises(SourceError, match="holds no reinforcement"):
        join(images, write_tar(tmp_path / "plain.tar", [("a.txt", b"x")]))


def test_images_that_img2dataset_resized(tmp_path):
    """Crops follow the size in its record."""
    original, key = picture(2), "00000012"
    buffer = io.BytesIO()
    opened(original).resize((256, 192)).save(buffer, "JPEG")
    record = {"key": key, "original_width": 512, "original_height": 384, "uid": f"{2:032x}"}
    members = [
        (f"{key}.jpg", buffer.getvalue()),
        (f"{key}.txt", b"picture 2"),
        (f"{key}.json", json.dumps(record).encode()),
    ]
    dataset = shard(write_tar(tmp_path / "images.tar", members), tmp_path)
    tar = write_tar(tmp_path / "dr.tar", reinforced(2))
    assert join(dataset, tar, "uid").counts.matched == 1
    (row,) = rows_of(dataset, TEACHER)
    for k, values in enumerate(row["torchvision_augmentation"]):
        _, (box, _) = augment(opened(original), 2000 + k, 0.8)
        np.testing.assert_allclose(values[:4], np.array(box) / 2, atol=1)


def test_samples_without_the_identifier(tmp_path):
    members = [("a.jpg", picture(0)), ("a.txt", b"picture 0")]
    dataset = shard(write_tar(tmp_path / "images.tar", members), tmp_path)
    with pytest.raises(ConfigError, match="has a url"):
        join(dataset, write_tar(tmp_path / "dr.tar", reinforced(0)), "url")


def test_a_source_without_images_says_how_to_join(tmp_path):
    path = write_tar(tmp_path / "dr.tar", reinforced(0))
    with pytest.raises(SourceError, match="data import-reinforcements"):
        shard(path, tmp_path)
