"""A refresh is done once for a dataset."""

import pytest

from clipmill.errors import ArtifactError
from clipmill.scenes import SceneConfig
from clipmill.scenes.formats import write_caption_folder
from clipmill.stages.data import is_processed, mark_processed, shard


def test_a_dataset_is_new_until_a_refresh_was_finished_with_it(tmp_path):
    store, pictures = str(tmp_path / "store"), tmp_path / "pictures"
    write_caption_folder(SceneConfig(size=32), range(3), pictures, "alt")
    dataset = shard("shards-tiny", [], str(pictures), store)
    assert not is_processed(dataset, store)
    mark_processed(dataset, store, "nightly")
    assert is_processed(dataset, store)
    assert not is_processed(dataset, str(tmp_path / "another"))

    assert shard("shards-tiny", [], str(pictures), store) == dataset
    write_caption_folder(SceneConfig(size=32), range(3, 5), pictures / "more", "alt")
    grown = shard("shards-tiny", [], str(pictures), store)
    assert not is_processed(grown, store)
    assert is_processed(dataset, store)


def test_no_dataset_is_an_error(tmp_path):
    for ask in (is_processed, lambda dataset, store: mark_processed(dataset, store, "r")):
        with pytest.raises(ArtifactError):
            ask(str(tmp_path / "datasets" / "0"), str(tmp_path))
