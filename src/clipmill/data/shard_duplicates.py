"""Which samples double another, over any number of shards, in bounded memory.

Fingerprints are divided over files by their first bits, so that equal ones meet in one file and
each file fits in memory. Of equal samples the first in the dataset's order counts as the original,
so the answer doesn't depend on who made which shard, or when.
"""

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

# One sample: half a SHA-256 of its id, and one of its image's bytes.
FINGERPRINT = np.dtype([("id", "<u8", (2,)), ("image", "<u8", (2,))])
_SPILLED = np.dtype([("high", "<u8"), ("low", "<u8"), ("position", "<i8")])
# Each sample has a row for its id and one for its image.
BYTES_SPILLED_PER_SAMPLE = 2 * _SPILLED.itemsize
_ROWS_PER_FILE = 1_000_000
_MOST_FILES = 512


@dataclass(frozen=True, slots=True)
class Duplicates:
    """The samples that double an earlier one, in order of their positions in the dataset."""

    positions: NDArray[np.int64]
    originals: NDArray[np.int64]
    """For each, the position of the sample that it doubles."""
    same_id: NDArray[np.bool_]
    """For each, whether the id is the same; else the image's bytes are."""


def find_duplicates(shards: Iterable[NDArray[np.void]], num_samples: int) -> Duplicates:
    """Compare all samples; ``shards`` yields arrays of FINGERPRINT in the dataset's order.

    A sample whose id an earlier one has is no original for others' images.
    """
    num_files = min(_MOST_FILES, 1 << max(0, (num_samples // _ROWS_PER_FILE).bit_length()))
    is_double = np.zeros(num_samples, np.bool_)
    with tempfile.TemporaryDirectory(prefix="clipmill-duplicates-") as folder:
        ids, images = (Path(folder) / name for name in ("id", "image"))
        _spill(shards, {"id": ids, "image": images}, num_files)
        same_ids = _doubles(ids, num_files, is_double)
        for positions, _ in same_ids:
            is_double[positions] = True
        same_images = _doubles(images, num_files, is_double)
    positions = _joined([found for found, _ in same_ids + same_images])
    originals = _joined([original for _, original in same_ids + same_images])
    num_same_ids = sum(len(found) for found, _ in same_ids)
    order = np.argsort(positions)
    return Duplicates(positions[order], originals[order], (order < num_same_ids))


def _spill(shards: Iterable[NDArray[np.void]], folders: dict[str, Path], num_files: int) -> None:
    shift = np.uint64(64 - (num_files - 1).bit_length())
    with ExitStack() as stack:
        files: dict[str, list[BinaryIO]] = {}
        for name, folder in folders.items():
            folder.mkdir()
            files[name] = [
                stack.enter_context((folder / str(i)).open("wb")) for i in range(num_files)
            ]
        start = 0
        for shard in shards:
            for name in folders:
                rows = np.empty(len(shard), _SPILLED)
                rows["high"], rows["low"] = shard[name][:, 0], shard[name][:, 1]
                rows["position"] = np.arange(start, start + len(shard))
                numbers = rows["high"] >> shift if num_files > 1 else np.zeros(len(rows), np.uint64)
                for number in np.unique(numbers):
                    files[name][int(number)].write(rows[numbers == number].tobytes())
            start += len(shard)


def _doubles(
    folder: Path, num_files: int, left_out: NDArray[np.bool_]
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    return list(_doubles_by_file(folder, num_files, left_out))


def _doubles_by_file(
    folder: Path, num_files: int, left_out: NDArray[np.bool_]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Positions of doubles, and of the first sample equal to each, one file after the other."""
    for number in range(num_files):
        rows = np.fromfile(folder / str(number), _SPILLED)
        rows = rows[~left_out[rows["position"]]]
        rows = rows[np.lexsort((rows["position"], rows["low"], rows["high"]))]
        same = (rows["high"][1:] == rows["high"][:-1]) & (rows["low"][1:] == rows["low"][:-1])
        # The first of a run of equal rows is where the last change was.
        first = (
            np.maximum.accumulate(np.where(np.r_[True, ~same], np.arange(len(rows)), 0))
            if (len(rows))
            else np.empty(0, np.int64)
        )
        doubled = np.flatnonzero(np.r_[False, same]) if len(rows) else np.empty(0, np.int64)
        yield rows["position"][doubled], rows["position"][first[doubled]]


def _joined(parts: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.concatenate(parts) if parts else np.empty(0, np.int64)
