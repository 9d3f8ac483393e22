"""A store in a local folder."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from clipmill.errors import NotFoundError, StorageError
from clipmill.storage.atomic import TEMPORARY_PREFIX, replacing
from clipmill.storage.store import Store, check_key

# How the system says that a path isn't there, is a folder, or leads through a file.
_ABSENT = (FileNotFoundError, IsADirectoryError, NotADirectoryError)


class LocalStore(Store):
    """Files under a folder, which is made by the first ``put``.

    ``list`` doesn't enter folders that are symbolic links; every other method follows them.
    """

    def __init__(self, folder: Path) -> None:
        # Not resolved: a link to a data disk stays the name that people know it by.
        self.folder = Path(os.path.abspath(folder.expanduser()))  # noqa: PTH100
        self.uri = str(self.folder)

    def path(self, key: str) -> Path:
        """Return where the object of ``key`` lies, or would; raises StorageError."""
        return self.folder / check_key(key)

    def get(self, key: str) -> bytes:
        """Return the bytes of a file."""
        with self._open(key) as file:
            return file.read()

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Return part of the bytes of a file."""
        assert min(start, length) >= 0, (start, length)
        with self._open(key) as file:
            file.seek(start)
            return file.read(length)

    def put(self, key: str, data: bytes | memoryview) -> None:
        """Write a file from bytes."""
        with replacing(self.path(key)) as temporary:
            temporary.write_bytes(data)

    def get_file(self, key: str, path: Path) -> None:
        """Copy a file to a local file."""
        with self._open(key) as source, replacing(path) as temporary, temporary.open("wb") as copy:
            shutil.copyfileobj(source, copy, 1 << 20)

    def put_file(self, key: str, path: Path) -> None:
        """Write a file from a local file."""
        with replacing(self.path(key)) as temporary:
            shutil.copyfile(path, temporary)

    def exists(self, key: str) -> bool:
        """Return whether a file lies at this key."""
        try:
            self._open(key).close()
        except NotFoundError:
            return False
        return True

    def size(self, key: str) -> int:
        """Return the bytes that a file has."""
        with self._open(key) as file:
            return os.fstat(file.fileno()).st_size

    def delete(self, key: str) -> None:
        """Remove a file, if it's there."""
        path = self.path(key)
        try:
            path.unlink()
        except _ABSENT:
            return
        except OSError as error:
            raise _refused("delete", path, error) from error

    def list(self, prefix: str = "") -> Iterator[str]:
        """Yield the keys of files that start with ``prefix``, sorted."""
        folder = prefix.rpartition("/")[0]
        top = self.folder / check_key(folder) if folder else self.folder
        keys = (
            (Path(parent) / name).relative_to(self.folder).as_posix()
            for parent, _, names in os.walk(top, onerror=_raise_unless_absent)
            for name in names
            if not name.startswith(TEMPORARY_PREFIX)
        )
        yield from sorted(key for key in keys if key.startswith(prefix))

    def require_writable(self) -> None:
        """Raise StorageError unless files can be written under the folder; leaves none."""
        folder = next(p for p in (self.folder, *self.folder.parents) if os.path.lexists(p))
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise _refused("write under", self.folder, error) from error

    def _open(self, key: str) -> BinaryIO:
        path = self.path(key)
        try:
            return path.open("rb")
        except _ABSENT as error:
            raise NotFoundError(
                f"there is no file {path}",
                expected="an object that was written before",
                action="check the URI, and that the step which writes it has run",
            ) from error
        except OSError as error:
            raise _refused("read", path, error) from error


def _raise_unless_absent(error: OSError) -> None:
    if not isinstance(error, _ABSENT):
        raise _refused("list", Path(error.filename), error) from error


def _refused(verb: str, path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"can't {verb} {path}: {error.strerror}",
        expected="a path whose folders this process may use",
        action="mend its permissions, or give another folder",
    )
