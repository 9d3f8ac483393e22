"""Batches of labeled samples: batch k is the same whoever reads it, and wherever they begin."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch

from clipmill.data.labeled.dataloader import build_labeled_dataloader, cached_in_memory
from clipmill.data.labeled.folder import ImageFolder
from clipmill.errors import ConfigError, SourceError

NUM_SAMPLES = 7


def load(index, generator):
    return {"index": np.array(index), "noise": generator.random(2)}


def take(count, **options):
    options = {"batch_size": 4, "seed": 0, **options}
    return list(itertools.islice(build_labeled_dataloader(load, NUM_SAMPLES, **options), count))


def assert_same(found, expected):
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in ("index", "noise"))


@pytest.mark.parametrize(("cursor", "num_workers"), [(0, 2), (1, 0), (3, 1), (4, 2)])
def test_begun_anywhere_by_any_number_of_workers(cursor, num_workers):
    assert_same(take(5, start_step=cursor, num_workers=num_workers), take(9)[cursor : cursor + 5])


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_the_batch(world_size):
    whole = take(6)
    parts = [take(6, rank=rank, world_size=world_size) for rank in range(world_size)]
    for step, batch in enumerate(whole):
        for rank in range(world_size):
            expected = {name: values[rank::world_size] for name, values in batch.items()}
            assert_same([parts[rank][step]], [expected])


def test_each_epoch_shows_every_sample_once_in_another_order():
    indices = [i for batch in take(28) for i in batch["index"].tolist()]
    epochs = [tuple(indices[n : n + NUM_SAMPLES]) for n in range(0, len(indices), NUM_SAMPLES)]
    assert all(sorted(epoch) == list(range(NUM_SAMPLES)) for epoch in epochs)
    assert len(set(epochs)) > 10


def test_a_batch_larger_than_the_data():
    (batch,) = take(1, batch_size=21)
    assert set(Counter(batch["index"].tolist()).values()) == {3}


def test_each_pass_draws_anew():
    noise = [tuple(n) for batch in take(20) for n in batch["noise"].tolist()]
    assert len(set(noise)) == len(noise)


def test_seeds_differ():
    first, second = (torch.cat([b["index"] for b in take(7, seed=seed)]) for seed in (0, 1))
    assert not torch.equal(first, second)


def test_late_steps_cost_no_more():
    (batch,) = take(1, start_step=10**12)
    assert len(batch["index"]) == 4


def test_ranks_must_share_evenly():
    with pytest.raises(ConfigError, match="multiple of the number of ranks"):
        take(1, world_size=3)


def test_training_random_stream_is_left_alone():
    """Or dropout would differ after a run is resumed."""
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    take(2)
    take(2, num_workers=1)
    assert torch.equal(torch.rand(3), expected)


def test_arrays_of_several_lengths_are_filled_up():
    def ragged(index, generator):
        return {"index": np.array(index), "values": np.full((index, 2), index, np.int64)}

    options = {"batch_size": 4, "seed": 0, "fills": {"values": -1}}
    for batch in itertools.islice(build_labeled_dataloader(ragged, NUM_SAMPLES, **options), 3):
        assert batch["values"].shape == (4, batch["index"].max(), 2)
        for index, values in zip(batch["index"].tolist(), batch["values"], strict=True):
            assert (values[:index] == index).all()
            assert (values[index:] == -1).all()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_broken_picture_is_named(num_workers, tmp_path):
    path = tmp_path / "train" / "cat" / "broken.jpg"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no picture")
    folder = ImageFolder.open(tmp_path, "train")

    def load(index, generator):
        return {"image": np.asarray(folder.image(index))}

    batches = build_labeled_dataloader(load, 1, batch_size=1, seed=0, num_workers=num_workers)
    with pytest.raises(SourceError, match=r"cat/broken\.jpg can't be decoded: neither JPEG"):
        next(batches)


def test_samples_are_kept_while_there_is_memory():
    calls = []

    def decode(index):
        calls.append(index)
        return {"image": np.full(10, index, np.uint8), "label": np.full(2, index, np.uint8)}

    load = cached_in_memory(decode, max_bytes=24)  # two of twelve bytes
    first = [load(index) for index in range(4)]
    again = [load(index) for index in range(4)]
    assert calls == [0, 1, 2, 3, 2, 3]
    assert again[0] is first[0]
    for index, sample in enumerate(again):
        assert {name: a.tolist() for name, a in sample.items()} == {
            "image": [index] * 10,
            "label": [index] * 2,
        }


def test_a_sample_that_does_not_fit_takes_no_place_from_one_that_does():
    calls = []

    def decode(index):
        calls.append(index)
        return {"image": np.zeros(100 if index == 0 else 10, np.uint8)}

    load = cached_in_memory(decode, max_bytes=20)
    for index in (0, 1, 0, 1):
        load(index)
    assert calls == [0, 1, 0]
