"""How a shard lies in its tar: plain WebDataset, three members a sample.

``<uid>.jpg`` (the image file as it was, under its own suffix), ``<uid>.txt`` (the real caption,
UTF-8) and ``<uid>.json`` (uid, width, height, origin), in this order.
"""

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from clipmill.data.sources import UID_LENGTH, Pair
from clipmill.digest import canonical_json
from clipmill.errors import ArtifactError

# Where each part of a sample lies in the tar: offset and length in bytes.
INDEX_DTYPE = np.dtype(
    [("uid", f"S{UID_LENGTH}"), ("image", "<i8", (2,)), ("caption", "<i8", (2,))]
)


def write_tar(path: Path, pairs: Iterable[Pair]) -> list[str]:
    """Write the pairs as a tar whose bytes depend on them alone, and return their uids."""
    uids = []
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for pair in pairs:
            record = {
                "uid": pair.uid,
                "width": pair.width,
                "height": pair.height,
                "origin": pair.origin,
            }
            _add(tar, pair.uid + pair.suffix, pair.image_bytes)
            _add(tar, f"{pair.uid}.txt", pair.caption.encode())
            _add(tar, f"{pair.uid}.json", canonical_json(record).encode())
            uids.append(pair.uid)
    return uids


def index_tar(file: BinaryIO) -> NDArray[np.void]:
    """Return one row of INDEX_DTYPE a sample, in the order of an open tar.

    Raises ArtifactError if the tar is cut or isn't laid out as above.
    """
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            members = tar.getmembers()
    except (tarfile.TarError, OSError) as error:
        raise _foreign(file, str(error)) from error
    if len(members) % 3:
        raise _foreign(file, f"{len(members)} members")
    index = np.empty(len(members) // 3, INDEX_DTYPE)
    for row in range(len(index)):
        image, caption, record = members[3 * row : 3 * row + 3]
        uid = image.name.partition(".")[0]
        if caption.name != f"{uid}.txt" or record.name != f"{uid}.json":
            raise _foreign(file, f"members {image.name}, {caption.name}, {record.name}")
        index[row] = (
            uid.encode(),
            (image.offset_data, image.size),
            (caption.offset_data, caption.size),
        )
    return index


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    # A fresh TarInfo has zero times, no owner and mode 0644.
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _foreign(file: BinaryIO, trouble: str) -> ArtifactError:
    return ArtifactError(
        f"{file.name} is not a shard: {trouble}",
        expected="a whole tar with members <uid>.<image suffix>, <uid>.txt, <uid>.json a sample",
        action="delete the file, and shard the source again",
    )
