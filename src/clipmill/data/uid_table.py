"""Tables of other tools, read in pieces: Parquet, CSV or TSV, a row a sample, with its uid."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from clipmill.errors import SourceError
from clipmill.storage import split_uri

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_BATCH_ROWS = 65_536


def local_table(uri: str, path: Path) -> Path:
    """The table as a local file; a remote one is copied to ``path``, under its own suffix.

    Raises SourceError, or NotFoundError, if nothing lies there.
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
    """Pieces of the table at ``path``: ``uid``, and its column for each name in ``columns``.

    Without ``columns`` all come under their own names. ``uri`` is what errors call it. Raises
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
    own = {name: name for name in names if name != uid_column}
    wanted = {"uid": uid_column} | dict(columns or own)
    for name in wanted.values():
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
    return pa.table({ours: batch[theirs] for ours, theirs in wanted.items()})
