"""Interface of a store, and its keys.

A key names one object within a store; its parts are divided by ``/``. As in a file system, one
key can't be another's folder (``a`` and ``a/b``).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unicodedata import category

from clipmill.errors import StorageError

TEMPORARY_PREFIX = ".clipmill-tmp-"
"""Prefix of names of unfinished writes, and of what a killed process left of one."""

# The longest name in the usual file systems of Linux.
_MAX_NAME_BYTES = 255
# Unicode's control characters and lone surrogates: HTTP, XML or UTF-8 can't carry them.
_BARRED_CATEGORIES = ("Cc", "Cs")


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreEntry:
    """An object in a store's listing."""

    key: str
    """Its key."""
    size: int
    """Bytes."""
    modified: float
    """Time of its last write, in seconds since 1970."""


class Store(ABC):
    """Bytes under one root URI, whose ``uri`` has no trailing slash.

    Every method raises StorageError when the store refuses or can't be reached, or the key
    isn't one (see ``check_key``), and those that read raise NotFoundError for an absent key.
    """

    uri: str

    @abstractmethod
    def get(self, key: str) -> bytes:
        """Return all the bytes of an object."""

    @abstractmethod
    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Return ``length`` bytes from ``start`` on, fewer where the object ends before."""

    @abstractmethod
    def put(self, key: str, data: bytes | memoryview) -> None:
        """Write an object, atomically: a reader sees the old bytes or the new, never a part."""

    @abstractmethod
    def get_file(self, key: str, path: Path) -> None:
        """Copy an object to a local file, which appears whole or not at all."""

    @abstractmethod
    def put_file(self, key: str, path: Path) -> None:
        """Write an object from a local file, as a stream, as atomically as ``put``."""

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Return whether an object (not a mere folder) lies at this key."""

    @abstractmethod
    def size(self, key: str) -> int:
        """Return the bytes that an object has."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove an object; that it's absent already is fine."""

    @abstractmethod
    def require_writable(self) -> None:
        """Raise StorageError where it is known that nothing can be written."""

    def remove_abandoned(self) -> None:  # noqa: B027  # of local folders alone
        """Remove what killed processes left of unfinished writes."""

    @abstractmethod
    def list(self, prefix: str = "") -> Iterator[str]:
        """Yield, sorted by code point, every key that starts with ``prefix``."""

    @abstractmethod
    def entries(self, prefix: str = "") -> Iterator[StoreEntry]:
        """Yield the objects of ``list``, with their sizes and times."""


def check_key(key: str) -> str:
    """Return ``key`` if it names something within a root, else raise StorageError."""
    for part in key.split("/"):
        if (
            part.strip() in ("", ".", "..")
            or part.startswith(TEMPORARY_PREFIX)
            or "\\" in part  # some servers take it for a slash
            or any(category(character) in _BARRED_CATEGORIES for character in part)
            or len(part.encode()) > _MAX_NAME_BYTES
        ):
            raise StorageError(
                f"key {key!r} doesn't name an object within a store",
                expected="names of up to 255 bytes divided by single slashes, none of them '.' "
                "or '..', without backslashes or control characters",
                action="use a relative key such as 'shards/000000.tar'",
            )
    return key
