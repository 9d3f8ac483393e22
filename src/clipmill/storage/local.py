"""A store in a local folder, and atomic writes of local files.

An atomic write goes to a temporary file in the target's folder, which then takes its name: a
reader sees the old bytes or the new, never a part.
"""

import hashlib
import os
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import BinaryIO

from clipmill.errors import NotFoundError, StorageError
from clipmill.storage.store import TEMPORARY_PREFIX, Store, StoreEntry, check_key

# Since its last write a temporary file of another machine is taken for one of a killed process.
_ABANDONED_SECONDS = 3600.0

# How the system says that a path isn't there, is a folder, or leads through a file.
_ABSENT = (FileNotFoundError, IsADirectoryError, NotADirectoryError)


def temporary_path(path: Path) -> Path:
    """Return an unused temporary name in the folder of ``path``, which names this process."""
    return path.with_name(f"{TEMPORARY_PREFIX}{_host()}-{os.getpid()}-{uuid.uuid4().hex}")


@cache
def _host() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def _is_abandoned(path: Path) -> bool:
    """Return whether the process that writes a temporary file is gone.

    Of a process on another machine that is so an hour after its last write.
    """
    host, _, rest = path.name.removeprefix(TEMPORARY_PREFIX).partition("-")
    process = rest.partition("-")[0]
    if host == _host() and process.isdecimal():
        try:
            os.kill(int(process), 0)
        except ProcessLookupError:
            return True
        except OSError:
            return False
        return False
    try:
        return time.time() - path.stat().st_mtime > _ABANDONED_SECONDS
    except OSError:
        return False


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path; when the block ends well, its file becomes ``path``.

    The bytes are on the disk before the name is, so that neither a crash nor a power cut
    leaves part of a file under ``path``. When the block raises, ``path`` is left as it was.
    Missing folders are made. Raises StorageError where the system refuses the write.
    """
    temporary = temporary_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(
            f"can't write {path}: {error}",
            expected="a folder that this process may write in, on a disk with free space",
            action="mend the folder's permissions or disk, or give another folder",
        ) from error


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
        with atomic_write(self.path(key)) as temporary:
            temporary.write_bytes(data)

    def get_file(self, key: str, path: Path) -> None:
        """Copy a file to a local file."""
        with (
            self._open(key) as source,
            atomic_write(path) as temporary,
            temporary.open("wb") as copy,
        ):
            shutil.copyfileobj(source, copy, 1 << 20)

    def put_file(self, key: str, path: Path) -> None:
        """Write a file from a local file."""
        with atomic_write(self.path(key)) as temporary:
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
            raise _storage_error("delete", path, error) from error

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

    def entries(self, prefix: str = "") -> Iterator[StoreEntry]:
        """Yield the files that start with ``prefix``, sorted, without those removed meanwhile."""
        for key in self.list(prefix):
            try:
                status = (self.folder / key).stat()
            except _ABSENT:
                continue
            except OSError as error:
                raise _storage_error("read", self.folder / key, error) from error
            yield StoreEntry(key=key, size=status.st_size, modified=status.st_mtime)

    def unfinished(self) -> Iterator[Path]:
        """Yield the temporary files under the folder, of writes that go on or were killed."""
        for parent, _, names in os.walk(self.folder, onerror=_raise_unless_absent):
            yield from (Path(parent) / name for name in names if name.startswith(TEMPORARY_PREFIX))

    def remove_abandoned(self) -> None:
        """Remove the temporary files under the folder whose process is gone."""
        for path in self.unfinished():
            if _is_abandoned(path):
                with suppress(OSError):  # another process does the same
                    path.unlink()

    def require_writable(self) -> None:
        """Raise StorageError unless files can be written under the folder; leaves none."""
        folder = next(p for p in (self.folder, *self.folder.parents) if os.path.lexists(p))
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise _storage_error("write under", self.folder, error) from error

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
            raise _storage_error("read", path, error) from error


def _raise_unless_absent(error: OSError) -> None:
    if not isinstance(error, _ABSENT):
        raise _storage_error("list", Path(error.filename), error) from error


def _storage_error(verb: str, path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"can't {verb} {path}: {error.strerror}",
        expected="a path whose folders this process may use",
        action="mend its permissions, or give another folder",
    )
