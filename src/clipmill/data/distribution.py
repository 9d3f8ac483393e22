"""How values are distributed, in memory that doesn't grow with their number."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
NUM_BINS = 24
"""Bins of a histogram as it is shown."""
# Quantiles are known to within this part of the range.
_FINE_BINS = NUM_BINS * 128


@dataclass(frozen=True, kw_only=True, slots=True)
class Distribution:
    """A summary of many numbers."""

    count: int
    """Numbers in all."""
    missing: int = 0
    """Values that weren't numbers: null or NaN."""
    mean: float = math.nan
    low: float = math.nan
    """The least."""
    high: float = math.nan
    """The greatest."""
    quantiles: tuple[float, ...] = ()
    """At QUANTILES."""
    bins: tuple[int, ...] = ()
    """Numbers in each of equal parts of low to high."""


def of_counts(counts: Counter[int]) -> Distribution:
    """The distribution of whole numbers, exactly, from how often each occurs."""
    if not counts:
        return Distribution(count=0)
    values = np.array(sorted(counts))
    weights = np.array([counts[value] for value in values.tolist()])
    total = int(weights.sum())
    # Nearest rank: the least value that so many of the numbers don't exceed.
    ranks = np.searchsorted(np.cumsum(weights), [max(1, math.ceil(q * total)) for q in QUANTILES])
    span = (int(values[0]), int(values[-1]))
    return Distribution(
        count=total,
        mean=float((values * weights).sum() / total),
        low=float(span[0]),
        high=float(span[1]),
        quantiles=tuple(float(values[rank]) for rank in ranks),
        bins=tuple(np.histogram(values, NUM_BINS, span, weights=weights)[0].tolist()),
    )


class Extent:
    """The first look at a stream of numbers: how many, and between which."""

    def __init__(self) -> None:
        self.count, self.missing, self.total = 0, 0, 0.0
        self.low, self.high = math.inf, -math.inf

    def add(self, values: NDArray[np.float64]) -> None:
        """Take a piece of the stream; NaN and infinities count as missing."""
        finite = values[np.isfinite(values)]
        self.missing += len(values) - len(finite)
        if len(finite):
            self.count += len(finite)
            self.total += float(finite.sum())
            self.low, self.high = min(self.low, finite.min()), max(self.high, finite.max())

    def distribution(self, pieces: Iterable[NDArray[np.float64]]) -> Distribution:
        """The second look, at the same stream: quantiles to a small part of the range."""
        if not self.count:
            return Distribution(count=0, missing=self.missing)
        low, high = float(self.low), float(self.high)
        fine = np.zeros(_FINE_BINS, np.int64)
        for values in pieces:
            fine += np.histogram(values[np.isfinite(values)], _FINE_BINS, (low, high))[0]
        # numpy widens the range of a single value; then each quantile is that value.
        edges = np.histogram_bin_edges([], _FINE_BINS, (low, high))
        ranks = [max(1, math.ceil(q * self.count)) for q in QUANTILES]
        places = np.searchsorted(np.cumsum(fine), ranks)
        middles = ((edges[:-1] + edges[1:]) / 2).clip(low, high)
        return Distribution(
            count=self.count,
            missing=self.missing,
            mean=self.total / self.count,
            low=low,
            high=high,
            quantiles=tuple(float(middles[place]) for place in places),
            bins=tuple(fine.reshape(NUM_BINS, -1).sum(axis=1).tolist()),
        )
