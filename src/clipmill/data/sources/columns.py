"""Columns of a table that hold images and captions, shared by all table formats."""

from collections.abc import Iterable, Sequence
from typing import Final

from clipmill.errors import SourceError

# Common names of these columns, the most likely first.
IMAGE_NAMES: Final = ("path", "image_path", "filepath", "file", "filename", "file_name", "image")
BYTES_NAMES: Final = ("image", "jpg", "jpeg", "png", "webp", "img")
CAPTION_NAMES: Final = ("caption", "text", "title", "txt", "captions")
ID_NAMES: Final = ("uid", "id", "key", "image_id")


def resolve_column(
    columns: Iterable[str], name: str, candidates: Sequence[str], role: str, option: str
) -> str:
    """Return the column ``name``, or if that is empty the first of ``candidates`` that exists.

    Raises SourceError, which lists the columns and the option that sets one.
    """
    columns = list(columns)
    if name and name in columns:
        return name
    by_name = {column.lower(): column for column in reversed(columns)}
    for candidate in () if name else candidates:
        if candidate in by_name:
            return by_name[candidate]
    raise SourceError(
        f"no column {name!r} for the {role}" if name else f"no column for the {role} is known",
        expected=f"one of the columns {', '.join(columns)}",
        action=f"name it in the source: KIND:PATH?{option}=COLUMN",
    )
