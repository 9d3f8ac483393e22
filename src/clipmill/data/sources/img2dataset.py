"""Output folder of img2dataset: tars, folders or Parquet files, each with its record.

Next to each of its shards are ``NNNNN.parquet`` (one row per URL, with its status) and
``NNNNN_stats.json``. Failed downloads are counted too, so that a dataset reports all losses from
the list of URLs on.
"""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO

import pyarrow.parquet as pq

from clipmill.config import digest_json
from clipmill.data.sources.base import (
    Entry,
    FingerprintMode,
    RawPair,
    ReadListing,
    Source,
    Split,
)
from clipmill.data.sources.files import files_digest, matching_files, read_file, relative_names
from clipmill.data.sources.folder import FolderSource
from clipmill.data.sources.tables import ParquetSource, read_schema
from clipmill.data.sources.webdataset import WebDatasetSource
from clipmill.errors import BadSampleError, BadSampleReason, SourceError

STATS = "_stats.json"
# A piece that begins so is a record of losses rather than of pairs.
_LOSSES = "losses of "
_COLUMNS = ["key", "status", "error_message"]
_OTHER_KIND = "choose another kind of source, such as webdataset: or folder:"


class Img2datasetSource(Source):
    """The pairs of an output folder, and after them what its records say was lost."""

    def __init__(self, path: str) -> None:
        """Raises SourceError if ``path`` isn't such a folder."""
        folder = Path(path).absolute()
        stats = sorted(folder.glob(f"*{STATS}"))
        if not stats:
            raise SourceError(
                f"{folder} is not an output folder of img2dataset",
                expected=f"files NNNNN{STATS}, as it writes beside its shards",
                action=_OTHER_KIND,
            )
        self._stats = relative_names(folder, stats)
        self.uri = f"img2dataset:{folder}"
        self._pairs = _pairs_source(folder)
        self.layers = self._pairs.layers
        self._records = {
            name: folder / name
            for stats_name in self._stats
            if (folder / (name := stats_name.removesuffix(STATS) + ".parquet")).is_file()
        }

    def digest(self, mode: FingerprintMode) -> str:
        """SHA-256 (hex) over the pairs and the records."""
        records = files_digest((self._stats | self._records).items(), mode)
        return digest_json([self._pairs.digest(mode), records])

    def splits(self, size: int, listing: BinaryIO) -> Iterator[Split]:
        """The splits of the pairs, then those of the losses, which the stats count."""
        yield from self._pairs.splits(size, listing)
        if isinstance(self._pairs, ParquetSource):
            return  # its rows without an image are the losses
        for stats_name, path in self._stats.items():
            name = stats_name.removesuffix(STATS) + ".parquet"
            num_lost = _num_lost(path)
            if num_lost and name in self._records:
                num_rows = _num_rows(self._records[name])
                yield Split(f"{_LOSSES}{name}", 0, num_rows, num_lost)

    def entries(self, split: Split, listing: ReadListing) -> Iterator[Entry]:
        """The pairs of a range, or a record's losses."""
        if not split.piece.startswith(_LOSSES):
            yield from self._pairs.entries(split, listing)
            return
        name = split.piece.removeprefix(_LOSSES)
        table = pq.read_table(self._records[name], columns=_COLUMNS, use_threads=False)
        for row in table.slice(split.start, split.stop - split.start).to_pylist():
            if row["status"] != "success":
                yield Entry(f"{name}/{row['key']}", partial(_raise_lost, row))


def _pairs_source(folder: Path) -> Source:
    if any(folder.glob("*.tar")):
        return WebDatasetSource(str(folder / "*.tar"))
    _, files = matching_files(str(folder), (".parquet",))
    if {"jpg", "png", "webp"} & set(read_schema(files[0]).names):
        return ParquetSource(str(folder), id="key")
    return FolderSource(folder, has_records=True)


def _num_lost(stats: Path) -> int:
    try:
        value = json.loads(read_file(stats))
        return int(value["count"]) - int(value["successes"])
    except (ValueError, KeyError, TypeError) as error:
        raise SourceError(
            f"{stats} is no statistics of img2dataset ({error!r})",
            expected="JSON with the numbers 'count' and 'successes'",
            action=_OTHER_KIND,
        ) from error


def _num_rows(record: Path) -> int:
    missing = [name for name in _COLUMNS if name not in read_schema(record).names]
    if missing:
        raise SourceError(
            f"{record} has no column {', '.join(missing)}",
            expected=f"the columns {', '.join(_COLUMNS)}, which img2dataset writes",
            action=_OTHER_KIND,
        )
    return int(pq.read_metadata(record).num_rows)


def _raise_lost(row: dict[str, str | None]) -> RawPair:
    raise BadSampleError(BadSampleReason.NOT_DOWNLOADED, f"{row['status']}: {row['error_message']}")
