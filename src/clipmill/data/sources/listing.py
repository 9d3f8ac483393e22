"""A source's items as lines of JSON, cut into splits by byte ranges."""

import json
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

from clipmill.data.sources.contract import ReadListing, Split

LISTING = "listing"


def write_listing(items: Iterable[list[Any]], size: int, listing: BinaryIO) -> Iterator[Split]:
    """Write each item as a line, and yield a split every ``size`` items."""
    encode = json.JSONEncoder(separators=(",", ":")).encode
    start = position = count = 0
    for item in items:
        position += listing.write(encode(item).encode() + b"\n")
        count += 1
        if count == size:
            yield Split(LISTING, start, position, count)
            start, count = position, 0
    if count:
        yield Split(LISTING, start, position, count)


def read_listing(split: Split, listing: ReadListing) -> list[list[Any]]:
    """The items of a split."""
    lines = listing(split.start, split.stop - split.start).splitlines()
    assert len(lines) == split.num_items, split
    return [json.loads(line) for line in lines]
