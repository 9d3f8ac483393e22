"""Reading a source the way that shards are made from it: planned, then split by split."""

import io

from clipmill.data.sources import Entry, Source, Split


def plan(source: Source, size: int) -> tuple[list[Split], bytes]:
    """The splits of ``size`` items, and the listing they may speak of."""
    listing = io.BytesIO()
    splits = list(source.splits(size, listing))
    return splits, listing.getvalue()


def read_all(source: Source, size: int = 1000) -> list[Entry]:
    """All entries, in order."""
    splits, listing = plan(source, size)
    entries = []
    for split in splits:
        found = list(source.entries(split, lambda start, length: listing[start : start + length]))
        assert len(found) == split.num_items
        entries += found
    return entries
