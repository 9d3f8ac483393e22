"""CSV and TSV tables with an image's path and a caption a row."""

import csv
import io
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO

from clipmill.data.sources.base import (
    CAPTION_NAMES,
    IMAGE_NAMES,
    Entry,
    FingerprintMode,
    RawPair,
    ReadListing,
    Source,
    Split,
    resolve_column,
)
from clipmill.data.sources.files import ImageFiles, PreadFile, files_digest, image_suffix
from clipmill.errors import BadSampleError, BadSampleReason, SourceError

# Python's default limit of 128 KiB a field would end the reading of a table at a giant caption.
_MAX_FIELD_BYTES = 1 << 26


class DelimitedSource(Source):
    """The rows of a CSV or TSV file whose first row names the columns.

    A row's id is its image's path as written, or the column that ``id`` names. Where a row isn't
    UTF-8 its bytes survive as they are, so that the caption is refused for it.
    """

    def __init__(
        self,
        path: str,
        *,
        image: str = "",
        caption: str = "",
        id: str = "",  # noqa: A002  # the option's name in a source spec
        images: str = "",
        delimiter: str = ",",
        kind: str = "csv",
    ) -> None:
        """``image``, ``caption``, ``id``: names of columns; ``images``: see ``ImageFiles``."""
        self._path = Path(path).absolute()
        self._delimiter = delimiter
        csv.field_size_limit(min(_MAX_FIELD_BYTES, sys.maxsize))
        self._images = ImageFiles(images or str(self._path.parent))
        with self._path.open("rb") as file:
            header, self._first = next(_rows(file, delimiter), ([], 0))
        self._columns = [name.removeprefix("\ufeff") for name in header]
        self._image = self._column(image, IMAGE_NAMES, "image's path", "image")
        self._caption = self._column(caption, CAPTION_NAMES, "caption", "caption")
        self._id = self._column(id, (), "id", "id") if id else self._image
        options = {"image": image, "caption": caption, "id": id, "images": self._images.base}
        self._salt = repr(sorted(options.items()))
        text = "&".join(f"{key}={value}" for key, value in options.items() if value)
        self.uri = f"{kind}:{self._path}?{text}"

    def digest(self, mode: FingerprintMode) -> str:
        """SHA-256 (hex) over the table alone: it speaks for its images."""
        return files_digest([(self._path.name, self._path)], mode, self._salt)

    def splits(self, size: int, listing: BinaryIO) -> Iterator[Split]:  # noqa: ARG002
        """Read the table once; a split is a range of its bytes, since rows may span lines."""
        start = stop = self._first
        count = 0
        with self._path.open("rb") as file:
            file.seek(start)
            for _, position in _rows(file, self._delimiter, start):
                stop = position
                count += 1
                if count == size:
                    yield Split(self._path.name, start, stop, count)
                    start, count = stop, 0
        if count:
            yield Split(self._path.name, start, stop, count)

    def entries(self, split: Split, listing: ReadListing) -> Iterator[Entry]:  # noqa: ARG002
        """The rows of a range."""
        data = PreadFile(self._path).read(split.start, split.stop - split.start)
        for row, _ in _rows(io.BytesIO(data), self._delimiter):
            cells = dict(enumerate(row))
            image = cells.get(self._image, "")
            origin = cells.get(self._id, "") or image
            spelled = _bytes(origin).decode("utf-8", "backslashreplace")
            yield Entry(spelled, partial(self._load, image, cells.get(self._caption, "")))

    def _load(self, image: str, caption: str) -> RawPair:
        if not image:
            raise BadSampleError(BadSampleReason.MISSING_IMAGE, "the row names no image")
        data = self._images.read(image)
        return RawPair(data, image_suffix(image, data), _bytes(caption))

    def _column(self, name: str, candidates: tuple[str, ...], role: str, option: str) -> int:
        if not self._columns:
            raise SourceError(
                f"{self._path} is empty",
                expected="a table whose first row names its columns",
                action="check the path of the source",
            )
        return self._columns.index(resolve_column(self._columns, name, candidates, role, option))


def _rows(file: BinaryIO, delimiter: str, position: int = 0) -> Iterator[tuple[list[str], int]]:
    """Yield each row that isn't empty, and the file's position after it."""

    def lines() -> Iterator[str]:
        nonlocal position
        for line in file:
            position += len(line)
            # A byte of zero would end the row for some versions of the csv module.
            yield line.decode("utf-8", "surrogateescape").replace("\0", "\ufffd")

    try:
        for row in csv.reader(lines(), delimiter=delimiter):
            if row:
                yield row, position
    except csv.Error as error:
        raise SourceError(
            f"the table can't be read near byte {position}: {error}",
            expected="rows of a delimited table, in which each quote is closed",
            action="mend the row, or save the table as Parquet",
        ) from error


def _bytes(cell: str) -> bytes:
    return cell.encode("utf-8", "surrogateescape")
