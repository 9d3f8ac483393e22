"""Import a layer from another tool's table: Parquet, CSV or TSV rows with uids, in any order.

Rows are spilled to disk by the range of shards that they belong to, then written range by range:
memory holds the dataset's uids (about 40 bytes each) and one range's rows.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clipmill.config import Config, sha256_file
from clipmill.data.dataset import Dataset, cache_folder
from clipmill.data.layers import commit_layer, write_layer_shard
from clipmill.data.shards.read import read_shard
from clipmill.errors import ArtifactError, SourceError
from clipmill.lineage import Parent
from clipmill.stage_records import ProgressCallback
from clipmill.storage import split_uri

_MAX_RANGES = 64

# Columns added to the imported ones: the target of each row.
_SHARD, _ROW = "clipmill shard", "clipmill row"


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportConfig(Config):
    """Mapping of a table's rows to a layer's."""

    RENAMED_FIELDS: ClassVar[Mapping[str, str]] = {
        "missing": "on_missing",
    }

    uid_column: str = "uid"
    """The table's column with the samples' uids."""
    columns: dict[str, str] = field(default_factory=dict)
    """The table's column for each column of the layer; empty for all under their own names."""
    on_missing: Literal["error", "fill"] = "error"
    """Samples missing in the table raise an error, or are filled with null; captions are filled
    with the real one, and ``fallback`` is set."""


def import_layer(
    config: ImportConfig,
    dataset: str,
    layer: str,
    files: Sequence[str],
    *,
    report: ProgressCallback,
) -> str:
    """Join the tables at these URIs to the dataset's samples by uid, as a layer of that name.

    Rows with unknown uids are skipped; the layer's lineage counts them and the samples that were
    filled. Raises SourceError if a table can't be read, or names a uid
    twice; ArtifactError if samples are missing, or the rows aren't what the layer's kind holds.
    """
    opened = Dataset.open(dataset)
    total = opened.num_samples
    report(0, total, "reading")
    uid_index = _UidIndex(opened)
    with (
        tempfile.TemporaryDirectory(prefix="clipmill-import-") as folder,
        closing(_SpillFiles(Path(folder), opened)) as spill,
    ):
        parents = []
        num_unknown = 0
        for number, uri in enumerate(files):
            path = download_table(uri, Path(folder) / str(number))
            absolute = uri if "://" in uri else str(path.absolute())
            parents.append(Parent(role="import", uri=absolute, digest=sha256_file(path)))
            for batch in read_table(path, uri, config.uid_column, config.columns):
                known = uid_index.locate(batch, uri)
                num_unknown += len(batch) - len(known)
                spill.add(known, uri)
        num_missing = uid_index.num_missing
        if num_missing and config.on_missing == "error":
            raise ArtifactError(
                f"{num_missing} of {total} samples aren't in the table, "
                f"such as {uid_index.missing}",
                expected="a row for each sample",
                action="complete the table, or fill with --missing fill",
            )
        done = 0
        for index, table in spill.tables():
            write_layer_shard(opened, layer, index, _complete(opened, layer, index, table))
            done += opened.shards[index].num_samples
            report(min(done, total - 1), total, "written")
    detail = {"missing": str(num_missing), "unknown": str(num_unknown)}
    commit_layer(opened, layer, parents=tuple(parents), detail=detail)
    report(total, total, "imported")
    return layer


class _UidIndex:
    """Shard and row of each uid of the dataset, and whether a table has had it."""

    def __init__(self, dataset: Dataset) -> None:
        parts = [np.array(dataset.uids(i), dtype=bytes) for i in range(len(dataset.shards))]
        uids = np.concatenate([part for part in parts if len(part)])
        sizes = [shard.num_samples for shard in dataset.shards]
        self._order = np.argsort(uids, kind="stable")
        self._uids = uids[self._order]
        self._shard = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)[self._order]
        self._row = np.concatenate([np.arange(size, dtype=np.int32) for size in sizes])[self._order]
        self._is_found = np.zeros(len(uids), bool)

    @property
    def num_missing(self) -> int:
        """Number of uids that no table has had."""
        return int((~self._is_found).sum())

    @property
    def missing(self) -> str:
        """The first of them, as text."""
        return ", ".join(uid.decode() for uid in self._uids[~self._is_found][:3])

    def locate(self, batch: pa.Table, uri: str) -> pa.Table:
        """Return the rows whose uids are known, with their shard and row."""
        uids = np.array([uid.encode() for uid in batch["uid"].to_pylist()], dtype=bytes)
        index = np.minimum(np.searchsorted(self._uids, uids), len(self._uids) - 1)
        known = np.flatnonzero(self._uids[index] == uids)
        index = index[known]
        _, first = np.unique(index, return_index=True)
        is_duplicate = self._is_found[index]
        is_duplicate[np.setdiff1d(np.arange(len(index)), first)] = True
        if is_duplicate.any():
            uid = self._uids[index[is_duplicate][0]].decode()
            raise SourceError(
                f"uid {uid} is in the table twice, the second time in {uri}",
                expected="one row a sample",
                action="drop one of the rows",
            )
        self._is_found[index] = True
        return (
            batch.take(pa.array(known))
            .drop_columns("uid")
            .append_column(_SHARD, pa.array(self._shard[index]))
            .append_column(_ROW, pa.array(self._row[index]))
        )


class _SpillFiles:
    """Temporary files of rows, one per range of shards."""

    def __init__(self, folder: Path, dataset: Dataset) -> None:
        self._folder = folder
        self._num_shards = len(dataset.shards)
        self._size = -(-self._num_shards // _MAX_RANGES)
        self._writers: dict[int, Any] = {}
        self._schema: pa.Schema | None = None
        self._rows = [shard.num_samples for shard in dataset.shards]

    def close(self) -> None:
        """Close the files for writing."""
        for writer in self._writers.values():
            writer.close()

    def add(self, table: pa.Table, uri: str) -> None:
        """Write rows to the files of their ranges."""
        self._schema = self._schema or table.schema
        try:
            table = table.select(self._schema.names).cast(self._schema)
        except (KeyError, pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise SourceError(
                f"{uri} has other columns than the table before it: {error}",
                expected=f"columns {self._schema}",
                action="pass tables with equal columns and types",
            ) from error
        ranges = table[_SHARD].to_numpy() // self._size
        for number in np.unique(ranges).tolist():
            if number not in self._writers:
                path = str(self._folder / f"range-{number}.arrow")
                self._writers[number] = pa.ipc.new_stream(path, self._schema)
            self._writers[number].write_table(table.filter(pa.array(ranges == number)))

    def tables(self) -> Iterator[tuple[int, pa.Table]]:
        """Yield the rows of each shard in its order, null for missing ones."""
        self.close()
        if self._schema is None:
            return
        for start in range(0, self._num_shards, self._size):
            path = self._folder / f"range-{start // self._size}.arrow"
            table = self._schema.empty_table()
            if path.exists():
                with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as stream:
                    table = stream.read_all().combine_chunks()
            shards = table[_SHARD].to_numpy()
            for index in range(start, min(start + self._size, self._num_shards)):
                positions = np.flatnonzero(shards == index)
                rows = table[_ROW].to_numpy()[positions]
                source = np.zeros(self._rows[index], np.int64)
                is_missing = np.ones(self._rows[index], bool)
                source[rows], is_missing[rows] = positions, False
                yield (
                    index,
                    table.take(pa.array(source, mask=is_missing)).drop_columns([_SHARD, _ROW]),
                )


def _complete(dataset: Dataset, layer: str, index: int, table: pa.Table) -> pa.Table:
    """Return a shard's rows with uids, and captions as lists."""
    if layer.startswith("captions/") and "captions" in table.column_names:
        table = _with_captions(dataset, index, table)
    return table.add_column(0, "uid", pa.array(dataset.uids(index), pa.string()))


def _with_captions(dataset: Dataset, index: int, table: pa.Table) -> pa.Table:
    column = table["captions"].combine_chunks()
    is_missing: NDArray[np.bool_] = column.is_null().to_numpy(zero_copy_only=False)
    texts = [[text] if isinstance(text, str) else text for text in column.to_pylist()]
    if is_missing.any():
        with read_shard(dataset, index, cache_folder()) as reader:
            for row in np.flatnonzero(is_missing).tolist():
                texts[row] = [reader.caption(row)]
    position = table.column_names.index("captions")
    table = table.set_column(position, "captions", pa.array(texts, pa.list_(pa.string())))
    fallback = pa.array(is_missing)
    if "fallback" not in table.column_names:
        return table.append_column("fallback", fallback)
    position = table.column_names.index("fallback")
    either = pc.or_(table["fallback"].combine_chunks().fill_null(False), fallback)
    return table.set_column(position, "fallback", either)


_DELIMITERS = {".csv": ",", ".tsv": "\t"}

_BATCH_ROWS = 65_536


def download_table(uri: str, path: Path) -> Path:
    """Return a local path of the table; a remote one is copied to ``path``, with its own suffix.

    Raises SourceError or NotFoundError if there is none.
    """
    if "://" not in uri:
        if not Path(uri).is_file():
            raise SourceError(
                f"there is no file at {uri}",
                expected="a table in Parquet, CSV (.csv) or TSV (.tsv)",
                action="correct its path",
            )
        return Path(uri)
    store, key = split_uri(uri)
    copy = path.with_suffix(Path(key).suffix)
    store.get_file(key, copy)
    return copy


def read_table(
    path: Path, uri: str, uid_column: str, columns: Mapping[str, str]
) -> Iterator[pa.Table]:
    """Yield the table at ``path`` in batches: ``uid``, and the columns mapped by ``columns``.

    Without ``columns`` all columns keep their names. Errors name the table ``uri``. Raises
    SourceError if it can't be read, a column is missing, or uids are no strings.
    """
    try:
        for batch in _read(path, uri, uid_column):
            yield _renamed(batch, uri, uid_column, columns)
    except (OSError, pa.ArrowInvalid) as error:
        raise SourceError(
            f"{uri} can't be read: {error}",
            expected="a table in Parquet, CSV (.csv) or TSV (.tsv)",
            action="correct the path, or write the table again",
        ) from error


def _read(path: Path, uri: str, uid_column: str) -> Iterator[pa.RecordBatch]:
    if path.suffix == ".parquet":
        yield from pq.ParquetFile(path).iter_batches(_BATCH_ROWS)
    elif path.suffix in _DELIMITERS:
        yield from pa_csv.open_csv(
            path,
            parse_options=pa_csv.ParseOptions(
                delimiter=_DELIMITERS[path.suffix], newlines_in_values=True
            ),
            # Digits alone are a uid as well.
            convert_options=pa_csv.ConvertOptions(column_types={uid_column: pa.string()}),
        )
    else:
        raise SourceError(
            f"{uri} is a table of unknown kind",
            expected="a name that ends in .parquet, .csv or .tsv",
            action="convert or rename the table",
        )


def _renamed(
    batch: pa.RecordBatch, uri: str, uid_column: str, columns: Mapping[str, str]
) -> pa.Table:
    names = batch.schema.names
    mapping = dict(columns) or {name: name for name in names if name != uid_column}
    mapping = {"uid": uid_column, **mapping}
    for name in mapping.values():
        if name not in names:
            raise SourceError(
                f"{uri} has no column {name}",
                expected=f"one of its columns: {', '.join(names)}",
                action="correct the name of the column",
            )
    uids = batch[uid_column]
    if not (pa.types.is_string(uids.type) or pa.types.is_large_string(uids.type)):
        raise SourceError(
            f"column {uid_column} of {uri} has type {uids.type}",
            expected="strings, as the dataset's uids are",
            action="name the column of uids with --uid-column",
        )
    if uids.null_count:
        raise SourceError(
            f"column {uid_column} of {uri} has rows without a uid",
            expected="a uid in each row",
            action="drop these rows",
        )
    return pa.table({target: batch[name] for target, name in mapping.items()})
