"""Import a layer from another tool's table: rows that name their samples, in any order.

Rows are spilled to disk by the range of shards that they belong to, then written range by range:
memory holds the hashes of the dataset's identifiers (about 40 bytes each) and one range's rows.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.json as pa_json
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clipmill.config import Config, sha256_file
from clipmill.data.dataset import Dataset, cache_folder
from clipmill.data.join import Identifier, JoinCounts, SampleIndex, other_identifiers
from clipmill.data.layers import commit_layer, embedded_captions, write_layer_shard
from clipmill.data.shards.read import read_shard
from clipmill.errors import ArtifactError, ConfigError, SourceError
from clipmill.lineage import Parent
from clipmill.stage_records import ProgressCallback
from clipmill.storage import split_uri

_MAX_RANGES = 64

# A layer's uids are clipmill's, so that column of a table gets another name.
_SOURCE_UID = "source_uid"

# Columns added to the imported ones: the identifier and the target of each row.
_IDENTIFIER, _SHARD, _ROW = "clipmill identifier", "clipmill shard", "clipmill row"


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportConfig(Config):
    """Mapping of a table's rows to a layer's."""

    RENAMED_FIELDS: ClassVar[Mapping[str, str]] = {
        "missing": "on_missing",
    }

    by: Identifier = "uid"
    """Name of a sample: a uid (clipmill's or the source's), or the source's key or url."""
    uid_column: str = ""
    """The table's column of these identifiers; empty for one of that name."""
    columns: dict[str, str] = field(default_factory=dict)
    """The table's column for each column of the layer; empty for all under their own names, and
    ``uid`` as ``source_uid``."""
    on_missing: Literal["error", "fill"] = "error"
    """Samples missing in the table raise an error, or are filled with null; captions are filled
    with the real one, and ``fallback`` is set."""

    def __post_init__(self) -> None:
        """Refuse a column that each layer has (ConfigError)."""
        if "uid" in self.columns:
            raise ConfigError(
                f"columns was {self.columns}",
                expected="names other than uid, which holds clipmill's uids in a layer",
                action=f"name it otherwise, such as {_SOURCE_UID}={self.columns['uid']}",
            )


def import_layer(
    config: ImportConfig,
    dataset: str,
    layer: str,
    files: Sequence[str],
    *,
    report: ProgressCallback,
) -> JoinCounts:
    """Join the tables at these URIs to the dataset's samples, as a layer of that name.

    Rows of unknown samples are skipped, and so are further rows of a sample; the result and the
    layer's lineage count them, and the samples that were filled. Raises SourceError if a table
    can't be read; ConfigError if no sample has such an identifier; ArtifactError if samples are
    missing, or the rows aren't what the layer's kind holds.
    """
    opened = Dataset.open(dataset)
    total = opened.num_samples
    report(0, total, "reading")
    sample_index = SampleIndex(opened, config.by)
    with (
        tempfile.TemporaryDirectory(prefix="clipmill-import-") as folder,
        closing(_SpillFiles(Path(folder), opened)) as spill,
    ):
        parents = []
        for number, uri in enumerate(files):
            path = download_table(uri, Path(folder) / str(number))
            parents.append(Parent(role="import", uri=uri, digest=sha256_file(path)))
            for batch in read_table(path, uri, config.uid_column or config.by, config.columns):
                typed = _with_embeddings(layer, batch) if layer.startswith("teacher/") else batch
                spill.add(_matched(sample_index, typed), uri)
        counts = sample_index.counts
        if not counts.matched or (counts.missing and config.on_missing == "error"):
            raise ArtifactError(
                f"{counts.missing} of {total} samples aren't in the table, such as "
                f"{sample_index.missing}; {counts.unknown} of its rows are unknown",
                expected="a row for each sample" if counts.matched else "a row for a sample",
                action="complete the table, or fill with --missing fill"
                if counts.matched
                else f"name samples otherwise: {other_identifiers(config.by)}, or --uid-column",
            )
        done = 0
        for index, table in spill.tables():
            write_layer_shard(opened, layer, index, _complete(opened, layer, index, table))
            done += opened.shards[index].num_samples
            report(min(done, total - 1), total, "written")
    detail = {name: str(count) for name, count in asdict(counts).items()}
    parents += embedded_captions(opened, layer)
    commit_layer(opened, layer, parents=tuple(parents), detail=detail)
    report(total, total, "imported")
    return counts


def _matched(index: SampleIndex, batch: pa.Table) -> pa.Table:
    """Return the rows whose samples are known, with their shard and row."""
    rows, positions = index.match(batch[_IDENTIFIER].to_pylist())
    shards, places = index.locate(positions)
    return (
        batch.take(pa.array(rows))
        .drop_columns(_IDENTIFIER)
        .append_column(_SHARD, pa.array(shards))
        .append_column(_ROW, pa.array(places))
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


def _with_embeddings(layer: str, table: pa.Table) -> pa.Table:
    """Return embeddings in the type of a teacher layer: lists of any numbers become it."""
    for position, name in enumerate(table.column_names):
        column = table[name].combine_chunks()
        is_nested = pa.types.is_list(column.type)
        if name not in {"image", "text"} or not is_nested:
            continue
        vectors = column.flatten() if pa.types.is_list(column.type.value_type) else column
        width = pc.max(pc.list_value_length(vectors)).as_py() or 1
        kind = pa.list_(pa.float16(), width)
        try:
            converted = column.cast(kind if vectors is column else pa.list_(kind))
        except pa.ArrowInvalid as error:
            raise ArtifactError(
                f"column {name} of layer {layer} doesn't hold embeddings: {error}",
                expected="lists of numbers, or lists of these, all of one length",
                action="write the table with such a column",
            ) from error
        table = table.set_column(position, name, converted)
    return table


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


_KINDS = ("parquet", "csv", "tsv", "jsonl", "ndjson")
_EXPECTED = "a table in Parquet (.parquet), CSV (.csv), TSV (.tsv) or JSON Lines (.jsonl)"

# Rows of a teacher layer take 200 kB.
_BATCH_ROWS = 4_096


def download_table(uri: str, path: Path) -> Path:
    """Return a local path of the table; a remote one is copied to ``path``, with its own suffix.

    Raises SourceError or NotFoundError if there is none.
    """
    if "://" not in uri:
        if not Path(uri).is_file():
            raise SourceError(
                f"there is no file at {uri}", expected=_EXPECTED, action="correct its path"
            )
        return Path(uri)
    store, key = split_uri(uri)
    copy = path.with_name(path.name + "".join(Path(key).suffixes[-2:]))
    store.get_file(key, copy)
    return copy


def read_table(
    path: Path, uri: str, id_column: str, columns: Mapping[str, str]
) -> Iterator[pa.Table]:
    """Yield the table at ``path`` in batches: identifiers, and the columns mapped by ``columns``.

    Without ``columns`` all columns keep their names. Errors name the table ``uri``. Raises
    SourceError if it can't be read, a column is missing, or identifiers are no strings.
    """
    try:
        for batch in _read(path, uri, id_column):
            yield _renamed(batch, uri, id_column, columns)
    except (OSError, pa.ArrowInvalid) as error:
        raise SourceError(
            f"{uri} can't be read: {error}",
            expected=_EXPECTED,
            action="correct the path, or write the table again",
        ) from error


def _read(path: Path, uri: str, id_column: str) -> Iterator[pa.RecordBatch]:
    kind = next((kind for kind in _KINDS if f".{kind}" in path.suffixes[-2:]), "")
    if kind == "parquet":
        yield from pq.ParquetFile(path).iter_batches(_BATCH_ROWS)
    elif kind in {"csv", "tsv"}:
        yield from pa_csv.open_csv(
            path,
            parse_options=pa_csv.ParseOptions(
                delimiter="," if kind == "csv" else "\t", newlines_in_values=True
            ),
            # Digits alone are an identifier as well.
            convert_options=pa_csv.ConvertOptions(column_types={id_column: pa.string()}),
        )
    elif kind:
        with pa.input_stream(str(path)) as lines:  # which reads gzip too
            yield from pa_json.open_json(lines)
    else:
        raise SourceError(
            f"{uri} is a table of unknown kind",
            expected="a name that ends in .parquet, .csv, .tsv or .jsonl, or one of these and .gz",
            action="convert or rename the table",
        )


def _renamed(
    batch: pa.RecordBatch, uri: str, id_column: str, columns: Mapping[str, str]
) -> pa.Table:
    names = batch.schema.names
    mapping = dict(columns) or {
        _SOURCE_UID if name == "uid" else name: name for name in names if name != id_column
    }
    mapping = {_IDENTIFIER: id_column, **mapping}
    for name in mapping.values():
        if name not in names:
            raise SourceError(
                f"{uri} has no column {name}",
                expected=f"one of its columns: {', '.join(names)}",
                action="name the column of identifiers with --uid-column, others with --column",
            )
    table = pa.table({target: _plain(batch[name]) for target, name in mapping.items()})
    kind = table.schema.field(_IDENTIFIER).type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise SourceError(
            f"column {id_column} of {uri} has type {kind}",
            expected="strings, as the dataset's identifiers are",
            action="name another column with --uid-column, or write it as strings",
        )
    return table


def _plain(column: pa.Array) -> pa.Array:
    """Return text without dictionary or views, from which Arrow doesn't take rows."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.dictionary_decode(), kind.value_type
    return column.cast(pa.string()) if pa.types.is_string_view(kind) else column
