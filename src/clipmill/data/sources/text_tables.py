"""Tables of images and captions as text: CSV, TSV, JSON Lines, and ``metadata.*`` of imagefolders.

A row has an image's path and a caption. Its id is the path as written or the column that ``id``
names; rows of one image are samples of their own, which the caption tells apart.
"""

import csv
import io
import json
import os
import sys
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, BinaryIO

from clipmill.config import digest_json
from clipmill.data.parallel import OrderedMap, default_threads, ordered_map
from clipmill.data.sources.base import (
    CAPTION_NAMES,
    IMAGE_SUFFIXES,
    LAYER,
    METADATA_NAMES,
    OTHER_IMAGE_SUFFIXES,
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
    PreadFile,
    escape_name,
    files_digest,
    image_suffix,
    images_digest,
    matching_files,
    relative_names,
    uncompressed_file,
)
from clipmill.errors import BadSampleError, BadSampleReason, SourceError

# Python's default limit of 128 KiB a field would end the reading of a table at a giant caption.
_MAX_FIELD_BYTES = 1 << 26

_DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|", "space": " "}

_QUOTES = {"none": "", "double": '"', "single": "'"}

_METADATA_FILES = ("metadata.jsonl", "metadata.csv")

_IMAGES = (*IMAGE_SUFFIXES, *OTHER_IMAGE_SUFFIXES)


class TextTableSource(Source):
    """The rows of one text file or many, each with the path of its image."""

    _kind: str
    _suffixes: tuple[str, ...]

    def __init__(
        self,
        path: str,
        *,
        image: str = "",
        caption: str = "",
        id: str = "",  # noqa: A002  # the option's name in a source spec
        images: str = "",
        column: ImageColumn = PATHS,
        **options: str,
    ) -> None:
        """``image``, ``caption``, ``id``: names of columns; ``images``: see ``ImageFiles``."""
        base, files = matching_files(path, self._suffixes)
        self._column = column
        self._files = relative_names(base, files)
        self._texts = {name: uncompressed_file(file) for name, file in self._files.items()}
        self._images = ImageFiles(images or str(base))
        self.reader: ImageReader = self._images
        named = {"image": image, "caption": caption, "id": id, "images": self._images.base}
        named |= options
        self._salt = repr(sorted(named.items()))
        text = "&".join(f"{key}={value}" for key, value in named.items() if value)
        self.uri = f"{self._kind}:{Path(path).absolute()}?{text}"
        self._columns: dict[str, tuple[str, str, str]] = {}
        self._starts: dict[str, int] = {}
        for name, file in self._texts.items():
            header, self._starts[name] = self._header(file)
            if not header:
                raise SourceError(
                    f"{self._files[name]} is empty",
                    expected="a table whose first row names its columns",
                    action="check the path of the source",
                )
            try:
                image_name = resolve_column(header, image, column.names, column.role, column.option)
                self._columns[name] = (
                    image_name,
                    resolve_column(header, caption, CAPTION_NAMES, "caption", "caption"),
                    resolve_column(header, id, (), "id", "id") if id else image_name,
                )
            except SourceError as error:
                raise SourceError(
                    f"{self._files[name]}: {error.what}",
                    expected=error.expected,
                    action=error.action,
                ) from error

    @abstractmethod
    def _header(self, path: Path) -> tuple[list[str], int]:
        """Return a file's columns, and the position of its first row."""

    @abstractmethod
    def _rows(self, file: BinaryIO, position: int, name: str) -> Iterator[tuple[Any, int]]:
        """Yield each row of a file's range that isn't empty, and the position after it."""

    @abstractmethod
    def _values(self, row: Any, name: str) -> Mapping[str, Any]:
        """Return a row's values by column; raises BadSampleError."""

    def digest(self, mode: FingerprintMode) -> str:
        """SHA-256 (hex) over the tables, and over the local images that they name."""
        with ordered_map(default_threads()) as mapped:
            return self.digest_by(mapped, mode)

    def digest_by(self, mapped: OrderedMap, mode: FingerprintMode) -> str:
        """The same, images read by ``mapped``."""
        tables = files_digest(self._files.items(), mode, self._salt)
        return digest_json([tables, images_digest(self._image_names(), self._images, mapped, mode)])

    def splits(self, size: int, listing: BinaryIO) -> Iterator[Split]:  # noqa: ARG002
        """Read the tables once; a split is a range of bytes, since rows may span lines."""
        for name in self._files:
            start = stop = self._starts[name]
            count = 0
            for _, position in self._all_rows(name):
                stop = position
                count += 1
                if count == size:
                    yield Split(name, start, stop, count)
                    start, count = stop, 0
            if count:
                yield Split(name, start, stop, count)

    def entries(self, split: Split, listing: ReadListing) -> Iterator[Entry]:  # noqa: ARG002
        """The rows of a range."""
        data = PreadFile(self._texts[split.piece]).read(split.start, split.stop - split.start)
        position = split.start
        for row, following in self._rows(io.BytesIO(data), split.start, split.piece):
            yield self._entry(row, split.piece, position)
            position = following

    def tables_digest(self, mode: FingerprintMode) -> str:
        """Return the SHA-256 (hex) over the tables alone."""
        return files_digest(self._files.items(), mode)

    def image_column(self, name: str) -> str:
        """Return the column of a file that names the images."""
        return self._columns[name][0]

    def image_names(self) -> Iterator[str]:
        """Yield the path of each row's image, as written."""
        return self._image_names()

    def _image_names(self) -> Iterator[str]:
        for name in self._files:
            for row, _ in self._all_rows(name):
                try:
                    image = self._values(row, name).get(self._columns[name][0])
                except BadSampleError:
                    continue
                if isinstance(image, str):
                    yield image

    def _all_rows(self, name: str) -> Iterator[tuple[Any, int]]:
        with self._texts[name].open("rb") as file:
            file.seek(self._starts[name])
            yield from self._rows(file, self._starts[name], name)

    def _entry(self, row: Any, name: str, position: int) -> Entry:
        image_name, caption_name, id_name = self._columns[name]
        try:
            values = self._values(row, name)
        except BadSampleError as error:
            return Entry(f"{name}@{position}", partial(_raise, error))
        image, captions = values.get(image_name), values.get(caption_name)
        value = values.get(id_name)
        origin = escape_name(str(image or f"{name}@{position}" if value in (None, "") else value))
        # Rows of one image are several samples, unless they have ids.
        identity = (
            b""
            if id_name != image_name
            else f"{origin}\0{captions}".encode("utf-8", "surrogatepass")
        )
        row = values if self._column.keeps_rows else None
        return Entry(origin, partial(self._load, image, captions, values), identity, row)

    def _load(self, image: Any, captions: Any, values: Mapping[str, Any]) -> RawPair:
        if not isinstance(image, str) or not image:
            raise BadSampleError(
                BadSampleReason.MISSING_IMAGE, f"the row has no {self._column.role}"
            )
        texts = captions if isinstance(captions, list) else [captions]
        texts = [text for text in texts if isinstance(text, str)]
        if not texts:
            raise BadSampleError(
                BadSampleReason.MISSING_CAPTION,
                "the row has no caption"
                if captions is None or captions == []
                else f"the caption is {captions!r:.100}, not text",
            )
        caption = next((text for text in texts if has_text(text)), texts[0])
        data = self.reader.read(image)
        rows = {LAYER: caption_row(texts)} if self.layers else {}
        metadata = sample_metadata(values)
        return RawPair(data, image_suffix(image, data), _bytes(caption), rows, metadata)


class DelimitedSource(TextTableSource):
    """The rows of CSV or TSV files whose first row names the columns.

    Where a row isn't UTF-8 its bytes survive as they are, so that the caption is refused for it.
    """

    _suffixes = (".csv", ".tsv", ".csv.gz", ".tsv.gz")

    def __init__(
        self,
        path: str,
        *,
        image: str = "",
        caption: str = "",
        id: str = "",  # noqa: A002  # the option's name in a source spec
        images: str = "",
        delimiter: str = "",
        quote: str = "",
        kind: str = "csv",
        column: ImageColumn = PATHS,
    ) -> None:
        """``delimiter``: a character or its name; ``quote``: likewise, or ``none``.

        By default a CSV has commas and double quotes, and a TSV tabs and no quotes, as IANA's
        text/tab-separated-values.
        """
        self._kind = kind
        csv.field_size_limit(min(_MAX_FIELD_BYTES, sys.maxsize))
        self._delimiter = _DELIMITERS.get(delimiter, delimiter) or ("\t" if kind == "tsv" else ",")
        quote = quote or ("none" if kind == "tsv" else '"')
        self._quote = _QUOTES.get(quote, quote)
        for option, value in (("delimiter", self._delimiter), ("quote", self._quote or '"')):
            if len(value) != 1 or not value.isascii():
                raise SourceError(
                    f"{option} was {value!r}",
                    expected="one ASCII character, or for `quote` none",
                    action=f"name it in the source: {kind}:PATH?{option}=CHARACTER, where & and # "
                    "are spelled %26 and %23",
                )
        self._headers: dict[Path, list[str]] = {}
        options = {"delimiter": _option(delimiter), "quote": _option(quote)}
        super().__init__(
            path, image=image, caption=caption, id=id, images=images, column=column, **options
        )
        wanted = {column for columns in self._columns.values() for column in columns}
        self._cells = {
            name: {
                column: header.index(column)
                for column in header
                if self._column.keeps_rows or column in wanted or column in METADATA_NAMES
            }
            for name, header in ((n, self._headers[path]) for n, path in self._texts.items())
        }

    def _header(self, path: Path) -> tuple[list[str], int]:
        with path.open("rb") as file:
            header, position = next(self._rows(file, 0, path.name), ([], 0))
        self._headers[path] = [name.removeprefix("\ufeff").strip() for name in header]
        return self._headers[path], position

    def _rows(self, file: BinaryIO, position: int, name: str) -> Iterator[tuple[Any, int]]:
        def lines() -> Iterator[str]:
            nonlocal position
            for line in file:
                position += len(line)
                # A NUL is no character of a caption.
                yield line.decode("utf-8", "surrogateescape").replace("\0", "\ufffd")

        if not self._quote:
            for line in lines():
                if text := line.rstrip("\r\n"):
                    yield text.split(self._delimiter), position
            return
        first = position
        try:
            for row in csv.reader(
                lines(), delimiter=self._delimiter, quotechar=self._quote, strict=True
            ):
                if row:
                    yield row, position
                first = position
        except csv.Error as error:
            raise SourceError(
                f"{name}: the row that begins at byte {first} can't be read: {error}",
                expected=f"rows in which each quote {self._quote} is closed, and doubled within "
                "quotes",
                action=f"correct the row, or read quotes as text: {self._kind}:PATH?quote=none",
            ) from error

    def _values(self, row: Any, name: str) -> Mapping[str, Any]:
        length = len(self._headers[self._texts[name]])
        if len(row) > length and any(row[length:]):
            raise BadSampleError(
                BadSampleReason.DAMAGED_RECORD,
                f"the row has {len(row)} fields and the table {length} columns",
            )
        return {
            column: row[index] for column, index in self._cells[name].items() if index < len(row)
        }


class JsonLinesSource(TextTableSource):
    """The rows of JSON Lines files: an object a line, with the columns as its keys."""

    _kind = "jsonl"
    _suffixes = (".jsonl", ".ndjson", ".jsonl.gz")
    _lists: Sequence[str] = ()

    def __init__(self, path: str, **options: Any) -> None:
        """Options as for tables; where the first row's caption is a list, all are a layer."""
        super().__init__(path, **options)
        if any(caption in self._lists for _, caption, _ in self._columns.values()):
            self.layers = (LAYER,)

    def _header(self, path: Path) -> tuple[list[str], int]:
        with path.open("rb") as file:
            for line, _ in self._rows(file, 0, path.name):
                try:
                    values = self._values(line, path.name)
                except BadSampleError:
                    continue  # counted with the rows
                lists = (name for name, value in values.items() if isinstance(value, list))
                self._lists = (*self._lists, *lists)
                return list(values), 0
        return [], 0

    def _rows(self, file: BinaryIO, position: int, name: str) -> Iterator[tuple[Any, int]]:
        del name
        for line in file:
            position += len(line)
            if line.strip():
                yield line, position

    def _values(self, row: Any, name: str) -> Mapping[str, Any]:
        try:
            value = json.loads(row)
        except ValueError as error:
            raise BadSampleError(BadSampleReason.DAMAGED_RECORD, f"{name}: {error}") from error
        if not isinstance(value, dict):
            raise BadSampleError(BadSampleReason.DAMAGED_RECORD, f"{name}: a line is no object")
        return value


class ImageFolderSource(Source):
    """A Hugging Face imagefolder: images, and files ``metadata.jsonl`` or ``metadata.csv``.

    A metadata file names images relative to its own folder. Images that none names are counted as
    without a caption.
    """

    def __init__(self, path: str, *, image: str = "", caption: str = "", id: str = "") -> None:  # noqa: A002
        """``image``, ``caption``, ``id``: names of columns."""
        self._root = Path(path).absolute()
        _, files = matching_files(path, _METADATA_FILES)
        options: dict[str, Any] = {"image": image, "caption": caption, "id": id}
        self._tables: dict[str, TextTableSource] = {}
        for name, file in relative_names(self._root, [file.absolute() for file in files]).items():
            opener = DelimitedSource if file.suffix == ".csv" else JsonLinesSource
            self._tables[name] = opener(str(file), **options)
        self.layers = tuple({layer for table in self._tables.values() for layer in table.layers})
        text = "&".join(f"{key}={value}" for key, value in options.items() if value)
        self.uri = f"imagefolder:{self._root}" + (f"?{text}" if text else "")

    def digest(self, mode: FingerprintMode) -> str:
        """SHA-256 (hex) over the metadata files and the images."""
        with ordered_map(default_threads()) as mapped:
            return self.digest_by(mapped, mode)

    def digest_by(self, mapped: OrderedMap, mode: FingerprintMode) -> str:
        """The same, images read by ``mapped``."""
        parts = [table.digest_by(mapped, mode) for table in self._tables.values()]
        return digest_json([list(self._tables), parts, self._unnamed])

    def splits(self, size: int, listing: BinaryIO) -> Iterator[Split]:
        """The ranges of each metadata file, then the images that none names."""
        for name, table in self._tables.items():
            for split in table.splits(size, listing):
                yield Split(name, split.start, split.stop, split.num_items)
        unnamed = self._unnamed
        for start in range(0, len(unnamed), size):
            stop = min(start + size, len(unnamed))
            yield Split("", start, stop, stop - start)

    def entries(self, split: Split, listing: ReadListing) -> Iterator[Entry]:
        """The rows of a range, or images without a row."""
        if not split.piece:
            error = BadSampleError(BadSampleReason.MISSING_CAPTION, "no metadata file names it")
            for name in self._unnamed[split.start : split.stop]:
                yield Entry(name, partial(_raise, error))
            return
        folder = split.piece.rpartition("/")[0]
        part = Split(split.piece.rpartition("/")[2], split.start, split.stop, split.num_items)
        for entry in self._tables[split.piece].entries(part, listing):
            if folder:
                identity = entry.identity and f"{folder}/".encode() + entry.identity
                yield Entry(f"{folder}/{entry.origin}", entry.load, identity)
            else:
                yield entry

    @cached_property
    def _unnamed(self) -> list[str]:
        """Names of the images that no metadata file names."""
        named = {
            os.path.normpath(f"{name.rpartition('/')[0]}/{image}".lstrip("/"))
            for name, table in self._tables.items()
            for image in table.image_names()
        }
        base, files = matching_files(str(self._root), (*_IMAGES, *_METADATA_FILES))
        names = (
            name
            for name, file in relative_names(base, files).items()
            if file.suffix.lower() in _IMAGES
        )
        return [name for name in names if name not in named]


def _option(value: str) -> str:
    """Return an option's value as a source spec can hold it."""
    return {"&": "%26", "#": "%23", "+": "%2B", "\t": "tab", " ": "space"}.get(value, value)


def _bytes(text: str) -> bytes:
    """Return text as UTF-8, where it isn't as bytes that aren't either."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


def _raise(error: Exception) -> RawPair:
    raise error
