"""Sorting more records than fit in memory: sorted runs in files, merged."""

import heapq
import itertools
import struct
import tempfile
from collections.abc import Iterable, Iterator
from typing import BinaryIO

# Records held at once; file names make them about 100 bytes each.
RUN_LENGTH = 500_000
_LENGTH = struct.Struct("<I")


def sorted_records(
    records: Iterable[tuple[bytes, ...]], run_length: int = RUN_LENGTH
) -> Iterator[tuple[bytes, ...]]:
    """The records in order, with at most about ``run_length`` of them in memory."""
    iterator = iter(records)
    first = sorted(itertools.islice(iterator, run_length))
    if len(first) < run_length:
        yield from first
        return
    with tempfile.TemporaryFile(prefix="clipmill-sort-") as file:
        bounds = [_spool(file, first)]
        first.clear()
        while run := sorted(itertools.islice(iterator, run_length)):
            bounds.append(_spool(file, run))
            run.clear()
        starts = [0, *bounds[:-1]]
        runs = [_read(file, *span) for span in zip(starts, bounds, strict=True)]
        yield from heapq.merge(*runs)


def _spool(file: BinaryIO, run: list[tuple[bytes, ...]]) -> int:
    for record in run:
        file.write(bytes([len(record)]))
        file.writelines(_LENGTH.pack(len(part)) + part for part in record)
    return file.tell()


def _read(file: BinaryIO, start: int, stop: int) -> Iterator[tuple[bytes, ...]]:
    """Read a run in blocks of its own, since all runs share the file's position."""
    buffer = b""
    position = 0
    while start < stop or position < len(buffer):
        record = _parse(buffer, position)
        if record is None:
            file.seek(start)
            block = file.read(min(1 << 20, stop - start))
            start += len(block)
            buffer, position = buffer[position:] + block, 0
            continue
        parts, position = record
        yield parts


def _parse(buffer: bytes, position: int) -> tuple[tuple[bytes, ...], int] | None:
    """The record at ``position`` and where it ends, or None if the buffer ends before."""
    if position >= len(buffer):
        return None
    parts = []
    count = buffer[position]
    position += 1
    for _ in range(count):
        start = position + _LENGTH.size
        if start > len(buffer):
            return None
        position = start + _LENGTH.unpack_from(buffer, position)[0]
        if position > len(buffer):
            return None
        parts.append(buffer[start:position])
    return tuple(parts), position
