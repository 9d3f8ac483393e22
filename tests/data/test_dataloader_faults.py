"""Rejected samples met while reading: skipped, counted, replaced, and the same for everyone."""

import itertools
import logging
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from prometheus_client import REGISTRY

from clipmill.data.cache import evict_lru, pin_entry
from clipmill.data.dataset import Dataset
from clipmill.data.loading.config import DataLoaderConfig
from clipmill.data.loading.dataloader import PairDataLoader
from clipmill.data.loading.view import View, ViewConfig
from clipmill.data.shards.plan import ShardConfig
from clipmill.data.shards.read import read_shard
from clipmill.data.shards.write import write_dataset
from clipmill.data.transforms.augmentation import CropTransform, RandomResizedCropConfig
from clipmill.errors import ArtifactError

NUM_SAMPLES, SHARD_SIZE = 48, 8


def tokenize(texts):
    return torch.tensor([list(text.ljust(12).encode()) for text in texts])


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Pictures large enough that damage in their middle can't go unseen."""
    folder = tmp_path_factory.mktemp("source")
    random = np.random.default_rng(0)
    for i in range(NUM_SAMPLES):
        pixels = random.integers(0, 256, (24, 24, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:03d}.jpg")
        (folder / f"{i:03d}.txt").write_text(f"picture {i}")
    return folder


@pytest.fixture
def dataset(source, tmp_path):
    config = ShardConfig(samples_per_shard=SHARD_SIZE)
    return Dataset.open(write_dataset(config, str(source), str(tmp_path / "store")))


def loader(dataset, cache, **options):
    batch_size = options.pop("batch_size", 8)
    names = ("rank", "world_size", "start_step", "seed", "cache_bytes")
    own = {name: options.pop(name) for name in names if name in options}
    return PairDataLoader(
        View(dataset, ViewConfig()),
        DataLoaderConfig(**{"num_workers": 0, "shuffle_shards": 2, **options}),
        batch_size=batch_size,
        transform=CropTransform(8, RandomResizedCropConfig()),
        tokenize=tokenize,
        cache=cache,
        **own,
    )


def take(pairs, count):
    return list(itertools.islice(pairs, count))


def content(batches):
    return [(b.uids, b.images_B3HW.tolist(), b.real_BT.tolist()) for b in batches]


def damage(dataset, cache, changes):
    """Change bytes of samples behind the cache's back: ``{uid: part}``, image or caption.

    As on a disk that rots, the file looks as it did when it was verified.
    """
    for index in range(len(dataset.shards)):
        with read_shard(dataset, index, cache) as reader:
            rows = {uid: row for row, uid in enumerate(reader.uids) if uid in changes}
            index_of = reader._index
            path = Path(reader._file.name)
        before = path.stat()
        for uid, row in rows.items():
            offset, length = index_of[changes[uid]][row]
            with path.open("r+b") as file:
                if changes[uid] == "image":  # from the frame header on, nothing makes sense
                    file.seek(offset)
                    data = file.read(length)
                    start = data.index(b"\xff\xc0")
                    file.seek(offset + start)
                    file.write(b"\0" * (length - start))
                else:
                    file.seek(offset)
                    file.write(b"\xff")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.fixture
def rotten(dataset, tmp_path):
    """Five samples of the dataset are bad; their uids."""
    uids = [uid for index in range(len(dataset.shards)) for uid in dataset.uids(index)]
    bad = {**dict.fromkeys(uids[3:40:9], "image"), uids[20]: "caption"}
    damage(dataset, tmp_path / "cache", bad)
    return bad


def test_a_bad_sample_is_replaced_and_the_rest_stay(dataset, tmp_path, source, rotten):
    healthy = Dataset.open(
        write_dataset(
            ShardConfig(samples_per_shard=SHARD_SIZE), str(source), str(tmp_path / "healthy")
        )
    )
    expected = take(loader(healthy, tmp_path / "healthy-cache"), 12)
    found = take(loader(dataset, tmp_path / "cache"), 12)
    everywhere = [uid for batch in found for uid in batch.uids]
    assert not set(everywhere) & set(rotten)
    replaced = 0
    for ours, theirs in zip(found, expected, strict=True):
        for row, uid in enumerate(theirs.uids):
            if uid in rotten:
                replaced += 1
            else:
                assert ours.uids[row] == uid
                assert torch.equal(ours.images_B3HW[row], theirs.images_B3HW[row])
    assert replaced == 2 * len(rotten)  # 12 batches are two epochs


@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 2), (2, 0), (4, 1), (8, 0)])
def test_replacements_are_the_same_for_all(dataset, tmp_path, rotten, world_size, num_workers):
    expected = content(take(loader(dataset, tmp_path / "cache"), 6))
    options = {"world_size": world_size, "num_workers": num_workers}
    ranks = [
        take(loader(dataset, tmp_path / "cache", rank=rank, **options), 6)
        for rank in range(world_size)
    ]
    for step, whole in enumerate(expected):
        parts = content([ranks[rank][step] for rank in range(world_size)])
        joined = [[value for part in parts for value in part[field]] for field in range(3)]
        assert joined == [list(field) for field in whole]
    resumed = loader(dataset, tmp_path / "cache", start_step=3, num_workers=num_workers)
    assert content(take(resumed, 3)) == expected[3:]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_bad_samples_are_counted_and_told(dataset, tmp_path, rotten, num_workers, caplog):
    name = "clipmill_data_samples_replaced_total"
    reasons = ("unreadable_image", "caption_not_utf8")
    before = [REGISTRY.get_sample_value(name, {"reason": reason}) or 0 for reason in reasons]
    pairs = loader(dataset, tmp_path / "cache", num_workers=num_workers)
    with caplog.at_level(logging.WARNING):
        take(pairs, 6)  # an epoch: each bad sample's turn comes once, replacements may add
    assert pairs.skipped.keys() == set(reasons)
    assert pairs.skipped["unreadable_image"] >= 5
    assert pairs.skipped["caption_not_utf8"] >= 1
    after = [REGISTRY.get_sample_value(name, {"reason": reason}) for reason in reasons]
    assert [b - a for a, b in zip(before, after, strict=True)] == [
        pairs.skipped[reason] for reason in reasons
    ]
    assert "replaced by another sample" in caplog.text
    assert "caption_not_utf8" in caplog.text


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_damaged_shard_is_replaced_as_a_whole(dataset, tmp_path, num_workers, caplog):
    (path,) = Path(dataset.uri).glob("shards/00002.tar")
    path.write_bytes(path.read_bytes()[:-1000])
    lost = set(dataset.uids(2))
    pairs = loader(dataset, tmp_path / "cache", num_workers=num_workers, shuffle_shards=1)
    found = [uid for batch in take(pairs, 6) for uid in batch.uids]
    assert len(found) == NUM_SAMPLES
    assert not set(found) & lost
    assert pairs.skipped["damaged_shard"] >= SHARD_SIZE
    assert caplog.text.count(": damaged_shard: ") == 1


def test_a_shard_cut_while_it_is_open(dataset, tmp_path):
    pairs = iter(loader(dataset, tmp_path / "cache"))
    next(pairs)
    for path in Path(dataset.uri).glob("shards/*.tar"):
        with path.open("r+b") as file:
            file.truncate(100)
    with pytest.raises(ArtifactError, match="damaged_shard"):
        take(pairs, 20)


def test_a_dataset_of_bad_samples_alone_ends_with_an_error(dataset, tmp_path):
    uids = [uid for index in range(len(dataset.shards)) for uid in dataset.uids(index)]
    damage(dataset, tmp_path / "cache", dict.fromkeys(uids, "image"))
    with pytest.raises(ArtifactError, match="unreadable_image"):
        take(loader(dataset, tmp_path / "cache"), 1)


def read_remote(uri, cache, limit, seed, results):
    """Take an epoch through a cache that others use too."""
    pairs = loader(
        Dataset.open(uri), Path(cache), shuffle_shards=1, cache_bytes=limit, num_workers=0
    )
    results.put((seed, content(take(pairs, 2 * NUM_SAMPLES // 8))))


def test_processes_share_a_cache_too_small_for_all(source, tmp_path, s3):
    config = ShardConfig(samples_per_shard=SHARD_SIZE)
    uri = write_dataset(config, str(source), f"s3://tests/{tmp_path.name}")
    local = Dataset.open(write_dataset(config, str(source), str(tmp_path / "store")))
    limit = int(2.5 * max(shard.num_bytes for shard in Dataset.open(uri).shards))
    expected = content(take(loader(local, tmp_path / "other", shuffle_shards=1), 12))
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    readers = [
        context.Process(target=read_remote, args=(uri, str(tmp_path / "cache"), limit, n, results))
        for n in range(4)
    ]
    for reader in readers:
        reader.start()
    found = dict(results.get(timeout=120) for _ in readers)
    for reader in readers:
        reader.join(60)
    assert found == dict.fromkeys(range(4), expected)


def hold(entry, ready, release):
    with pin_entry(Path(entry)):
        ready.set()
        release.wait(60)


def test_an_owned_entry_outlives_a_trim(tmp_path):
    context = multiprocessing.get_context("fork")
    entry = tmp_path / ("0" * 64)
    ready, release = context.Event(), context.Event()
    holder = context.Process(target=hold, args=(str(entry), ready, release))
    holder.start()
    assert ready.wait(60)
    (entry / "part").write_bytes(b"x" * 100)
    evict_lru(tmp_path, 10)
    assert entry.is_dir()
    release.set()
    holder.join(60)
    evict_lru(tmp_path, 10)
    assert not entry.exists()
