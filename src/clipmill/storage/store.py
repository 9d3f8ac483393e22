"""Bytes at a URI: the contract of a store, and the functions that take any URI.

A URI is a folder or file (``/data/x``, ``data/x``, ``file:///data/x``) or an object
(``s3://bucket/prefix/x``). Within a store, a key names one object; its parts are divided
by ``/``. As in a file system, one key can't be another's folder (``a`` and ``a/b``).
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unicodedata import category
from urllib.parse import unquote, urlsplit

from clipmill.errors import StorageError
from clipmill.storage.atomic import TEMPORARY_PREFIX

# The longest name in the usual file systems of Linux.
_MAX_NAME_BYTES = 255
# Unicode's control characters and lone surrogates: HTTP, XML or UTF-8 can't carry them.
_BARRED_CATEGORIES = ("Cc", "Cs")


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
    def list(self, prefix: str = "") -> Iterator[str]:
        """Yield, sorted by code point, every key that starts with ``prefix``."""


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


def open_store(uri: str) -> Store:
    """Return the store whose root is ``uri``; nothing is read or made yet.

    Raises StorageError for a scheme other than none, ``file`` and ``s3``, and for an S3 URI
    when the environment lacks the settings (see ``S3Settings``).
    """
    # The client of S3 is imported by those who need it: it costs more than all the rest here.
    scheme, separator, rest = uri.partition("://")
    if not separator and uri:
        from clipmill.storage.local import LocalStore

        return LocalStore(Path(uri))
    if scheme == "file" and urlsplit(uri).netloc in ("", "localhost") and urlsplit(uri).path:
        from clipmill.storage.local import LocalStore

        return LocalStore(Path(unquote(urlsplit(uri).path)))
    if scheme == "s3":
        from clipmill.storage.s3 import S3Settings, S3Store

        bucket, _, prefix = rest.partition("/")
        return S3Store(bucket, prefix.strip("/"), S3Settings.from_environment())
    raise StorageError(
        f"{uri!r} isn't a URI that clipmill can store at",
        expected="a folder, file:///folder or s3://bucket/prefix",
        action="copy the data to one of these, or correct the URI",
    )


def split_uri(uri: str) -> tuple[Store, str]:
    """Return the store of the folder that holds ``uri``, and the key of ``uri`` within it."""
    scheme, separator, path = uri.rpartition("://")
    folder, slash, key = path.rstrip("/").rpartition("/")
    if scheme == "s3" and not folder:
        raise StorageError(
            f"{uri!r} names a bucket, not an object in one",
            expected="s3://bucket/key",
            action="add the object's key to the URI",
        )
    # "/x" lies in "/", and "x" in the current folder.
    store = open_store(f"{scheme}{separator}{folder or slash or '.'}")
    return store, check_key(unquote(key) if scheme == "file" else key)


def read_bytes(uri: str) -> bytes:
    """Return the bytes at ``uri``; raises NotFoundError, StorageError."""
    store, key = split_uri(uri)
    return store.get(key)


def write_bytes(uri: str, data: bytes | memoryview) -> None:
    """Write the bytes at ``uri``, atomically; raises StorageError."""
    store, key = split_uri(uri)
    store.put(key, data)


def read_json(uri: str) -> Any:
    """Return the JSON value at ``uri``; raises NotFoundError, or StorageError if it isn't JSON."""
    try:
        return json.loads(read_bytes(uri))
    except ValueError as error:
        raise StorageError(
            f"{uri} isn't JSON: {error}",
            expected="one JSON value in UTF-8",
            action="write the file again, or point at another one",
        ) from error


def write_json(uri: str, value: Any) -> None:
    """Write ``value`` as JSON that people can read: keys sorted, two spaces, a newline.

    Equal values give equal bytes. Raises ValueError for NaN and infinities, StorageError.
    """
    text = json.dumps(value, sort_keys=True, indent=2, allow_nan=False, ensure_ascii=False)
    write_bytes(uri, f"{text}\n".encode())


def exists(uri: str) -> bool:
    """Return whether an object lies at ``uri``; a folder alone isn't one."""
    store, key = split_uri(uri)
    return store.exists(key)


def require_writable(uri: str) -> None:
    """Raise StorageError if ``uri`` is a local folder, there or yet to be made, that can't be used.

    Says nothing of S3, where only a write tells.
    """
    from clipmill.storage.local import LocalStore

    store = open_store(uri)
    if isinstance(store, LocalStore):
        store.require_writable()


def join(uri: str, *parts: str) -> str:
    """Return the URI of something within ``uri``: ``join("s3://b/", "x", "y.json")``."""
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])
