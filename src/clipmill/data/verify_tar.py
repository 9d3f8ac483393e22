"""What a look into a shard's tar adds to its digest: which samples are gone, moved or broken."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from clipmill.data.shard_tar import index_tar
from clipmill.data.verify_file import Fault
from clipmill.errors import ArtifactError, BadSampleError
from clipmill.images import decode_rgb

# Samples that are named; the others are counted.
_NUM_NAMED = 5


def tar_faults(path: Path, uri: str, uids: Sequence[str] | None, is_damaged: bool) -> list[Fault]:
    """Compare the samples in a tar with the sidecar's uids, if those are known.

    Of a damaged tar the pictures are decoded too, to name those that are broken.
    """
    with path.open("rb") as file:
        try:
            index = index_tar(file)
        except (ArtifactError, ValueError) as error:
            trouble = error.what if isinstance(error, ArtifactError) else str(error)
            return [Fault(uri, f"can't be read as a shard: {trouble.rpartition('shard: ')[2]}")]
        found = [uid.decode("utf-8", "backslashreplace") for uid in index["uid"].tolist()]
        faults = [] if uids is None else order_faults(uri, found, uids)
        if is_damaged and (broken := list(_broken(file, index, found))):
            faults.append(Fault(uri, f"holds pictures that don't decode: {_names(broken)}"))
    return faults


def order_faults(uri: str, found: Sequence[str], expected: Sequence[str]) -> list[Fault]:
    """How a list of uids differs from the shard's: what is lost, foreign, doubled or moved."""
    if list(found) == list(expected):
        return []
    faults = []
    here, listed = Counter(found), set(expected)
    if lost := [uid for uid in expected if uid not in here]:
        faults.append(Fault(uri, f"lacks {_names(lost)}"))
    if foreign := [uid for uid in here if uid not in listed]:
        faults.append(Fault(uri, f"holds {_names(foreign)}, foreign to the shard"))
    if doubled := [uid for uid, count in here.items() if count > 1]:
        faults.append(Fault(uri, f"holds {_names(doubled)} more than once"))
    if not faults:
        pairs = enumerate(zip(found, expected, strict=True))
        row, (uid, other) = next(item for item in pairs if len({*item[1]}) > 1)
        faults.append(Fault(uri, f"is in another order: row {row} is {uid}, and {other} expected"))
    return faults


def _broken(file: BinaryIO, index: NDArray[np.void], uids: Sequence[str]) -> Iterator[str]:
    for uid, (offset, length) in zip(uids, index["image"].tolist(), strict=True):
        file.seek(offset)
        try:
            decode_rgb(file.read(length))
        except BadSampleError:
            yield uid


def _names(uids: Sequence[str]) -> str:
    more = len(uids) - _NUM_NAMED
    noun = "sample" if len(uids) == 1 else "samples"
    return f"{noun} {', '.join(uids[:_NUM_NAMED])}" + (f" and {more:,} more" if more > 0 else "")
