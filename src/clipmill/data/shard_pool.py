"""The shards that a loader reads from: opened when first needed, a bounded number at once."""

import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from clipmill.data.cache import is_remote, trim
from clipmill.data.layer_map import map_layer
from clipmill.data.reader import ShardReader, read_shard
from clipmill.data.view import ShardView, View
from clipmill.errors import ArtifactError, BadSampleError, ClipmillError


@dataclass(frozen=True, slots=True)
class OpenShard:
    """What is kept of a shard while samples are read from it."""

    reader: ShardReader
    view: ShardView
    """The rows that the view selects, and their captions."""
    teacher: pa.Table | None
    """What teachers made of every row (see ``teacher_rows``)."""


class ShardPool:
    """Up to ``capacity`` open shards of a view; the one used longest ago gives way."""

    def __init__(
        self, view: View, *, teacher: str, cache: Path, cache_bytes: int, capacity: int
    ) -> None:
        """``teacher`` is the name of a teacher layer, or empty."""
        self.is_remote = is_remote(view.dataset.uri)
        self._view = view
        self._teacher = teacher
        self._cache = cache
        self._cache_bytes = cache_bytes
        self._capacity = capacity
        self._open: OrderedDict[int, OpenShard] = OrderedDict()
        self._damaged: dict[int, str] = {}

    def __getitem__(self, index: int) -> OpenShard:
        """Shard ``index``; BadSampleError (``damaged-shard``) if its bytes aren't the listed ones.

        NotFoundError and StorageError are left as they are: they speak of the store, and what
        a working store holds would be found by a later run.
        """
        if index in self._damaged:
            raise BadSampleError("damaged-shard", self._damaged[index])
        if index not in self._open:
            try:
                self._open[index] = self._read(index)
            except ArtifactError as error:
                self._damaged[index] = str(error)
                raise BadSampleError("damaged-shard", self._damaged[index]) from error
            if self.is_remote:
                trim(self._cache, self._cache_bytes)
            if len(self._open) > self._capacity:
                self._open.popitem(last=False)[1].reader.close()
        self._open.move_to_end(index)
        return self._open[index]

    def prefetch(self, shards: Iterable[int]) -> None:
        """Bring shards to the local disk in the background."""
        threading.Thread(target=self._download, args=(list(shards),), daemon=True).start()

    def close(self) -> None:
        """Close all shards."""
        while self._open:
            self._open.popitem()[1].reader.close()

    def _read(self, index: int) -> OpenShard:
        dataset = self._view.dataset
        teacher = map_layer(dataset, self._teacher, index, self._cache) if self._teacher else None
        reader = read_shard(dataset, index, self._cache)
        return OpenShard(reader, self._view.open_shard(index, reader.uids, self._cache), teacher)

    def _download(self, shards: list[int]) -> None:
        for index in shards:
            try:
                self._read(index).reader.close()
            except ClipmillError:  # whoever reads the shard meets it, and reports
                continue
