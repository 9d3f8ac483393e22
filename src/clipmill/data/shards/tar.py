"""Layout of a shard's tar: plain WebDataset, three members per sample.

``<uid>.jpg`` (the image file as it was, under its own suffix), ``<uid>.txt`` (the real caption,
UTF-8) and ``<uid>.json`` (uid, width, height, origin, and ``metadata`` where the source has any:
see ``METADATA_NAMES``), in this order. Written without tarfile,
which takes 180 us of processor time a pair of 30 KB, hash included, rather than 60.
"""

import hashlib
import json
import tarfile
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from clipmill.config import canonical_json
from clipmill.data.shards.ingest import UID_LENGTH, PreparedPair
from clipmill.errors import ArtifactError

# Where each part of a sample lies in the tar: offset and length in bytes.
INDEX_DTYPE = np.dtype(
    [("uid", f"S{UID_LENGTH}"), ("image", "<i8", (2,)), ("caption", "<i8", (2,))]
)


class TarWriter:
    """Writes pairs as a tar whose bytes depend on them alone, hashed on the way."""

    def __init__(self, file: BinaryIO) -> None:
        """``file``: open for writing, and empty."""
        self._file = file
        self._hash = hashlib.sha256()
        self.num_bytes = 0

    def add(self, pair: PreparedPair) -> None:
        """Append a pair."""
        # The canonical JSON of these fields, in a fraction of the encoder's time.
        metadata = ""
        if pair.metadata:
            metadata = f'"metadata":{canonical_json(dict(pair.metadata))},'
        record = (
            f'{{"height":{pair.height},{metadata}"origin":{json.dumps(pair.origin)},'
            f'"uid":"{pair.uid}","width":{pair.width}}}'
        )
        members = (
            (pair.uid + pair.suffix, pair.image_bytes),
            (f"{pair.uid}.txt", pair.caption.encode()),
            (f"{pair.uid}.json", record.encode()),
        )
        self.append(members)

    def append(self, members: Iterable[tuple[str, bytes]]) -> None:
        """Append members as they are."""
        parts: list[bytes] = []
        for name, data in members:
            parts += _header(name, len(data)), data, bytes(-len(data) % tarfile.BLOCKSIZE)
        self._write(b"".join(parts))

    def finish(self) -> str:
        """Write the end mark, and return the SHA-256 of the tar (hex)."""
        end = self.num_bytes + 2 * tarfile.BLOCKSIZE
        self._write(bytes(end - self.num_bytes + -end % tarfile.RECORDSIZE))
        return self._hash.hexdigest()

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._hash.update(data)
        self.num_bytes += len(data)


def read_members(file: BinaryIO) -> Iterator[tuple[dict[str, Any], list[tuple[str, bytes]]]]:
    """Yield the record of each sample of an open shard, in order, and its members' names and bytes.

    Raises ArtifactError if the tar is cut or isn't laid out as above.
    """
    members: list[tuple[str, bytes]] = []
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                content = tar.extractfile(member)
                if content is None:
                    raise _bad_tar_error(file, f"member {member.name} is no file")
                members.append((member.name, content.read()))
                if len(members) == 3:
                    yield json.loads(members[2][1]), members
                    members = []
    except (tarfile.TarError, OSError, ValueError) as error:
        raise _bad_tar_error(file, str(error)) from error


def index_tar(file: BinaryIO) -> NDArray[np.void]:
    """Return one row of INDEX_DTYPE a sample, in the order of an open tar.

    Raises ArtifactError if the tar is cut or isn't laid out as above.
    """
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            members = tar.getmembers()
    except (tarfile.TarError, OSError) as error:
        raise _bad_tar_error(file, str(error)) from error
    if len(members) % 3:
        raise _bad_tar_error(file, f"{len(members)} members")
    index = np.empty(len(members) // 3, INDEX_DTYPE)
    for row in range(len(index)):
        image, caption, record = members[3 * row : 3 * row + 3]
        uid = image.name.partition(".")[0]
        if caption.name != f"{uid}.txt" or record.name != f"{uid}.json":
            raise _bad_tar_error(file, f"members {image.name}, {caption.name}, {record.name}")
        index[row] = (
            uid.encode(),
            (image.offset_data, image.size),
            (caption.offset_data, caption.size),
        )
    return index


@cache
def _template() -> tuple[bytes, int]:
    """The header of an empty file without a name, and the sum of its bytes but the checksum's."""
    # A fresh TarInfo has zero times, no owner and mode 0644.
    header = tarfile.TarInfo("").tobuf(tarfile.USTAR_FORMAT)
    return header, sum(header) - sum(header[_CHECKSUM])


_NAME, _SIZE, _CHECKSUM = slice(0, 100), slice(124, 136), slice(148, 156)


def _header(name: str, size: int) -> bytes:
    """The header as ``tarfile`` writes it, in a fraction of its time (POSIX ustar)."""
    template, total = _template()
    encoded, octal = name.encode(), b"%011o" % size
    assert len(encoded) <= 100, name
    assert len(octal) == 11, size
    # The checksum is taken with its own field as eight spaces; the template's size is zeros.
    total += sum(encoded) + sum(octal) - 11 * ord("0") + 8 * ord(" ")
    return (
        encoded.ljust(_NAME.stop, b"\0")
        + template[_NAME.stop : _SIZE.start]
        + octal
        + template[_SIZE.stop - 1 : _CHECKSUM.start]
        + b"%06o\0 " % total
        + template[_CHECKSUM.stop :]
    )


def _bad_tar_error(file: BinaryIO, reason: str) -> ArtifactError:
    return ArtifactError(
        f"{file.name} is not a shard: {reason}",
        expected="a whole tar with members <uid>.<image suffix>, <uid>.txt, <uid>.json a sample",
        action="delete the file, and shard the source again",
    )
