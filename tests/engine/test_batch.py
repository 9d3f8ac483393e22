"""Cutting and moving batches of any kind."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from clipmill.engine.objective import num_samples, split_batch, to_device
from clipmill.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Batch:
    uids: tuple[str, ...]
    values: Tensor
    absent: Tensor | None = None


BATCH = Batch(uids=("a", "b", "c", "d"), values=torch.arange(8).reshape(4, 2))


def test_pieces_keep_order_and_belong_together():
    first, second = split_batch(BATCH, 2)
    assert (first.uids, second.uids) == (("a", "b"), ("c", "d"))
    assert torch.equal(torch.cat([first.values, second.values]), BATCH.values)
    assert first.absent is None


def test_a_dict_is_cut_alike():
    pieces = split_batch({"x": BATCH.values}, 4)
    assert [p["x"].tolist() for p in pieces] == [[[0, 1]], [[2, 3]], [[4, 5]], [[6, 7]]]


def test_one_piece_is_the_batch():
    assert split_batch(BATCH, 1) == [BATCH]


def test_num_samples():
    assert num_samples(BATCH) == num_samples({"name": "x", "x": BATCH.values}) == 4


def test_uneven_pieces():
    with pytest.raises(ConfigError, match="a batch of 4 can't be cut into 3"):
        split_batch(BATCH, 3)


def test_moving_changes_tensors_alone():
    moved = to_device(BATCH, torch.device("meta"))
    assert moved.values.device.type == "meta"
    assert (moved.uids, moved.absent) == (BATCH.uids, None)
    assert BATCH.values.device.type == "cpu"
