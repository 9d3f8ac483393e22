"""A Hugging Face datasets folder: Parquet files, or the Arrow files of ``save_to_disk``."""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Self

import pyarrow as pa

from clipmill.data.sources.base import Entry, FingerprintMode, ReadListing, Source, Split
from clipmill.data.sources.files import ImageFiles, files_digest, matching_files, relative_names
from clipmill.data.sources.parquet import ParquetSource, RowColumns, rows_between
from clipmill.errors import SourceError


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
