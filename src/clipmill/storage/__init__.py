"""Bytes at a URI: a local folder or S3, what is packed there, and where it came from."""

from clipmill.storage.archive import fetch, get_tree, put_tree
from clipmill.storage.atomic import replacing
from clipmill.storage.lineage import (
    Node,
    Parent,
    artifact_at,
    lineage,
    read_artifact,
    read_artifact_file,
    render,
)
from clipmill.storage.seaweed import SeaweedServer
from clipmill.storage.store import (
    Store,
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
    "Node",
    "Parent",
    "SeaweedServer",
    "Store",
    "artifact_at",
    "exists",
    "fetch",
    "get_tree",
    "join",
    "lineage",
    "open_store",
    "put_tree",
    "read_artifact",
    "read_artifact_file",
    "read_bytes",
    "read_json",
    "render",
    "replacing",
    "require_writable",
    "split_uri",
    "write_bytes",
    "write_json",
]
