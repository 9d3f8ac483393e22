"""Files that appear whole or not at all."""

from pathlib import Path

import pytest

from clipmill.errors import StorageError
from clipmill.storage import atomic_write


def test_the_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    with atomic_write(path) as temporary:
        temporary.write_bytes(b"x")
        assert not path.exists()
        assert temporary.parent == path.parent
    assert path.read_bytes() == b"x"
    assert list(path.parent.iterdir()) == [path]


def _write_and_raise(path: Path) -> None:
    with atomic_write(path) as temporary:
        temporary.write_bytes(b"half")
        raise ZeroDivisionError


def test_a_block_that_raises_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"as it was")
    with pytest.raises(ZeroDivisionError):
        _write_and_raise(path)
    assert path.read_bytes() == b"as it was"
    assert list(tmp_path.iterdir()) == [path]


def _write_to_a_full_disk(path: Path) -> None:
    with atomic_write(path) as temporary:
        # The kernel's disk without space: a write to it fails as late as it can.
        temporary.symlink_to("/dev/full")
        temporary.write_bytes(b"x")


def test_a_full_disk_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"can't write .*/file: .*No space left"):
        _write_to_a_full_disk(tmp_path / "file")
    assert list(tmp_path.iterdir()) == []
