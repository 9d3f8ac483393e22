"""What is particular to local folders: crashes in the middle of a write, permissions."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from clipmill.errors import StorageError
from clipmill.storage.local import LocalStore

# Writes, between two moments when it could be killed, 1 MB of each of two versions.
WRITER = """
import sys
from pathlib import Path
from clipmill.storage.local import LocalStore
store = LocalStore(Path(sys.argv[1]))
print("ready", flush=True)
while True:
    for letter in b"ab":
        store.put("object", bytes([letter]) * (32 << 20))
"""


@pytest.mark.parametrize("delay_seconds", [0.0, 0.02, 0.05, 0.11])
def test_a_killed_put_leaves_the_object_whole_or_absent(
    tmp_path: Path, delay_seconds: float
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout
        writer.stdout.readline()
        deadline = time.monotonic() + 30
        while not any(path.stat().st_size for path in tmp_path.iterdir()):
            assert time.monotonic() < deadline
        time.sleep(delay_seconds)
        writer.send_signal(signal.SIGKILL)
    store = LocalStore(tmp_path)
    if store.exists("object"):
        data = store.get("object")
        assert len(data) == 32 << 20
        assert data.count(data[:1]) == len(data)
    assert list(store.list()) in ([], ["object"])
    store.put("object", b"a later run goes on")
    assert store.get("object") == b"a later run goes on"


def test_a_failed_put_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "taken" / "by").mkdir(parents=True)
    with pytest.raises(StorageError, match="can't write"):
        LocalStore(tmp_path).put("taken", b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_leftovers_are_never_listed(tmp_path: Path) -> None:
    (tmp_path / ".clipmill-tmp-of-a-killed-process").write_bytes(b"half")
    (tmp_path / ".hidden").write_bytes(b"x")
    assert list(LocalStore(tmp_path).list()) == [".hidden"]


def test_a_file_in_the_way_of_the_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(StorageError, match="can't write") as caught:
        LocalStore(tmp_path / "file").put("a", b"x")
    assert "may write in" in caught.value.expected
    assert "another folder" in caught.value.action


@pytest.fixture
def unprivileged_folder() -> Iterator[Path]:
    """Yield a folder of a user to whom permissions apply, and be that user."""
    folder = Path(tempfile.mkdtemp())
    is_root = os.geteuid() == 0
    if is_root:
        os.chown(folder, 65534, 65534)
        os.seteuid(65534)
    try:
        yield folder
    finally:
        if is_root:
            os.seteuid(0)
        shutil.rmtree(folder)


def test_permissions_are_told(unprivileged_folder: Path) -> None:
    store = LocalStore(unprivileged_folder / "locked")
    store.put("a", b"x")
    store.path("a").chmod(0)
    with pytest.raises(StorageError, match=r"can't read .*/a: Permission denied"):
        store.get("a")
    store.folder.chmod(0)
    try:
        for use in (
            lambda: store.put("b", b"x"),
            lambda: store.exists("b"),
            lambda: store.delete("a"),
            lambda: list(store.list()),
        ):
            with pytest.raises(StorageError, match="Permission denied") as caught:
                use()
            assert "permissions" in caught.value.action
    finally:
        store.folder.chmod(0o700)


def test_new_files_obey_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        LocalStore(tmp_path).put("a", b"x")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_a_link_to_a_folder_keeps_its_name(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "data").symlink_to("disk")
    store = LocalStore(tmp_path / "data")
    store.put("a", b"x")
    assert store.uri == str(tmp_path / "data")
    assert list(store.list()) == ["a"]
    assert (tmp_path / "disk" / "a").read_bytes() == b"x"
