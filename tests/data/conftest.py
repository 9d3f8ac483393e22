"""Folders of pairs, and datasets made of them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from clipmill.data.dataset import Dataset
from clipmill.data.layers import commit_layer, write_layer_shard
from clipmill.data.shards.plan import ShardConfig
from clipmill.data.shards.write import write_dataset


@pytest.fixture
def write_pairs() -> Callable[[Path, int], Path]:
    """Write pairs 000, 001, ... in two subfolders; picture i has caption "picture i"."""

    def write(folder: Path, count: int) -> Path:
        random = np.random.default_rng(count)
        for i in range(count):
            stem = folder / f"part{i % 2}" / f"{i:03d}"
            stem.parent.mkdir(parents=True, exist_ok=True)
            pixels = random.integers(0, 256, (6 + i % 3, 8, 3), np.uint8)
            Image.fromarray(pixels).save(stem.with_suffix((".jpg", ".png", ".webp")[i % 3]))
            stem.with_suffix(".txt").write_text(f"picture {i}")
        return folder

    return write


@pytest.fixture
def make_dataset(
    tmp_path: Path, write_pairs: Callable[[Path, int], Path]
) -> Callable[..., Dataset]:
    """Make a dataset of so many pairs, with so many a shard."""

    def make(count: int = 23, samples_per_shard: int = 4, store: str = "") -> Dataset:
        source = write_pairs(tmp_path / "source", count)
        config = ShardConfig(samples_per_shard=samples_per_shard)
        return Dataset.open(write_dataset(config, str(source), store or str(tmp_path / "store")))

    return make


@pytest.fixture
def caption_table() -> Callable[[Dataset, int], pa.Table]:
    """Make the rows of a captions layer: three for each uid, "synthetic <uid> <k>"."""

    def make(dataset: Dataset, index: int) -> pa.Table:
        uids = dataset.uids(index)
        captions = [[f"synthetic {uid} {k}" for k in range(3)] for uid in uids]
        return pa.table({"uid": uids, "captions": captions})

    return make


@pytest.fixture
def add_captions(
    caption_table: Callable[[Dataset, int], pa.Table],
) -> Callable[[Dataset, str], Dataset]:
    """Compute and commit a captions layer."""

    def add(dataset: Dataset, layer: str) -> Dataset:
        for index in range(len(dataset.shards)):
            write_layer_shard(dataset, layer, index, caption_table(dataset, index))
        return commit_layer(dataset, layer, parents=(), detail={"maker": "test"})

    return add
