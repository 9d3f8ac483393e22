"""SHA-256 over bytes, files and JSON values."""

import hashlib
import json
from pathlib import Path


def sha256_bytes(data: bytes | memoryview) -> str:
    """SHA-256 of ``data`` (hex)."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's content (hex), read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical_json(value: object) -> str:
    """One spelling per value: sorted keys, no spaces, no NaN (ValueError)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest_json(value: object) -> str:
    """SHA-256 of a value's canonical JSON (hex)."""
    return sha256_bytes(canonical_json(value).encode())
