"""Tables of image URLs and captions, whose images are fetched while shards are written.

A row's id is its URL or the column that ``id`` names. Rows whose image can't be had are counted by
reason; those that a later run may fetch make the dataset's retry list (see RETRYABLE).
"""

import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import parse_qsl, quote, urlencode

from clipmill.config import digest_json, sha256_bytes
from clipmill.data.dataset import cache_folder
from clipmill.data.sources.base import (
    URLS,
    Entry,
    FingerprintMode,
    RawPair,
    ReadListing,
    Source,
    Split,
)
from clipmill.data.sources.fetch_config import FetchConfig
from clipmill.data.sources.files import escape_name, matching_files
from clipmill.data.sources.tables import ParquetSource
from clipmill.data.sources.text_tables import DelimitedSource, JsonLinesSource
from clipmill.errors import NotFoundError, SourceError
from clipmill.storage import absolute_uri, atomic_write, split_uri

if TYPE_CHECKING:
    from clipmill.data.sources.fetch import Fetcher
    from clipmill.data.sources.fetch_queue import FetchQueue, Task

_OPENERS: Mapping[str, Callable[..., Any]] = {
    ".csv": partial(DelimitedSource, kind="csv"),
    ".tsv": partial(DelimitedSource, kind="tsv"),
    ".jsonl": JsonLinesSource,
    ".ndjson": JsonLinesSource,
    ".parquet": ParquetSource,
}

_TEXT_ONLY = ("delimiter", "quote")

# Images that wait to be written, besides those in flight.
_MAX_BUFFERED_BYTES = 256 * 2**20


URL_OPTIONS = (
    "url", "caption", "id", *_TEXT_ONLY, *(field.name for field in fields(FetchConfig))
)  # fmt: skip
"""Options that a spec of this kind may give."""


class UrlSource(Source):
    """The rows of tables in one format, each with the URL of its image.

    Opening a split's entries starts to fetch them, in their order.
    """

    num_splits_ahead = 2

    def __init__(self, path: str, **options: str) -> None:
        """``path``: a table, several, or one at ``s3://``; ``options``: see URL_OPTIONS.

        Raises SourceError, ConfigError.
        """
        given = {name: options[name] for name in URL_OPTIONS if options.get(name)}
        columns = {name: given[name] for name in URL_OPTIONS[:5] if name in given}
        limits = [f"{name}={text}" for name, text in given.items() if name not in columns]
        self._config = FetchConfig().override(limits)
        is_remote = "://" in path
        local = _local_copy(path) if is_remote else path
        self._table = _open_table(local, columns)
        self.layers = self._table.layers
        text = urlencode(given, quote_via=quote)
        self.uri = f"urls:{absolute_uri(path)}" + (f"?{text}" if text else "")
        self._salt = [columns, self._config.digest]
        self._fetcher: Fetcher | None = None
        self._queue: FetchQueue | None = None

    def digest(self, mode: FingerprintMode) -> str:
        """SHA-256 (hex) over the tables; what lies at the URLs isn't known."""
        return digest_json([self._table.tables_digest(mode), self._salt])

    def splits(self, size: int, listing: BinaryIO) -> Iterator[Split]:
        """The splits of the tables."""
        yield from self._table.splits(size, listing)

    def entries(self, split: Split, listing: ReadListing) -> Iterator[Entry]:
        """The rows of a range, whose images are fetched from now on."""
        queue = self._start()
        entries = list(self._table.entries(split, listing))
        column = self._table.image_column(split.piece)
        tasks = []
        for entry in entries:
            url = _text((entry.row or {}).get(column))
            tasks.append(queue.submit(_host(url), partial(_load, entry, url)))
        return (
            replace(entry, load=partial(self._result, task))
            for entry, task in zip(entries, tasks, strict=True)
        )

    def _result(self, task: "Task") -> RawPair:
        """Wait for a row's image; entries hold the source by this, which ends the queue."""
        return task.result()

    def close(self) -> None:
        """End all waits for servers."""
        if self._queue is not None and self._fetcher is not None:
            self._fetcher.close()
            self._queue.close()

    def _start(self) -> "FetchQueue":
        if self._queue is None:
            # Its HTTP client costs more than all other imports of sources.
            from clipmill.data.sources.fetch import Fetcher
            from clipmill.data.sources.fetch_queue import FetchQueue

            config = self._config
            self._fetcher = self._table.reader = Fetcher(config)
            self._queue = FetchQueue(config.concurrency, config.per_host, _MAX_BUFFERED_BYTES)
            weakref.finalize(self, self._queue.close)
            weakref.finalize(self, self._fetcher.close)
        return self._queue


def _open_table(path: str, columns: Mapping[str, str]) -> Any:
    """Open the tables of one format at ``path``; raises SourceError."""
    suffixes = tuple(suffix + end for suffix in _OPENERS for end in ("", ".gz"))
    _, files = matching_files(path, suffixes)
    kinds = {_kind(file.name) for file in files}
    if len(kinds) != 1 or not (kind := kinds.pop()):
        raise SourceError(
            f"{path} holds tables of several formats, or of none that is known",
            expected=f"files of one of the formats {', '.join(_OPENERS)}",
            action="name the files: urls:FOLDER/*.parquet",
        )
    options = {name: text for name, text in columns.items() if name != "url"}
    if kind not in (".csv", ".tsv") and (wrong := options.keys() & set(_TEXT_ONLY)):
        raise SourceError(
            f"{', '.join(sorted(wrong))} is no option of a {kind} table",
            expected="delimiter and quote for .csv and .tsv alone",
            action="leave it out",
        )
    return _OPENERS[kind](path, image=columns.get("url", ""), column=URLS, **options)


def _kind(name: str) -> str:
    suffix = Path(name.lower().removesuffix(".gz")).suffix
    return suffix if suffix in _OPENERS else ""


def _local_copy(uri: str) -> str:
    """Return a copy of the table at ``uri`` in the cache, made again where it was written since."""
    store, key = split_uri(uri)
    entry = next((entry for entry in store.entries(key) if entry.key == key), None)
    if entry is None:
        raise NotFoundError(
            f"there is no table {uri}",
            expected="the URI of a .csv, .tsv, .jsonl or .parquet file",
            action="correct the URI of the source",
        )
    name = sha256_bytes(f"{uri}\0{entry.size}\0{entry.modified}".encode())[:32]
    path = cache_folder() / "tables" / name / Path(key).name
    if not path.is_file():
        with atomic_write(path) as temporary:
            store.get_file(key, temporary)
    return str(path)


def _load(entry: Entry, url: str) -> RawPair:
    pair = entry.load()
    # A table's sizes are those of when it was written; the image's own are known now.
    known = {k: v for k, v in pair.metadata.items() if not k.startswith("original_")}
    return replace(pair, metadata=dict(sorted({**known, "url": escape_name(url)}.items())))


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return value if isinstance(value, str) else ""


def _host(url: str) -> str:
    """Return the part of a URL by which requests are limited, whether or not it is valid."""
    return url.partition("://")[2].partition("/")[0].lower()


def retry_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row as JSON can hold it: what isn't UTF-8 escaped, other types as text."""
    return {name: _plain(value) for name, value in row.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, bytes | str):
        return escape_name(_text(value))
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    return str(value)


def retry_spec(source: str, uri: str) -> str:
    """Return the spec by which the retry list at ``uri`` of a source is fetched."""
    options = dict(parse_qsl(source.rpartition("?")[2])) if "?" in source else {}
    text = urlencode(
        {name: text for name, text in options.items() if name not in _TEXT_ONLY}, quote_via=quote
    )
    return f"urls:{uri}" + (f"?{text}" if text else "")
