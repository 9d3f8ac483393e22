"""A small dataset of scenes with captions, and a layer of synthetic ones."""

import pyarrow as pa
import pytest

from clipmill.data.dataset import Dataset
from clipmill.data.layers import commit_layer, write_layer_shard
from clipmill.data.shards.plan import ShardConfig
from clipmill.data.shards.write import write_dataset
from clipmill.scenes import SceneConfig, write_caption_folder

LAYER = "captions/test-1"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Copies of data go to the test's own folder, not to the user's."""
    monkeypatch.setenv("CLIPMILL_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def dataset_uri(tmp_path_factory):
    """Twelve scenes in three shards."""
    folder = tmp_path_factory.mktemp("pairs")
    write_caption_folder(SceneConfig(size=32), range(12), folder / "source", "terse")
    config = ShardConfig(samples_per_shard=4)
    dataset = Dataset.open(write_dataset(config, str(folder / "source"), str(folder / "store")))
    for index in range(len(dataset.shards)):
        uids = dataset.uids(index)
        table = pa.table({"uid": uids, "captions": [[f"picture {uid}"] for uid in uids]})
        write_layer_shard(dataset, LAYER, index, table)
    return commit_layer(dataset, LAYER, parents=(), detail={}).uri
