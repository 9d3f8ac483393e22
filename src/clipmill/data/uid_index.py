"""Uids that occur twice in a dataset, found in eight bytes a sample."""

import hashlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray


class UidIndex:
    """Short hashes of the uids of each shard."""

    def __init__(self) -> None:
        self._hashes: dict[int, NDArray[np.uint64]] = {}

    def add(self, shard_index: int, uids: Sequence[str]) -> None:
        """Take the uids of one shard."""
        short = (hashlib.blake2b(uid.encode(), digest_size=8).digest() for uid in uids)
        self._hashes[shard_index] = np.frombuffer(b"".join(short), np.uint64)

    def doubled(self, read_uids: Callable[[int], Sequence[str]]) -> Iterator[tuple[str, list[int]]]:
        """Yield each uid that occurs twice or more, with the shard of each occurrence.

        ``read_uids`` reads the uids of a shard again, for the few shards where hashes meet.
        """
        if not self._hashes:
            return
        hashes, counts = np.unique(np.concatenate([*self._hashes.values()]), return_counts=True)
        met = hashes[counts > 1]
        places: dict[str, list[int]] = {}
        if len(met):
            for index, own in self._hashes.items():
                rows = np.flatnonzero(np.isin(own, met))
                uids = read_uids(index) if len(rows) else ()
                for row in rows.tolist():
                    places.setdefault(uids[row], []).append(index)
        # Different uids may share a hash.
        yield from ((uid, shards) for uid, shards in places.items() if len(shards) > 1)
