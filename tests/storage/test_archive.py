"""Folders packed at a URI, and verified local copies."""

import hashlib
import io
import os
import resource
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from clipmill.config import sha256_bytes
from clipmill.errors import ArtifactError, NotFoundError, StorageError
from clipmill.storage import (
    exists,
    fetch,
    join,
    pack_dir,
    read_bytes,
    split_uri,
    unpack_dir,
    write_bytes,
)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "images" / "empty").mkdir(parents=True)
    (root / "images" / "é 1.jpg").write_bytes(os.urandom(3000))
    (root / "images.txt").write_text("a file that sorts beside its folder")
    (root / ("long" * 40)).write_bytes(b"")
    (root / "run").write_text("#!/bin/sh")
    (root / "run").chmod(0o700)
    return root


def _content(root: Path) -> dict[str, bytes | None]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes() if path.is_file() else None
        for path in root.rglob("*")
    }


def test_a_tree_comes_back(tree: Path, root_uri: str, tmp_path: Path) -> None:
    uri = join(root_uri, "tree.tar")
    sha256 = pack_dir(tree, uri)
    assert hashlib.sha256(read_bytes(uri)).hexdigest() == sha256
    folder = unpack_dir(uri, tmp_path / "cache")
    assert _content(folder) == _content(tree)
    assert os.access(folder / "run", os.X_OK)
    assert not os.access(folder / "images.txt", os.X_OK)
    assert folder.parent == tmp_path / "cache"
    assert sha256 in folder.name
    assert list((tmp_path / "cache").iterdir()) == [folder]


def test_equal_trees_give_equal_bytes(tree: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in sorted(tree.rglob("*"), reverse=True):
        target = copy / path.relative_to(tree)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            target.mkdir(exist_ok=True)
        else:
            target.write_bytes(path.read_bytes())
            target.chmod(0o711 if path.name == "run" else 0o600)
            os.utime(target, (1, 1))
    assert pack_dir(copy, str(tmp_path / "1.tar")) == pack_dir(tree, str(tmp_path / "2.tar"))
    (copy / "images.txt").write_text("changed")
    assert pack_dir(copy, str(tmp_path / "1.tar")) != pack_dir(tree, str(tmp_path / "2.tar"))


def test_a_link_to_a_file_is_packed_as_the_file(tree: Path, tmp_path: Path) -> None:
    before = pack_dir(tree, str(tmp_path / "1.tar"))
    (tree / "images.txt").rename(tmp_path / "moved")
    (tree / "images.txt").symlink_to(tmp_path / "moved")
    assert pack_dir(tree, str(tmp_path / "2.tar")) == before


@pytest.mark.parametrize("target", ["images", "nowhere", "/"])
def test_links_to_folders_and_to_nothing_are_refused(
    tree: Path, tmp_path: Path, target: str
) -> None:
    (tree / "link").symlink_to(target)
    with pytest.raises(ArtifactError, match=r"can't pack .*/link"):
        pack_dir(tree, str(tmp_path / "x.tar"))
    assert not (tmp_path / "x.tar").exists()


def test_a_disk_without_room_to_pack_is_an_error(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A sparse file of a tebibyte fits in a folder, but its tar not on a disk; nothing is
    # written of it, since the limit on a file's size stands for the disk's end.
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with (tree / "huge").open("wb") as file:
        file.truncate(1 << 40)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    try:
        with pytest.raises(StorageError, match="can't pack"):
            pack_dir(tree, str(tmp_path / "x.tar"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not (tmp_path / "x.tar").exists()
    assert not list(tmp_path.glob("clipmill-pack-*"))


def test_a_second_put_writes_nothing(tree: Path, tmp_path: Path) -> None:
    uri = tmp_path / "x.tar"
    sha256 = pack_dir(tree, str(uri))
    before = uri.stat().st_ino
    assert pack_dir(tree, str(uri)) == sha256
    assert uri.stat().st_ino == before


def test_a_put_that_was_cut_short_is_completed(tree: Path, root_uri: str, tmp_path: Path) -> None:
    uri = join(root_uri, "x.tar")
    sha256 = pack_dir(tree, uri)
    store, key = split_uri(uri)
    for lost in (key, f"{key}.sha256"):
        store.delete(lost)
        assert pack_dir(tree, uri) == sha256
        assert _content(unpack_dir(uri, tmp_path / "cache")) == _content(tree)


def test_a_changed_tree_replaces_and_is_unpacked_beside(
    tree: Path, root_uri: str, tmp_path: Path
) -> None:
    uri = join(root_uri, "x.tar")
    pack_dir(tree, uri)
    old = unpack_dir(uri, tmp_path / "cache")
    (tree / "run").write_text("changed")
    pack_dir(tree, uri)
    new = unpack_dir(uri, tmp_path / "cache")
    assert (old / "run").read_text() == "#!/bin/sh"
    assert (new / "run").read_text() == "changed"


def test_a_second_get_does_not_read_the_tar(tree: Path, root_uri: str, tmp_path: Path) -> None:
    uri = join(root_uri, "x.tar")
    pack_dir(tree, uri)
    first = unpack_dir(uri, tmp_path / "cache")
    store, key = split_uri(uri)
    store.delete(key)
    assert unpack_dir(uri, tmp_path / "cache") == first


def test_many_may_get_a_tree_at_once(tree: Path, root_uri: str, tmp_path: Path) -> None:
    uri = join(root_uri, "x.tar")
    pack_dir(tree, uri)
    barrier, folders = threading.Barrier(4), []

    def work() -> None:
        barrier.wait()
        folders.append(unpack_dir(uri, tmp_path / "cache"))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(folders) == 4
    assert len(set(folders)) == 1
    assert list((tmp_path / "cache").iterdir()) == [folders[0]]
    assert _content(folders[0]) == _content(tree)


def _link(name: str, target: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    "member",
    [
        tarfile.TarInfo("../evil"),
        tarfile.TarInfo("a/../../evil"),
        _link("evil", "../../secret", tarfile.SYMTYPE),
        _link("evil", "/etc/passwd", tarfile.SYMTYPE),
        _link("evil", "../../secret", tarfile.LNKTYPE),
        _link("evil", "", tarfile.FIFOTYPE),
    ],
    ids=lambda member: f"{member.name} {member.type!r} {member.linkname}",
)
def test_a_tar_that_would_escape_is_refused(tmp_path: Path, member: tarfile.TarInfo) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("good"))
        archive.addfile(member)
    uri = str(tmp_path / "store" / "x.tar")
    write_bytes(uri, buffer.getvalue())
    write_bytes(f"{uri}.sha256", sha256_bytes(buffer.getvalue()).encode())
    with pytest.raises(ArtifactError, match="can't be unpacked"):
        unpack_dir(uri, tmp_path / "deep" / "cache")
    assert list((tmp_path / "deep" / "cache").iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "store"]


def test_an_absolute_member_lands_inside(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("/clipmill-absolute"))
    uri = str(tmp_path / "x.tar")
    write_bytes(uri, buffer.getvalue())
    write_bytes(f"{uri}.sha256", sha256_bytes(buffer.getvalue()).encode())
    folder = unpack_dir(uri, tmp_path / "cache")
    assert [path.name for path in folder.iterdir()] == ["clipmill-absolute"]
    assert not Path("/clipmill-absolute").exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data[:600] + bytes([data[600] ^ 1]) + data[601:],
        lambda data: b"",
    ],
    ids=["cut", "one bit", "empty"],
)
def test_a_damaged_tar_is_refused(
    tree: Path, root_uri: str, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    uri = join(root_uri, "x.tar")
    pack_dir(tree, uri)
    write_bytes(uri, damage(read_bytes(uri)))
    with pytest.raises(ArtifactError, match="has the SHA-256"):
        unpack_dir(uri, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("recorded", ["../../evil", "", "A" * 64, "é"])
def test_a_recorded_digest_that_is_none_is_refused(
    tree: Path, tmp_path: Path, recorded: str
) -> None:
    uri = str(tmp_path / "x.tar")
    pack_dir(tree, uri)
    write_bytes(f"{uri}.sha256", recorded.encode())
    with pytest.raises(ArtifactError, match="recorded digest"):
        unpack_dir(uri, tmp_path / "cache")
    with pytest.raises(ArtifactError):
        fetch(uri, recorded, tmp_path / "cache")


def test_what_is_not_there_is_not_found(root_uri: str, tmp_path: Path) -> None:
    uri = join(root_uri, "x.tar")
    with pytest.raises(NotFoundError):
        unpack_dir(uri, tmp_path / "cache")
    with pytest.raises(NotFoundError):
        fetch(uri, "0" * 64, tmp_path / "cache")
    with pytest.raises(NotFoundError, match="no folder"):
        pack_dir(tmp_path / "absent", uri)
    assert not exists(uri)


def test_the_name_must_say_tar(tree: Path, root_uri: str) -> None:
    with pytest.raises(ArtifactError, match=r"ends in \.tar"):
        pack_dir(tree, join(root_uri, "x.zip"))


def test_a_cache_that_cannot_be_written_is_an_error(tree: Path, tmp_path: Path) -> None:
    uri = str(tmp_path / "x.tar")
    pack_dir(tree, uri)
    with pytest.raises(StorageError, match="can't unpack"):
        unpack_dir(uri, tmp_path / "x.tar" / "cache")


def test_fetch_returns_a_local_file_where_it_lies(tmp_path: Path) -> None:
    uri = str(tmp_path / "shard.tar")
    write_bytes(uri, b"bytes")
    assert fetch(uri, sha256_bytes(b"bytes"), tmp_path / "cache") == tmp_path / "shard.tar"
    assert not (tmp_path / "cache").exists()


def test_fetch_copies_once_from_elsewhere(s3: dict[str, str], tmp_path: Path) -> None:
    uri, sha256 = "s3://tests/fetch/shard.tar", sha256_bytes(b"bytes")
    write_bytes(uri, b"bytes")
    path = fetch(uri, sha256, tmp_path)
    assert (path.name, path.read_bytes()) == ("shard.tar", b"bytes")
    write_bytes(uri, b"changed")
    assert fetch(uri, sha256, tmp_path) == path
    assert path.read_bytes() == b"bytes"


def test_fetch_refuses_other_bytes(root_uri: str, tmp_path: Path) -> None:
    uri = join(root_uri, "shard.tar")
    write_bytes(uri, b"bytes")
    with pytest.raises(ArtifactError, match="has the SHA-256") as caught:
        fetch(uri, sha256_bytes(b"other"), tmp_path / "cache")
    assert caught.value.expected == sha256_bytes(b"other")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
