"""Reading a source's files, and telling them apart."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from clipmill.data.sources.contract import Identity
from clipmill.errors import SourceError

_BLOCK = 1 << 20


def read_file(path: str | Path) -> bytes:
    """The bytes of a file; raises SourceError, as the machine is at fault and not the sample."""
    try:
        # Plain system calls: a file object costs more than the reading of a small file.
        file = os.open(path, os.O_RDONLY)
        try:
            size = os.fstat(file).st_size
            data = os.read(file, size + 1)
            while len(data) != size and (more := os.read(file, _BLOCK)):
                data += more
        finally:
            os.close(file)
    except OSError as error:
        raise unreadable(Path(path), error) from error
    return data


class Descriptor:
    """A file open for positioned reads, closed when nobody holds it any more.

    Threads may still read from it when the loop that opened it has ended.
    """

    def __init__(self, path: Path) -> None:
        """Open ``path``; raises SourceError."""
        self.path = path
        try:
            self.number = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise unreadable(path, error) from error

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return os.fstat(self.number).st_size

    def read(self, offset: int, length: int) -> bytes:
        """``length`` bytes from ``offset`` on, fewer where the file ends before."""
        try:
            return os.pread(self.number, length, offset)
        except OSError as error:
            raise unreadable(self.path, error) from error

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


def unreadable(path: Path, error: OSError) -> SourceError:
    """The error for a file or folder that the system won't let us read."""
    return SourceError(
        f"{path} can't be read: {error.strerror}",
        expected="a source whose files this process may read, and that nobody changes meanwhile",
        action="mend permissions or the disk, and run again: finished shards are kept",
    )


def files_digest(paths: Iterable[tuple[str, Path]], identity: Identity, salt: str = "") -> str:
    """SHA-256 (hex) over the files' names and contents, or names, sizes and times.

    ``salt`` is whatever else decides what the source's samples are, such as its options.
    """
    total = hashlib.sha256(f"{identity}\0{salt}\0".encode())
    for name, path in paths:
        encoded = os.fsencode(name)
        total.update(len(encoded).to_bytes(4, "big") + encoded)
        try:
            if identity == "content":
                with path.open("rb") as file:
                    total.update(hashlib.file_digest(file, "sha256").digest())
            else:
                stat = path.stat()
                total.update(f"{stat.st_size} {stat.st_mtime_ns}\0".encode())
        except OSError as error:
            raise unreadable(path, error) from error
    return total.hexdigest()
