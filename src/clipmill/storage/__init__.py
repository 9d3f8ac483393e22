"""Bytes at a URI: a local folder or S3, folders packed into tars, and an embedded S3 server."""

from clipmill.storage.archive import fetch, pack_dir, read_digest, unpack_archive, unpack_dir
from clipmill.storage.local import atomic_write
from clipmill.storage.seaweed import SeaweedServer
from clipmill.storage.store import Store
from clipmill.storage.uri import (
    absolute_uri,
    artifact_uri,
    exists,
    join,
    open_store,
    read_bytes,
    read_json,
    require_writable,
    split_uri,
    write_bytes,
    write_json,
)

__all__ = [
    "SeaweedServer",
    "Store",
    "absolute_uri",
    "artifact_uri",
    "atomic_write",
    "exists",
    "fetch",
    "join",
    "open_store",
    "pack_dir",
    "read_bytes",
    "read_digest",
    "read_json",
    "require_writable",
    "split_uri",
    "unpack_archive",
    "unpack_dir",
    "write_bytes",
    "write_json",
]
