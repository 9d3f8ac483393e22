"""Sorting more records than fit in memory: sorted runs in a file, merged."""

import heapq
import itertools
import marshal
import os
import struct
import tempfile
from collections.abc import Iterable, Iterator
from typing import BinaryIO

Record = tuple[bytes, ...]

# Records held at once; file names make them about 100 bytes each.
RUN_LENGTH = 500_000
# Records of a run that are held while runs are merged.
_BLOCK_LENGTH = 1024
_SIZE = struct.Struct("<I")


def sorted_records(records: Iterable[Record], run_length: int = RUN_LENGTH) -> Iterator[Record]:
    """The records in order, with at most about ``run_length`` of them in memory."""
    iterator = iter(records)
    first = sorted(itertools.islice(iterator, run_length))
    if len(first) < run_length:
        yield from first
        return
    with tempfile.TemporaryFile(prefix="clipmill-sort-") as file:
        stops = [_spool(file, first)]
        first.clear()
        while run := sorted(itertools.islice(iterator, run_length)):
            stops.append(_spool(file, run))
            run.clear()
        starts = [0, *stops[:-1]]
        runs = [_read(file.fileno(), *span) for span in zip(starts, stops, strict=True)]
        yield from heapq.merge(*runs)


def _spool(file: BinaryIO, run: list[Record]) -> int:
    """Append a run block by block, and return where it ends."""
    for start in range(0, len(run), _BLOCK_LENGTH):
        block = marshal.dumps(run[start : start + _BLOCK_LENGTH])
        file.write(_SIZE.pack(len(block)) + block)
    file.flush()
    return file.tell()


def _read(file: int, start: int, stop: int) -> Iterator[Record]:
    while start < stop:
        (size,) = _SIZE.unpack(os.pread(file, _SIZE.size, start))
        block = os.pread(file, size, start + _SIZE.size)
        # Nobody else can write this file: it has no name.
        yield from marshal.loads(block)  # noqa: S302
        start += _SIZE.size + size
