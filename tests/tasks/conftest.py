"""A few real scenes in the layouts of ADE20K and NYU."""

import pytest

from clipmill.scenes import SceneConfig, write_ade20k, write_nyu

SCENES = SceneConfig(size=32)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Copies of data go to the test's own folder, not to the user's."""
    monkeypatch.setenv("CLIPMILL_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def ade20k_folder(tmp_path_factory):
    """Four scenes to train on, two to judge by."""
    folder = tmp_path_factory.mktemp("ade20k")
    for split, indices in (("training", range(4)), ("validation", range(4, 6))):
        write_ade20k(SCENES, indices, folder, split)
    return folder


@pytest.fixture(scope="session")
def nyu_folder(tmp_path_factory):
    """The same scenes with depth."""
    folder = tmp_path_factory.mktemp("nyu")
    for split, indices in (("train", range(4)), ("test", range(4, 6))):
        write_nyu(SCENES, indices, folder, split)
    return folder
