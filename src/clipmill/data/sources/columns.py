"""Which columns of a table hold the image and the caption."""

from collections.abc import Iterable, Sequence
from typing import Final

from clipmill.errors import SourceError

# What tables of pairs call these columns, the likeliest first.
IMAGE_NAMES: Final = ("path", "image_path", "filepath", "file", "filename", "file_name", "image")
BYTES_NAMES: Final = ("image", "jpg", "jpeg", "png", "webp", "img")
CAPTION_NAMES: Final = ("caption", "text", "title", "txt", "captions")
ID_NAMES: Final = ("uid", "id", "key", "image_id")


def choose(
    columns: Iterable[str], wanted: str, candidates: Sequence[str], role: str, option: str
) -> str:
    """The column ``wanted``, or without one the first of ``candidates`` that there is.

    Raises SourceError, which names the columns and the option that chooses one.
    """
    columns = list(columns)
    if wanted and wanted in columns:
        return wanted
    by_name = {column.lower(): column for column in reversed(columns)}
    for candidate in () if wanted else candidates:
        if candidate in by_name:
            return by_name[candidate]
    raise SourceError(
        f"no column {wanted!r} for the {role}" if wanted else f"no column for the {role} is known",
        expected=f"one of the columns {', '.join(columns)}",
        action=f"name it in the source: KIND:PATH?{option}=COLUMN",
    )
