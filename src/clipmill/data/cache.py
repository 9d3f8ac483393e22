"""Verified local files: each copied or checked once per machine, the copies bounded in bytes.

A cache is a folder with one entry a file, named by the file's SHA-256; an entry's time says when
it was used last. Any number of processes share it.
"""

import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from clipmill.storage import atomic_write, fetch, open_store, split_uri
from clipmill.storage.local import LocalStore

_ENTRY = re.compile(r"[0-9a-f]{64}")


def is_remote(uri: str) -> bool:
    """Return whether files below ``uri`` must be copied before reading."""
    return not isinstance(open_store(uri), LocalStore)


def open_copy(uri: str, sha256: str, cache: Path) -> BinaryIO:
    """Open the file at ``uri``, copied to ``cache`` if it's remote, verified either way.

    A local file is read for its digest once, and again if it was written since. Processes that
    want the same remote file wait for one of them to download it. Raises NotFoundError,
    StorageError; ArtifactError where the SHA-256 differs.
    """
    store, key = split_uri(uri)
    if isinstance(store, LocalStore):
        return _open_local(store.path(key), uri, sha256, cache)
    with pin_entry(cache / sha256):
        return fetch(uri, sha256, cache).open("rb")


@contextmanager
def pin_entry(entry: Path) -> Iterator[None]:
    """Lock an entry of the cache and mark it as used; no process evicts it meanwhile."""
    folder = _locked(entry)
    try:
        os.utime(entry)
        yield
    finally:
        os.close(folder)


def evict_lru(cache: Path, limit_bytes: int) -> None:
    """Delete the least recently used entries until the others fit in ``limit_bytes``.

    A process that has a file open can still read it. Other files in the folder are kept.
    """
    entries = [entry for entry in cache.iterdir() if _ENTRY.fullmatch(entry.name)]
    total = 0
    for entry in sorted(entries, key=_last_use, reverse=True):
        total += _size(entry)
        if total > limit_bytes:
            _delete_unless_in_use(entry)


def _open_local(path: Path, uri: str, sha256: str, cache: Path) -> BinaryIO:
    note = cache / sha256 / "verified"
    try:
        is_verified = note.read_text() == _stat_signature(path)
    except FileNotFoundError:
        is_verified = False
    if not is_verified:
        with pin_entry(note.parent):
            fetch(uri, sha256, cache)
            with atomic_write(note) as temporary:
                temporary.write_text(_stat_signature(path))
    return path.open("rb")


def _stat_signature(path: Path) -> str:
    """Return a text that changes when a file is written or replaced."""
    stat = path.stat()
    return f"{path} {stat.st_ino} {stat.st_size} {stat.st_mtime_ns}"


def _locked(entry: Path) -> int:
    """A descriptor of the entry's folder, which holds the lock until it's closed."""
    while True:
        entry.mkdir(parents=True, exist_ok=True)
        try:
            folder = os.open(entry, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:  # evicted just now
            continue
        fcntl.flock(folder, fcntl.LOCK_EX)
        try:
            if entry.stat().st_ino == os.fstat(folder).st_ino:
                return folder
        except FileNotFoundError:
            pass
        # While this process waited for the lock, its owner evicted the entry.
        os.close(folder)


def _delete_unless_in_use(entry: Path) -> None:
    """Delete an entry, unless a process has it locked."""
    try:
        folder = os.open(entry, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:  # another process evicts too
        return
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(entry, ignore_errors=True)
    except BlockingIOError:
        pass
    finally:
        os.close(folder)


def _last_use(entry: Path) -> float:
    try:
        return entry.stat().st_mtime
    except FileNotFoundError:  # another process evicts too
        return 0.0


def _size(entry: Path) -> int:
    try:
        return sum(file.stat().st_size for file in entry.iterdir())
    except FileNotFoundError:
        return 0
