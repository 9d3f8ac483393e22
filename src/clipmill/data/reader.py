"""Random access to the samples of one shard: an index of its tar, and one pread a part."""

import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from clipmill.data.cache import open_copy, owned
from clipmill.data.dataset import Dataset
from clipmill.data.shard_tar import INDEX_DTYPE, index_tar
from clipmill.errors import BadSampleError
from clipmill.storage import replacing


class ShardReader:
    """The samples of an open shard, by row; safe to use from several threads."""

    def __init__(self, file: BinaryIO, index: NDArray[np.void]) -> None:
        self._file = file
        self._index = index

    def __len__(self) -> int:
        return len(self._index)

    @property
    def uids(self) -> list[str]:
        """The uids of all samples, in order."""
        return [uid.decode() for uid in self._index["uid"].tolist()]

    def uid(self, row: int) -> str:
        """The uid of sample ``row``."""
        uid: bytes = self._index["uid"][row]
        return uid.decode()

    def image(self, row: int) -> bytes:
        """The bytes of the image file of sample ``row``."""
        return self._read("image", row)

    def caption(self, row: int) -> str:
        """The real caption of sample ``row``; BadSampleError if it isn't UTF-8 any more."""
        try:
            return self._read("caption", row).decode()
        except UnicodeDecodeError as error:
            raise BadSampleError("caption-not-utf8", str(error)) from error

    def close(self) -> None:
        """Close the file; the reader can't be used any more."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _read(self, part: str, row: int) -> bytes:
        offset, length = self._index[part][row]
        data = os.pread(self._file.fileno(), length, offset)
        if len(data) != length:
            raise BadSampleError("damaged-shard", f"{self._file.name} was cut while it was open")
        return data


def read_shard(dataset: Dataset, index: int, cache: Path) -> ShardReader:
    """Open shard ``index``; a remote one is copied to ``cache`` first, and verified.

    The index of its members is kept in ``cache`` too. Raises ArtifactError if the shard isn't
    the one that the dataset lists, NotFoundError if it's gone.
    """
    sha256 = dataset.shards[index].sha256
    file = open_copy(dataset.shard_uri(index), sha256, cache)
    try:
        return ShardReader(file, _load_index(file, cache / sha256 / "index.npy"))
    except BaseException:
        file.close()
        raise


def every_pair(dataset: Dataset, cache: Path) -> Iterator[tuple[ShardReader, int]]:
    """Each pair of a dataset, in order: the open shard that holds it, and its row."""
    for index in range(len(dataset.shards)):
        with read_shard(dataset, index, cache) as reader:
            for row in range(len(reader)):
                yield reader, row


def _load_index(tar: BinaryIO, path: Path) -> NDArray[np.void]:
    with owned(path.parent):
        try:
            index: NDArray[np.void] = np.load(path, allow_pickle=False)
        except FileNotFoundError:
            index = index_tar(tar)
            with replacing(path) as temporary, temporary.open("wb") as file:
                np.save(file, index, allow_pickle=False)
    assert index.dtype == INDEX_DTYPE, path
    return index
