"""What a shard says of its samples beside their pictures: captions and records, in order."""

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from clipmill.data.cache import open_copy
from clipmill.data.dataset import Dataset
from clipmill.errors import ArtifactError


@dataclass(frozen=True, slots=True)
class SampleRecord:
    """One sample without the bytes of its picture."""

    uid: str
    caption: str
    """The real caption."""
    width: int
    """Pixels of the upright picture."""
    height: int
    origin: str
    """Where the source had it."""
    suffix: str
    """The image file's suffix, with its dot."""
    image_bytes: int
    """Bytes of the image file."""


def read_records(dataset: Dataset, index: int, cache: Path) -> Iterator[SampleRecord]:
    """Yield the records of shard ``index``, in order; pictures are passed over unread.

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
