"""Tables of images and captions in Arrow's types: Parquet, and Hugging Face datasets folders.

A row has an image or its path, and a caption or a list of them, which become a layer. A Hugging
Face folder holds Parquet files, the Arrow files of ``save_to_disk``, or images with metadata files.
"""

import os
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Self

import pyarrow as pa
import pyarrow.parquet as pq

from clipmill.config import digest_json
from clipmill.data.parallel import OrderedMap, default_threads, ordered_map
from clipmill.data.sources.base import (
    BYTES_NAMES,
    CAPTION_NAMES,
    LAYER,
    METADATA_NAMES,
    PATHS,
    Entry,
    FingerprintMode,
    ImageColumn,
    ImageReader,
    RawPair,
    ReadListing,
    Source,
    Split,
    caption_row,
    has_text,
    resolve_column,
    sample_metadata,
)
from clipmill.data.sources.files import (
    ImageFiles,
    files_digest,
    image_suffix,
    images_digest,
    matching_files,
    relative_names,
)
from clipmill.errors import BadSampleError, BadSampleReason, SourceError

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
        split: str = "",
        kind: str = "parquet",
        column: ImageColumn = PATHS,
    ) -> None:
        """``image``, ``caption``, ``id``: names of columns; ``images``: see ``ImageFiles``.

        ``split``: only the files of that split of a Hugging Face dataset.
        """
        base, files = matching_files(path, (".parquet",))
        files = _split_files(base, files, split)
        self._files = relative_names(base, files)
        self._columns = {
            name: _file_columns(file, image=image, caption=caption, id=id, column=column)
            for name, file in self._files.items()
        }
        self.layers = layers_of(self._columns.values())
        self._images = ImageFiles(images or str(base))
        self.reader: ImageReader = self._images
        options = {"image": image, "caption": caption, "id": id, "images": images, "split": split}
        self._salt = repr(sorted(options.items()))
        text = "&".join(f"{key}={value}" for key, value in options.items() if value)
        self.uri = f"{kind}:{Path(path).absolute()}" + (f"?{text}" if text else "")

    def digest(self, mode: FingerprintMode) -> str:
        """SHA-256 (hex) over the files, and over the local images that they name."""
        with ordered_map(default_threads()) as mapped:
            return self.digest_by(mapped, mode)

    def digest_by(self, mapped: OrderedMap, mode: FingerprintMode) -> str:
        """The same, images read by ``mapped``."""
        tables = files_digest(self._files.items(), mode, self._salt)
        images = images_digest(self._image_names(), self._images, mapped, mode)
        return digest_json([tables, images])

    def tables_digest(self, mode: FingerprintMode) -> str:
        """Return the SHA-256 (hex) over the tables alone."""
        return files_digest(self._files.items(), mode)

    def image_column(self, name: str) -> str:
        """Return the column of a file that holds or names the images."""
        return self._columns[name].image

    def _image_names(self) -> Iterator[str]:
        for name, columns in self._columns.items():
            if columns.is_path:
                file = _open(self._files[name])
                batches = file.iter_batches(_BATCH_ROWS, columns=[columns.image], use_threads=False)
                for _, values in rows_between(batches, 0, 0, file.metadata.num_rows, name):
                    if values[columns.image]:
                        yield os.fsdecode(values[columns.image])

    def splits(self, size: int, listing: BinaryIO) -> Iterator[Split]:  # noqa: ARG002
        """Read the footers alone; a split is a range of one file's rows."""
        for name, path in self._files.items():
            num_rows = _open(path).metadata.num_rows
            for start in range(0, num_rows, size):
                stop = min(start + size, num_rows)
                yield Split(name, start, stop, stop - start)

    def entries(self, split: Split, listing: ReadListing) -> Iterator[Entry]:  # noqa: ARG002
        """The rows of a range, from the row groups that hold it."""
        file, columns = _open(self._files[split.piece]), self._columns[split.piece]
        groups, first = _groups(file.metadata, split.start, split.stop)
        batches = file.iter_batches(
            _BATCH_ROWS, row_groups=groups, columns=columns.names, use_threads=False
        )
        for row, values in rows_between(batches, first, split.start, split.stop, split.piece):
            yield columns.entry(f"{split.piece}#{row}", values, self.reader)


class RowColumns:
    """The columns of a pair in a table of Arrow's types."""

    def __init__(
        self,
        schema: pa.Schema,
        *,
        image: str = "",
        caption: str = "",
        id: str = "",  # noqa: A002  # the option's name in a source spec
        column: ImageColumn = PATHS,
    ) -> None:
        """Raises SourceError where the columns can't be told or have another type."""
        self._column = column
        paths = [f.name for f in schema if _is_text(f.type)]
        blobs = [f.name for f in schema if _is_binary(f.type) or _is_image_struct(f.type)]
        texts = [f.name for f in schema if _is_text(f.type) or _is_texts(f.type)]
        # Some writers store text as bytes.
        raw = [f.name for f in schema if _is_binary(f.type) and f.name.lower() in CAPTION_NAMES]
        self.caption = resolve_column([*texts, *raw], caption, CAPTION_NAMES, "caption", "caption")
        self.has_lists = _is_texts(schema.field(self.caption).type)
        blobs = [name for name in blobs if name != self.caption]
        if column is not PATHS:
            self.image = resolve_column(paths, image, column.names, column.role, column.option)
        elif image or not blobs:
            self.image = resolve_column(
                [*blobs, *paths], image, (*BYTES_NAMES, *column.names), "image", "image"
            )
        else:
            self.image = (
                blobs[0]
                if len(blobs) == 1
                else resolve_column(blobs, "", BYTES_NAMES, "image", "image")
            )
        self.id = resolve_column(schema.names, id, (), "id", "id") if id else ""
        self.is_path = self.image in paths
        self._metadata = [name for name in schema.names if name in METADATA_NAMES]
        names = {self.image, self.caption, *self._metadata, *([self.id] if self.id else [])}
        self.names = sorted(schema.names if column.keeps_rows else names)

    def entry(self, position: str, values: dict[str, Any], images: ImageReader) -> Entry:
        """Return the row at ``position``, which is its id if it has no other."""
        image, caption = values[self.image], values[self.caption]
        path = image.get("path") if isinstance(image, dict) else image if self.is_path else None
        data = image.get("bytes") if isinstance(image, dict) else None if self.is_path else image
        name = values[self.id] if self.id else path if self.is_path else None
        origin = position if name in (None, b"") else _escape_name(name)
        # Rows of one image are several samples, unless they have ids.
        identity = b"" if self.id or not self.is_path else f"{origin}\0{caption}".encode()
        row = values if self._column.keeps_rows else None
        return Entry(origin, partial(self._load, path, data, values, images), identity, row)

    def _load(
        self, path: bytes | None, data: bytes | None, values: dict[str, Any], images: ImageReader
    ) -> RawPair:
        name = os.fsdecode(path or b"")
        if data is None and not name:
            raise BadSampleError(
                BadSampleReason.MISSING_IMAGE, f"the row has no {self._column.role}"
            )
        caption = values[self.caption]
        texts = [text for text in (caption if self.has_lists else [caption]) or [] if text]
        if not texts:
            if caption is None or caption in ([], [None]):
                raise BadSampleError(BadSampleReason.MISSING_CAPTION, "the row's caption is null")
            raise BadSampleError(BadSampleReason.EMPTY_CAPTION, "the row's caption is empty")
        data = images.read(name) if data is None else data
        rows = {}
        if self.has_lists:
            try:
                rows = {LAYER: caption_row(text.decode() for text in texts)}
            except UnicodeDecodeError as error:
                raise BadSampleError(BadSampleReason.CAPTION_NOT_UTF8, str(error)) from error
            texts = [text for text in texts if has_text(text)] or texts
        metadata = sample_metadata({name: values[name] for name in self._metadata})
        return RawPair(data, image_suffix(name, data), texts[0], rows, metadata)


def layers_of(columns: Iterable[RowColumns]) -> tuple[str, ...]:
    """Return the layers of a source with these columns: one if any lists captions."""
    return (LAYER,) if any(each.has_lists for each in columns) else ()


def _file_columns(path: Path, **options: Any) -> RowColumns:
    """Return the columns of a Parquet file; files of one source may differ in them."""
    try:
        return RowColumns(read_schema(path), **options)
    except SourceError as error:
        raise SourceError(
            f"{path}: {error.what}", expected=error.expected, action=error.action
        ) from error


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
    """The type with all text in it as bytes, and neither views nor dictionaries."""
    if pa.types.is_dictionary(kind):
        return _as_bytes(kind.value_type)
    if _is_texts(kind):
        return pa.list_(_as_bytes(kind.value_type))
    if _is_text(kind) or _is_binary(kind):
        is_large = pa.types.is_large_string(kind) or pa.types.is_large_binary(kind)
        return pa.large_binary() if is_large else pa.binary()
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
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    # A column of nothing but nulls has no type of its own.
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_null(kind)
    )


def _is_texts(kind: pa.DataType) -> bool:
    is_list = (
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )
    return bool(is_list and _is_text(kind.value_type))


def _is_binary(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_binary(kind.value_type)
    return bool(
        pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
    )


def _is_image_struct(kind: pa.DataType) -> bool:
    return bool(pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0)


def hugging_face_source(
    path: str,
    *,
    image: str = "",
    caption: str = "",
    id: str = "",  # noqa: A002  # the option's name in a source spec
    split: str = "",
) -> Source:
    """The dataset in a folder, whichever of its formats it has; ``split``: only that one."""
    options: dict[str, Any] = {"image": image, "caption": caption, "id": id}
    if any(Path(path).rglob("*.arrow")):
        return ArrowSource(path, **options, split=split)
    return ParquetSource(path, **options, split=split, kind="hf")


def _split_files(base: Path, files: list[Path], split: str) -> list[Path]:
    """Return the files of a split: those in a folder of its name, or named ``SPLIT-00000-of-...``.

    Raises SourceError, which lists the splits, if there is none.
    """
    names = {file: _split_name(file.relative_to(base)) for file in files}
    chosen = [file for file in files if not split or names[file] == split]
    if not chosen:
        raise SourceError(
            f"{base} has no split {split}",
            expected=f"one of {', '.join(sorted(set(names.values())))}",
            action="correct `split=` in the source, or leave it out to read all",
        )
    return chosen


def _split_name(path: Path) -> str:
    folder = path.parent.name
    if folder and folder != "data":
        return folder
    return path.stem.partition("-")[0]


class ArrowSource(Source):
    """The rows of Arrow files: images as bytes, or as the struct of bytes and path."""

    def __init__(
        self,
        path: str,
        *,
        image: str = "",
        caption: str = "",
        id: str = "",  # noqa: A002  # the option's name in a source spec
        split: str = "",
    ) -> None:
        """``image``, ``caption``, ``id``: names of columns; ``split``: only that one's files."""
        base, files = matching_files(path, (".arrow",))
        # Caches of earlier transformations lie beside the data.
        files = [file for file in files if not file.name.startswith("cache-")]
        files = _split_files(base, files, split)
        self._files = relative_names(base, files)
        self._columns = {}
        for name, file in self._files.items():
            with _Table(file) as table:
                self._columns[name] = RowColumns(table.schema, image=image, caption=caption, id=id)
        self.layers = layers_of(self._columns.values())
        self._images = ImageFiles(str(base))
        options = {"image": image, "caption": caption, "id": id, "split": split}
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
        columns = self._columns[split.piece]
        with _Table(self._files[split.piece]) as table:
            batches = (batch.select(columns.names) for batch in table.batches())
            for row, values in rows_between(batches, 0, split.start, split.stop, split.piece):
                yield columns.entry(f"{split.piece}#{row}", values, self._images)


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
