"""Functions that read and write at any URI.

A URI is a folder or file (``/data/x``, ``data/x``, ``file:///data/x``) or an object
(``s3://bucket/prefix/x``).
"""

import json
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from clipmill.errors import StorageError
from clipmill.storage.local import LocalStore
from clipmill.storage.store import Store, check_key

# `s3://`, `csv:/a.csv`, `hf:ORG/NAME`. `file:w.pt` names a path without a root.
_SCHEME = re.compile(r"(?!file:(?!/))[\w+.-]+:")


# An S3 URI without its slashes would be a local folder.
_MISTYPED = re.compile(r"(s3|gs|https?):(?!//)", re.IGNORECASE)


def open_store(uri: str) -> Store:
    """Return the store whose root is ``uri``; nothing is read or made yet.

    Raises StorageError for a scheme other than none, ``file`` and ``s3``, and for an S3 URI
    when the environment lacks the settings (see ``S3Settings``).
    """
    scheme, separator, rest = uri.partition("://")
    if mistyped := _MISTYPED.match(uri):
        raise StorageError(
            f"{uri!r} has a scheme without its two slashes",
            expected="a folder, file:///folder or s3://bucket/prefix",
            action=f"write {mistyped[1]}://{uri[mistyped.end() :].lstrip('/')}, or ./{uri} for a "
            "folder of that name",
        )
    if not separator and uri:
        return LocalStore(Path(uri))
    if scheme == "file" and urlsplit(uri).netloc in ("", "localhost") and urlsplit(uri).path:
        return LocalStore(Path(unquote(urlsplit(uri).path)))
    if scheme == "s3":
        # Imported only where it's needed: its client costs more than all other imports here.
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
    """Raise StorageError if ``uri`` is a local folder, existing or not, that can't be written.

    Of S3 only a missing bucket is warned of: a write shows whether it is allowed.
    """
    open_store(uri).require_writable()


def join(uri: str, *parts: str) -> str:
    """Return the URI of something within ``uri``: ``join("s3://b/", "x", "y.json")``."""
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])


def absolute_uri(uri: str) -> str:
    """Return a URI or address that means the same from any folder: local paths are absolute."""
    scheme, path = ("file:", uri[5:]) if uri.startswith("file:") else ("", uri)
    if not path or path.startswith(("/", "~")) or _SCHEME.match(uri):
        return uri
    return f"{scheme}{os.path.abspath(path)}"  # noqa: PTH100 - links keep their names


def artifact_uri(store: str, *parts: str) -> str:
    """Return the URI of an artifact in a store; absolute, since other artifacts will name it."""
    return absolute_uri(join(store, *parts))
