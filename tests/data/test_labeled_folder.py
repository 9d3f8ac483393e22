"""Folders of data, here and in a store."""

import os

import pytest

from clipmill.data.labeled.folder import fetch_folder
from clipmill.errors import NotFoundError, SourceError
from clipmill.storage import pack_dir


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "data" / "sub").mkdir(parents=True)
    (tmp_path / "data" / "a.txt").write_text("alpha")
    (tmp_path / "data" / "sub" / "b.txt").write_text("beta")
    return tmp_path / "data"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPMILL_CACHE", str(tmp_path / "cache"))


def test_a_folder_is_used_where_it_lies(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    path, parent = fetch_folder("data", "data")
    assert path == folder
    assert (parent.role, parent.uri) == ("data", str(folder))


@pytest.mark.parametrize("place", ["local", "s3"])
def test_a_packed_folder_comes_back(folder, tmp_path, place, request):
    if place == "s3":
        request.getfixturevalue("s3")
    store = str(tmp_path / "store") if place == "local" else f"s3://tests/{tmp_path.name}"
    uri = f"{store}/data.tar"
    digest = pack_dir(folder, uri)
    path, parent = fetch_folder(uri, "source")
    assert (path / "sub" / "b.txt").read_text() == "beta"
    assert (parent.role, parent.uri, parent.digest) == ("source", uri, digest)


@pytest.mark.parametrize("change", ["rename", "grow", "add", "edit", "replace"])
def test_digest_changes_with_names_and_contents(folder, change):
    _, before = fetch_folder(str(folder), "data")
    if change == "rename":
        (folder / "a.txt").rename(folder / "c.txt")
    elif change == "grow":
        (folder / "a.txt").write_text("alphabet")
    elif change == "edit":
        (folder / "a.txt").write_text("ALPHA")
    elif change == "replace":  # with the times of the old file
        stat = (folder / "a.txt").stat()
        (folder / "new").write_text("ALPHA")
        os.utime(folder / "new", ns=(stat.st_atime_ns, stat.st_mtime_ns))
        (folder / "new").rename(folder / "a.txt")
    else:
        (folder / "c.txt").write_text("")
    _, after = fetch_folder(str(folder), "data")
    assert after.digest != before.digest


def test_hidden_files_do_not_count(folder):
    _, before = fetch_folder(str(folder), "data")
    (folder / ".DS_Store").write_text("x")
    (folder / "sub" / "Thumbs.db").write_text("x")
    (folder / "sub" / ".ipynb_checkpoints").mkdir()
    (folder / "sub" / ".ipynb_checkpoints" / "b.txt").write_text("x")
    assert fetch_folder(str(folder), "data")[1].digest == before.digest


@pytest.mark.parametrize("store", ["out", "a/b", "."])
def test_a_store_within_the_folder_does_not_count(folder, store):
    digest = fetch_folder(str(folder), "data")[1].digest
    for name in (
        "models/depth-0123456789ab/state/step.pt",  # a run that hasn't ended
        "evaluations/0123456789ab/evaluation.json",
        "serving/depth/promotion.json",
        "runs/a/finetune.json",
        "baselines/0123456789ab.json",
    ):
        path = folder / store / name
        path.parent.mkdir(parents=True)
        path.write_text("x")
        # `serving` and `runs` belong to a store where there are artifacts.
        assert fetch_folder(str(folder), "data")[1].digest == digest
    (folder / "models" / "t-shirt").mkdir(parents=True)  # a class of images
    (folder / "models" / "t-shirt" / "1.txt").write_text("x")
    assert fetch_folder(str(folder), "data")[1].digest != digest


def test_a_file_is_read_once(folder, monkeypatch):
    _, before = fetch_folder(str(folder), "data")
    monkeypatch.setattr("clipmill.data.labeled.folder.sha256_file", lambda path: 1 / 0)
    assert fetch_folder(str(folder), "data")[1].digest == before.digest
    (folder / "a.txt").write_text("alpha")
    with pytest.raises(ZeroDivisionError):
        fetch_folder(str(folder), "data")


def test_digest_is_the_same_elsewhere(folder, tmp_path):
    _, before = fetch_folder(str(folder), "data")
    folder.rename(tmp_path / "moved")
    _, after = fetch_folder(str(tmp_path / "moved"), "data")
    assert after.digest == before.digest


def test_no_folder(tmp_path):
    with pytest.raises(SourceError, match="is not a folder"):
        fetch_folder(str(tmp_path / "nothing"), "data")


def test_no_tar(tmp_path):
    with pytest.raises(NotFoundError):
        fetch_folder(str(tmp_path / "nothing.tar"), "data")
