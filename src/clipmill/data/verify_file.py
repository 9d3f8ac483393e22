"""One file of a dataset against what is recorded of it."""

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipmill.data.dataset import check_kind
from clipmill.digest import sha256_file
from clipmill.errors import ArtifactError, NotFoundError
from clipmill.storage import read_bytes, split_uri
from clipmill.storage.local import LocalStore


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is damaged."""

    uri: str
    """What it lies in."""
    what: str
    """What is wrong there, as the rest of a sentence that begins with the URI."""

    def __str__(self) -> str:
        return f"{self.uri} {self.what}"


def read_record(uri: str, kind: str = "") -> tuple[dict[str, Any] | None, list[Fault]]:
    """The JSON object at ``uri``, of this kind if one is given; None with its fault otherwise.

    Raises StorageError if the store can't be asked.
    """
    try:
        value = json.loads(read_bytes(uri))
        if kind:
            check_kind(value, kind, uri)
    except NotFoundError:
        return None, [Fault(uri, "is missing")]
    except ValueError as error:  # a UnicodeDecodeError is one too
        return None, [Fault(uri, f"isn't JSON: {error}")]
    except ArtifactError as error:
        return None, [Fault(uri, error.what.removeprefix(uri).strip())]
    if not isinstance(value, dict):
        return None, [Fault(uri, "isn't a JSON object")]
    return value, []


def check_file(
    uri: str,
    num_bytes: int,
    sha256: str,
    look_into: Callable[[Path, bool], list[Fault]] | None,
) -> tuple[int, list[Fault]]:
    """Bytes read of the file at ``uri``, and its faults.

    ``look_into`` gets a local path of it, and whether its digest is wrong; without it the size
    alone is compared. A remote file is copied for the while. Raises StorageError if the store
    can't be asked, or the copy written.
    """
    store, key = split_uri(uri)
    try:
        found = store.size(key)
        faults = []
        if found != num_bytes:
            words = "cut" if found < num_bytes else "longer"
            faults = [Fault(uri, f"is {words}: it has {found:,} bytes, and {num_bytes:,} listed")]
        if look_into is None:
            return 0, faults
        if isinstance(store, LocalStore):
            return found, faults + _contents(store.path(key), uri, sha256, bool(faults), look_into)
        with tempfile.TemporaryDirectory(prefix="clipmill-verify-") as folder:
            path = Path(folder) / "file"
            store.get_file(key, path)
            return found, faults + _contents(path, uri, sha256, bool(faults), look_into)
    except NotFoundError:
        return 0, [Fault(uri, "is missing")]


def _contents(
    path: Path,
    uri: str,
    sha256: str,
    is_told: bool,
    look_into: Callable[[Path, bool], list[Fault]],
) -> list[Fault]:
    actual = sha256_file(path)
    is_damaged = actual != sha256
    faults = look_into(path, is_damaged)
    if is_damaged and not is_told:
        changed = f"has changed: its SHA-256 is {actual[:12]}…, and {sha256[:12]}… listed"
        faults.insert(0, Fault(uri, changed))
    return faults
