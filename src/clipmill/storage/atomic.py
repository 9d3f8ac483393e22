"""Files that appear whole or not at all: write beside the target, then move into place."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clipmill.errors import StorageError

# Names that start so are writes under way, or what a killed process left of one.
TEMPORARY_PREFIX = ".clipmill-tmp-"


def temporary_beside(path: Path) -> Path:
    """Return an unused temporary name in the folder of ``path``."""
    return path.with_name(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path; when the block ends well, its file becomes ``path``.

    The bytes are on the disk before the name is, so that neither a crash nor a power cut
    leaves part of a file under ``path``. When the block raises, ``path`` is left as it was.
    Missing folders are made. Raises StorageError where the system refuses the write.
    """
    temporary = temporary_beside(path)
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
