"""Options that several commands share."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from clipmill.errors import StorageError

Store = Annotated[
    str, typer.Option("--store", help="Folder or s3:// URI that everything is written under.")
]
OptionalStore = Annotated[
    str, typer.Option("--store", help="Folder or s3:// URI that everything is written under.")
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PATH=VALUE",
        help="Change a field; repeatable.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def require_output(path: Path | None) -> None:
    """Raise StorageError if a file couldn't be written at ``path``: before any work, not after."""
    if path is None:
        return
    reason = ""
    if path.is_dir():
        reason = "it is a folder"
    else:
        try:
            if path.exists():
                path.open("ab").close()
            else:
                tempfile.TemporaryFile(dir=path.parent).close()
        except OSError as error:
            reason = error.strerror or type(error).__name__
    if reason:
        raise StorageError(
            f"can't write {path}: {reason}",
            expected="a file in a folder that exists and may be written to",
            action="make the folder first, or give another path",
        )
