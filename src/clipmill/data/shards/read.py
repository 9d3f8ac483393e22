"""Random access to the samples of one shard: an index of its tar, and one pread a part."""

import json
import os
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from clipmill.data.cache import open_copy, pin_entry
from clipmill.data.dataset import Dataset
from clipmill.data.shards.tar import INDEX_DTYPE, index_tar
from clipmill.errors import ArtifactError, BadSampleError, BadSampleReason
from clipmill.storage import atomic_write


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
            raise BadSampleError(BadSampleReason.CAPTION_NOT_UTF8, str(error)) from error

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
            raise BadSampleError(
                BadSampleReason.DAMAGED_SHARD, f"{self._file.name} was cut while it was open"
            )
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


def iter_samples(dataset: Dataset, cache: Path) -> Iterator[tuple[ShardReader, int]]:
    """Each pair of a dataset, in order: the open shard that holds it, and its row."""
    for index in range(len(dataset.shards)):
        with read_shard(dataset, index, cache) as reader:
            for row in range(len(reader)):
                yield reader, row


def _load_index(tar: BinaryIO, path: Path) -> NDArray[np.void]:
    with pin_entry(path.parent):
        try:
            index: NDArray[np.void] = np.load(path, allow_pickle=False)
        except FileNotFoundError:
            index = index_tar(tar)
            with atomic_write(path) as temporary, temporary.open("wb") as file:
                np.save(file, index, allow_pickle=False)
    assert index.dtype == INDEX_DTYPE, path
    return index


@dataclass(frozen=True, slots=True)
class SampleRecord:
    """One sample without the bytes of its image."""

    uid: str
    caption: str
    """The real caption."""
    width: int
    """Pixels of the upright image."""
    height: int
    origin: str
    """Path in the source."""
    suffix: str
    """The image file's suffix, with its dot."""
    image_bytes: int
    """Bytes of the image file."""
    metadata: Mapping[str, str | int] = field(default_factory=dict)
    """Facts from the source: see ``METADATA_NAMES``."""


def read_records(dataset: Dataset, index: int, cache: Path) -> Iterator[SampleRecord]:
    """Yield the records of shard ``index``, in order; images are passed over unread.

    A remote shard is copied to ``cache`` first. Raises ArtifactError if the shard isn't the one
    that the dataset lists, NotFoundError if it's gone.
    """
    with open_copy(dataset.shard_uri(index), dataset.shards[index].sha256, cache) as file:
        yield from parse_records(file)


def parse_records(file: BinaryIO) -> Iterator[SampleRecord]:
    """Yield the records of an open tar; ArtifactError where it's cut or laid out otherwise."""
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            members = iter(tar)
            for image in members:
                caption, record = (_content(tar, next(members, None)) for _ in range(2))
                value = json.loads(record)
                yield SampleRecord(
                    uid=value["uid"],
                    caption=caption.decode(),
                    width=value["width"],
                    height=value["height"],
                    origin=value["origin"],
                    suffix=PurePosixPath(image.name).suffix,
                    image_bytes=image.size,
                    metadata=value.get("metadata", {}),
                )
    except (tarfile.TarError, OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{file.name} is not a shard: {error}",
            expected="a whole tar with an image, a caption and a record a sample",
            action="delete the file, and shard the source again",
        ) from error


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo | None) -> bytes:
    file = tar.extractfile(member) if member else None
    if member is None or file is None:
        raise tarfile.ReadError("it ends within a sample")
    data = file.read()
    if len(data) != member.size:
        raise tarfile.ReadError(f"{member.name} is cut")
    return data
