"""Teachers' embeddings in batches: of the very augmentation and captions that a batch holds."""

import itertools

import numpy as np
import pyarrow as pa
import pytest
import torch

from clipmill.data.layers import commit_layer, mmap_layer, read_layer, write_layer_shard
from clipmill.data.loading.config import DataLoaderConfig
from clipmill.data.loading.dataloader import PairDataLoader, TeacherLayer
from clipmill.data.loading.view import View, ViewConfig
from clipmill.errors import ConfigError

CAPTIONS, TEACHER = "captions/test-1", "teacher/test-1"
NUM_AUGMENTATIONS, WIDTH, TEXT_LENGTH = 4, 6, 48


def transform(data, generator):
    return torch.full((3, 1, 1), -1.0)


def replay(data, numbers):
    """The numbers in place of pixels."""
    return torch.from_numpy(numbers[:3]).reshape(3, 1, 1)


def tokenize(texts):
    return torch.tensor([list(text.ljust(TEXT_LENGTH).encode()) for text in texts])


def teacher_table(uids, *, augmented, lacking=()):
    """Embeddings that say of what they are: place of the uid, then of augmentation or text."""
    places = range(len(uids))
    image = [[[p, a] + [0] * (WIDTH - 2) for a in range(NUM_AUGMENTATIONS)] for p in places]
    text = [[[p, t, 1] + [0] * (WIDTH - 3) for t in range(4)] for p in places]
    for place in lacking:
        image[place] = []
    kind = pa.list_(pa.list_(pa.float16(), WIDTH))
    columns = {
        "uid": uids,
        "image": pa.array([[np.array(v, np.float16) for v in row] for row in image], kind),
        "text": pa.array([[np.array(v, np.float16) for v in row] for row in text], kind),
    }
    if augmented:
        numbers = [[[p, a, 7, 8] for a in range(NUM_AUGMENTATIONS)] for p in places]
        columns["augmentation"] = pa.array(numbers, pa.list_(pa.list_(pa.float32())))
    return pa.table(columns)


@pytest.fixture
def make_view(make_dataset, add_captions):
    def make(captions="both", *, augmented=True, lacking=()):
        dataset = add_captions(make_dataset(), CAPTIONS)
        for index in range(len(dataset.shards)):
            uids = dataset.uids(index)
            table = teacher_table(uids, augmented=augmented, lacking=lacking)
            write_layer_shard(dataset, TEACHER, index, table)
        dataset = commit_layer(dataset, TEACHER, parents=(), detail={})
        layer = "" if captions == "real" else CAPTIONS
        return View(dataset, ViewConfig(captions=captions, layer=layer))

    return make


def batches(view, cache, count, **options):
    batch_size = options.pop("batch_size", 8)
    names = ("rank", "world_size", "seed")
    own = {name: options.pop(name) for name in names if name in options}
    loader = PairDataLoader(
        view,
        DataLoaderConfig(**{"num_workers": 0, "shuffle_shards": 2, **options}),
        batch_size=batch_size,
        transform=transform,
        tokenize=tokenize,
        teacher=TeacherLayer(TEACHER, replay),
        cache=cache,
        **own,
    )
    return list(itertools.islice(loader, count)), loader


def places_of(view):
    return {
        uid: place
        for index in range(len(view.dataset.shards))
        for place, uid in enumerate(view.dataset.uids(index))
    }


def test_embeddings_are_of_what_the_batch_holds(make_view, tmp_path):
    view = make_view()
    places, drawn = places_of(view), set()
    for batch in batches(view, tmp_path, 6)[0]:
        assert batch.teacher_image_BE.dtype == torch.float16
        for row, uid in enumerate(batch.uids):
            place, augmentation, constant = batch.images_B3HW[row].flatten().tolist()
            assert (place, constant) == (places[uid], 7)
            assert batch.teacher_image_BE[row].tolist()[:2] == [place, augmentation]
            assert batch.teacher_real_BE[row].tolist()[:3] == [place, 0, 1]
            caption = bytes(batch.synthetic_BT[row].tolist()).decode().split()[-1]
            assert batch.teacher_synthetic_BE[row].tolist()[:3] == [place, 1 + int(caption), 1]
            drawn.add(augmentation)
    assert drawn == set(range(NUM_AUGMENTATIONS))


@pytest.mark.parametrize("captions", ["real", "synthetic"])
def test_only_the_captions_of_the_view_are_taught(make_view, tmp_path, captions):
    (batch,), _ = batches(make_view(captions), tmp_path, 1)
    assert (batch.teacher_real_BE is None) == (captions == "synthetic")
    assert (batch.teacher_synthetic_BE is None) == (captions == "real")


def test_without_stored_augmentations_the_transform_is_at_work(make_view, tmp_path):
    (batch,), _ = batches(make_view(augmented=False), tmp_path, 1)
    assert (batch.images_B3HW == -1).all()
    assert batch.teacher_image_BE.shape == (8, WIDTH)


@pytest.mark.parametrize(("world_size", "num_workers"), [(2, 0), (4, 1)])
def test_ranks_and_workers_change_nothing(make_view, tmp_path, world_size, num_workers):
    view = make_view()
    whole, _ = batches(view, tmp_path, 3)
    parts = [
        batches(view, tmp_path, 3, rank=r, world_size=world_size, num_workers=num_workers)[0]
        for r in range(world_size)
    ]
    for step, batch in enumerate(whole):
        for name in ("teacher_image_BE", "teacher_real_BE", "teacher_synthetic_BE"):
            joined = torch.cat([getattr(part[step], name) for part in parts])
            assert torch.equal(joined, getattr(batch, name))


def test_a_sample_without_embedding_is_replaced(make_view, tmp_path):
    view = make_view(lacking=(1,))
    found, loader = batches(view, tmp_path, 3)
    places = places_of(view)
    assert loader.skipped["missing_embedding"] > 0
    assert all(places[uid] != 1 for batch in found for uid in batch.uids)


def test_batches_without_teaching_have_no_embeddings(make_view, tmp_path):
    loader = PairDataLoader(
        make_view(),
        DataLoaderConfig(num_workers=0),
        batch_size=4,
        transform=transform,
        tokenize=tokenize,
        cache=tmp_path,
    )
    assert next(iter(loader)).teacher_image_BE is None


def test_a_layer_that_is_not_there(make_view, make_dataset, tmp_path):
    view = View(make_view().dataset, ViewConfig())
    with pytest.raises(ConfigError, match="teacher/test-1"):
        PairDataLoader(
            view,
            DataLoaderConfig(num_workers=0),
            batch_size=4,
            transform=transform,
            tokenize=tokenize,
            teacher=TeacherLayer("teacher/other", replay),
            cache=tmp_path,
        )


def test_mapped_rows_are_the_layers(make_view, tmp_path):
    dataset = make_view().dataset
    for _ in range(2):  # made, then found
        table = mmap_layer(dataset, TEACHER, 1, tmp_path)
        assert table.equals(read_layer(dataset, TEACHER, 1, tmp_path))
    assert len(list(tmp_path.glob("*/rows.arrow"))) == 1
