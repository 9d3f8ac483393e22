"""Tables of images and captions: CSV and TSV, Parquet, and Hugging Face datasets folders.

A row has an image's path and a caption; a Parquet table may hold the images themselves. A Hugging
Face folder holds Parquet files, or the Arrow files of ``save_to_disk``.
"""

import csv
import io
import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Self

import pyarrow as pa
import pyarrow.parquet as pq

from clipmill.data.sources.base import (
    BYTES_NAMES,
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
from clipmill.data.sources.files import (
    ImageFiles,
    PreadFile,
    files_digest,
    image_suffix,
    matching_files,
    relative_names,
)
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


# Rows held at once while a range is read.
_BATCH_ROWS = 256


class ParquetSource(Source):
    """The rows of one Parquet file or many.

    The image column holds paths (text), bytes, or the Hugging Face struct of both. An id is the
    row's path if it has one or the value of the column ``id``, and else its file and number.
    """

    def __init__(
        self,
        path: str,
        *,
        image: str = "",
        caption: str = "",
        id: str = "",  # noqa: A002  # the option's name in a source spec
        images: str = "",
        kind: str = "parquet",
    ) -> None:
        """``image``, ``caption``, ``id``: names of columns; ``images``: see ``ImageFiles``."""
        base, files = matching_files(path, (".parquet",))
        self._files = relative_names(base, files)
        schema = read_schema(files[0])
        self.columns = RowColumns(schema, image=image, caption=caption, id=id)
        self._images = ImageFiles(images or str(base))
        options = {"image": image, "caption": caption, "id": id, "images": images}
        self._salt = repr(sorted(options.items()))
        text = "&".join(f"{key}={value}" for key, value in options.items() if value)
        self.uri = f"{kind}:{Path(path).absolute()}" + (f"?{text}" if text else "")

    def digest(self, mode: FingerprintMode) -> str:
        """SHA-256 (hex) over the files; images that they only name aren't read."""
        return files_digest(self._files.items(), mode, self._salt)

    def splits(self, size: int, listing: BinaryIO) -> Iterator[Split]:  # noqa: ARG002
        """Read the footers alone; a split is a range of one file's rows."""
        for name, path in self._files.items():
            num_rows = _open(path).metadata.num_rows
            for start in range(0, num_rows, size):
                stop = min(start + size, num_rows)
                yield Split(name, start, stop, stop - start)

    def entries(self, split: Split, listing: ReadListing) -> Iterator[Entry]:  # noqa: ARG002
        """The rows of a range, from the row groups that hold it."""
        file = _open(self._files[split.piece])
        groups, first = _groups(file.metadata, split.start, split.stop)
        batches = file.iter_batches(
            _BATCH_ROWS, row_groups=groups, columns=self.columns.names, use_threads=False
        )
        for row, values in rows_between(batches, first, split.start, split.stop, split.piece):
            yield self.columns.entry(f"{split.piece}#{row}", values, self._images)


class RowColumns:
    """The columns of a pair in a table of Arrow's types."""

    def __init__(
        self,
        schema: pa.Schema,
        *,
        image: str = "",
        caption: str = "",
        id: str = "",  # noqa: A002
    ) -> None:
        """Raises SourceError where the columns can't be told or have another type."""
        paths = [f.name for f in schema if _is_text(f.type)]
        blobs = [f.name for f in schema if _is_binary(f.type) or _is_image_struct(f.type)]
        if image or not blobs:
            self.image = resolve_column(
                [*blobs, *paths], image, (*BYTES_NAMES, *IMAGE_NAMES), "image", "image"
            )
        else:
            self.image = (
                blobs[0]
                if len(blobs) == 1
                else resolve_column(blobs, "", BYTES_NAMES, "image", "image")
            )
        texts = [f.name for f in schema if _is_text(f.type) or _is_texts(f.type)]
        self.caption = resolve_column(texts, caption, CAPTION_NAMES, "caption", "caption")
        self.id = resolve_column(schema.names, id, (), "id", "id") if id else ""
        self._of_paths = self.image in paths
        self.names = sorted({self.image, self.caption, *([self.id] if self.id else [])})

    def entry(self, position: str, values: dict[str, Any], images: ImageFiles) -> Entry:
        """Return the row at ``position``, which is its id if it has no other."""
        image = values[self.image]
        path = image.get("path") if isinstance(image, dict) else image if self._of_paths else None
        data = image.get("bytes") if isinstance(image, dict) else None if self._of_paths else image
        name = values[self.id] if self.id else path if self._of_paths else None
        origin = position if name in (None, b"") else _escape_name(name)
        return Entry(origin, partial(_load, path, data, values[self.caption], images))


def _load(path: bytes | None, data: bytes | None, caption: Any, images: ImageFiles) -> RawPair:
    name = os.fsdecode(path or b"")
    if data is None:
        if not name:
            raise BadSampleError(BadSampleReason.MISSING_IMAGE, "the row has no image")
        data = images.read(name)
    if isinstance(caption, list):
        caption = next((text for text in caption if text), None)
    if caption is None:
        raise BadSampleError(BadSampleReason.MISSING_CAPTION, "the row's caption is null")
    return RawPair(data, image_suffix(name, data), caption)


def _escape_name(value: object) -> str:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)


def rows_between(
    batches: Iterator[pa.RecordBatch], first: int, start: int, stop: int, name: str
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield number and values of the rows ``start`` to ``stop``; batches begin at ``first``.

    Text comes as bytes, since what a file calls text need not be UTF-8. Raises SourceError, which
    says ``name``, where the file is damaged.
    """
    try:
        for batch in batches:
            low, high = max(start - first, 0), min(stop - first, len(batch))
            for step in range(low, high, _BATCH_ROWS):
                part = batch.slice(step, min(_BATCH_ROWS, high - step))
                columns = [column.cast(_as_bytes(column.type)).to_pylist() for column in part]
                for offset, values in enumerate(zip(*columns, strict=True)):
                    yield first + step + offset, dict(zip(part.schema.names, values, strict=True))
            first += len(batch)
            if first >= stop:
                return
    except (OSError, pa.ArrowException) as error:
        raise _damaged(name, error) from error


def _as_bytes(kind: pa.DataType) -> pa.DataType:
    """The type with all text in it as bytes."""
    if _is_text(kind):
        return pa.large_binary() if pa.types.is_large_string(kind) else pa.binary()
    if _is_texts(kind):
        return pa.list_(_as_bytes(kind.value_type))
    if pa.types.is_struct(kind):
        fields = (kind.field(i) for i in range(kind.num_fields))
        return pa.struct([(field.name, _as_bytes(field.type)) for field in fields])
    return kind


def read_schema(path: Path) -> pa.Schema:
    """The schema of a Parquet file; raises SourceError if it isn't one."""
    return _open(path).schema_arrow


def _open(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise _damaged(str(path), error) from error


def _damaged(name: str, error: Exception) -> SourceError:
    return SourceError(
        f"{name} can't be read as a table: {error}",
        expected="a whole Parquet or Arrow file",
        action="write the file again, or leave it out of the source",
    )


def _groups(metadata: Any, start: int, stop: int) -> tuple[list[int], int]:
    """The row groups that hold rows ``start`` to ``stop``, and the first row that these hold."""
    groups: list[int] = []
    first = row = 0
    for group in range(metadata.num_row_groups):
        following = row + metadata.row_group(group).num_rows
        if row < stop and following > start:
            first = first if groups else row
            groups.append(group)
        row = following
    return groups, first


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_texts(kind: pa.DataType) -> bool:
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return bool(is_list and _is_text(kind.value_type))


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_image_struct(kind: pa.DataType) -> bool:
    return bool(pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0)


def hugging_face_source(path: str, *, image: str = "", caption: str = "", id: str = "") -> Source:  # noqa: A002
    """The dataset in a folder, whichever of its two formats it has."""
    if any(Path(path).rglob("*.arrow")):
        return ArrowSource(path, image=image, caption=caption, id=id)
    return ParquetSource(path, image=image, caption=caption, id=id, kind="hf")


class ArrowSource(Source):
    """The rows of Arrow files: images as bytes, or as the struct of bytes and path."""

    def __init__(
        self,
        path: str,
        *,
        image: str = "",
        caption: str = "",
        id: str = "",  # noqa: A002  # the option's name in a source spec
    ) -> None:
        """``image``, ``caption``, ``id``: names of columns."""
        base, files = matching_files(path, (".arrow",))
        # Caches of earlier transformations lie beside the data.
        files = [file for file in files if not file.name.startswith("cache-")]
        self._files = relative_names(base, files)
        with _Table(files[0]) as table:
            self.columns = RowColumns(table.schema, image=image, caption=caption, id=id)
        self._images = ImageFiles(str(base))
        options = {"image": image, "caption": caption, "id": id}
        self._salt = repr(sorted(options.items()))
        text = "&".join(f"{key}={value}" for key, value in options.items() if value)
        self.uri = f"hf:{Path(path).absolute()}" + (f"?{text}" if text else "")

    def digest(self, mode: FingerprintMode) -> str:
        """SHA-256 (hex) over the files."""
        return files_digest(self._files.items(), mode, self._salt)

    def splits(self, size: int, listing: BinaryIO) -> Iterator[Split]:  # noqa: ARG002
        """Count the batches' rows, whose columns stay on the disk."""
        for name, path in self._files.items():
            with _Table(path) as table:
                num_rows = sum(len(batch) for batch in table.batches())
            for start in range(0, num_rows, size):
                stop = min(start + size, num_rows)
                yield Split(name, start, stop, stop - start)

    def entries(self, split: Split, listing: ReadListing) -> Iterator[Entry]:  # noqa: ARG002
        """The rows of a range."""
        with _Table(self._files[split.piece]) as table:
            batches = (batch.select(self.columns.names) for batch in table.batches())
            for row, values in rows_between(batches, 0, split.start, split.stop, split.piece):
                yield self.columns.entry(f"{split.piece}#{row}", values, self._images)


class _Table:
    """A memory-mapped Arrow file, in the streaming format or the one with a footer."""

    def __init__(self, path: Path) -> None:
        try:
            self._map = pa.memory_map(str(path))
            try:
                self._reader = pa.ipc.open_stream(self._map)
                self._is_stream = True
            except pa.ArrowInvalid:
                self._reader = pa.ipc.open_file(self._map)
                self._is_stream = False
        except (OSError, pa.ArrowException) as error:
            raise SourceError(
                f"{path} can't be read as Arrow: {error}",
                expected="a whole file that Hugging Face datasets wrote",
                action="save the dataset again, or leave the file out",
            ) from error
        self.schema: pa.Schema = self._reader.schema

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All batches, in order."""
        if self._is_stream:
            yield from self._reader
        else:
            for index in range(self._reader.num_record_batches):
                yield self._reader.get_batch(index)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._map.close()
