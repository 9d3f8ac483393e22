"""Samples of a dataset by an identifier: clipmill's uid, or the uid, key or url of its source."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import PurePosixPath
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from clipmill.data.dataset import Dataset, cache_folder
from clipmill.data.shards.read import SampleRecord, read_records
from clipmill.errors import ConfigError

Identifier = Literal["uid", "key", "url"]

IDENTIFIERS: Final[tuple[Identifier, ...]] = ("uid", "key", "url")

# Half a SHA-256, so that a url takes no more memory than a key.
_HASH = np.dtype("S16")


@dataclass(frozen=True, kw_only=True, slots=True)
class JoinCounts:
    """Result of joining rows to the samples of a dataset."""

    matched: int
    """Samples that have a row."""
    missing: int
    """Samples that have none."""
    unknown: int
    """Rows that no sample has the identifier of."""
    duplicate: int
    """Rows whose samples have an earlier row, which is the one that counts."""

    def __str__(self) -> str:
        """One line for people."""
        return (
            f"{self.matched:,} samples matched, {self.missing:,} missing; "
            f"{self.unknown:,} rows unknown, {self.duplicate:,} duplicate"
        )


def other_identifiers(by: Identifier) -> str:
    """Return the options to join by another identifier, as text."""
    return " or ".join(f"--by {name}" for name in IDENTIFIERS if name != by)


class SampleIndex:
    """The samples of a dataset by an identifier, and which of them have been matched.

    By ``uid``, clipmill's own is looked for first; if the first rows have none of those, the uids
    that the source's records hold are read too. ``key`` is the one of the source's record, or else
    the name of the sample's file without folder and suffix. Several samples may have the same one.
    """

    def __init__(self, dataset: Dataset, by: Identifier) -> None:
        """Read the identifiers; raises ConfigError if no sample has one."""
        self._dataset = dataset
        sizes = [shard.num_samples for shard in dataset.shards]
        self._starts = np.array([0, *accumulate(sizes)], np.int64)
        self._is_matched = np.zeros(int(self._starts[-1]), bool)
        self._num_unknown = self._num_duplicate = 0
        self._has_source_uids = by != "uid"
        if by == "uid":
            uids = (uid for index in range(len(sizes)) for uid in dataset.uids(index))
            self._set(_hashes(uids), np.arange(len(self._is_matched)))
            return
        self._set(*self._read_identifiers(by))
        if not len(self._hashes):
            raise ConfigError(
                f"no sample of {dataset.uri} has a {by}",
                expected=f"samples of a source that names a {by} for each",
                action=f"join with {other_identifiers(by)}, or shard a source with a column or a "
                f"json field {by}",
            )

    @property
    def counts(self) -> JoinCounts:
        """Counts of matches so far."""
        matched = int(self._is_matched.sum())
        return JoinCounts(
            matched=matched,
            missing=len(self._is_matched) - matched,
            unknown=self._num_unknown,
            duplicate=self._num_duplicate,
        )

    @property
    def missing(self) -> str:
        """The first uids of samples that aren't matched, as text."""
        shards, rows = self.locate(np.flatnonzero(~self._is_matched)[:3])
        pairs = zip(shards.tolist(), rows.tolist(), strict=True)
        return ", ".join(self._dataset.uids(shard)[row] for shard, row in pairs)

    def match(self, values: Sequence[str | None]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Match rows with these identifiers to samples that have no row yet.

        Returns a row and the position of a sample in the dataset for each pair; null is unknown.
        """
        hashes = _hashes(value or "" for value in values)
        first, last = self._find(hashes)
        is_any_known = self._is_matched.any() or (first < last).any()
        if not (self._has_source_uids or is_any_known):
            self._add_source_uids()
            first, last = self._find(hashes)
        is_unknown = (first == last) | np.array([not value for value in values], bool)
        counts = np.where(is_unknown, 0, last - first)
        rows = np.repeat(np.arange(len(hashes)), counts)
        offsets = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        positions = self._positions[first[rows] + offsets]
        is_new = np.zeros(len(rows), bool)
        is_new[np.unique(positions, return_index=True)[1]] = True
        is_new &= ~self._is_matched[positions]
        rows, positions = rows[is_new], positions[is_new]
        self._is_matched[positions] = True
        self._num_unknown += int(is_unknown.sum())
        self._num_duplicate += len(hashes) - int(is_unknown.sum()) - len(np.unique(rows))
        return rows, positions

    def locate(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return shard and row of samples at these positions in the dataset."""
        shards = np.searchsorted(self._starts, positions, side="right") - 1
        return shards, positions - self._starts[shards]

    def _find(self, hashes: NDArray[np.bytes_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        first = np.searchsorted(self._hashes, hashes, side="left")
        return first, np.searchsorted(self._hashes, hashes, side="right")

    def _set(self, hashes: NDArray[np.bytes_], positions: NDArray[np.int64]) -> None:
        order = np.argsort(hashes, kind="stable")
        self._hashes, self._positions = hashes[order], positions[order]

    def _add_source_uids(self) -> None:
        self._has_source_uids = True
        hashes, positions = self._read_identifiers("uid")
        self._set(
            np.concatenate([self._hashes, hashes]), np.concatenate([self._positions, positions])
        )

    def _read_identifiers(self, by: Identifier) -> tuple[NDArray[np.bytes_], NDArray[np.int64]]:
        """Return the hashes of the samples' identifiers, and the positions of these samples."""
        positions: list[int] = []

        def values() -> Iterator[str]:
            position = 0
            for index in range(len(self._dataset.shards)):
                for record in read_records(self._dataset, index, cache_folder()):
                    value = _identifier(record, by)
                    if value:
                        positions.append(position)
                        yield value
                    position += 1

        return _hashes(values()), np.array(positions, np.int64)


def _identifier(record: SampleRecord, by: Identifier) -> str:
    value = record.metadata.get(by)
    if value is None and by == "key":
        return PurePosixPath(record.origin).name.partition(".")[0]
    return str(value or "")


def _hashes(values: Iterator[str]) -> NDArray[np.bytes_]:
    hashed = (hashlib.sha256(value.encode("utf-8", "surrogatepass")).digest() for value in values)
    return np.fromiter((digest[: _HASH.itemsize] for digest in hashed), _HASH)
