"""The score that a given fraction of all rows reaches, exactly, in two passes and half a megabyte.

A radix selection: the first pass counts the scores by the leading 16 bits of their order, the
second those in the decisive bin by the trailing 16.
"""

import numpy as np
from numpy.typing import NDArray

_HALF_BITS = 16
_NUM_BINS = 1 << _HALF_BITS


class TopFraction:
    """Give it all scores twice, in the same pieces or others, then ask for ``threshold``.

    The threshold is DataComp's: of N scores in descending order the one at place
    ``int(N * fraction)``, counted from 0, so that what is at least that high is a little more
    than the fraction, and all that tie with it are in. NaN counts as no score.
    """

    num_passes = 2

    def __init__(self, fraction: float) -> None:
        self.threshold = float("inf")
        """What a score needs to reach, once both passes have ended; without scores, infinity."""
        self._fraction = fraction
        self._leading: int | None = None
        self._above = 0
        self._total = 0
        self._counts = np.zeros(_NUM_BINS, np.int64)

    def see(self, scores: NDArray[np.float32]) -> None:
        """Count the scores of one piece."""
        keys = _ordered(scores)
        if self._leading is None:
            part = keys >> _HALF_BITS
        else:
            part = keys[keys >> _HALF_BITS == self._leading] & (_NUM_BINS - 1)
        self._counts += np.bincount(part, minlength=_NUM_BINS)

    def end_pass(self) -> None:
        """Go on to the next pass."""
        if self._leading is None:
            self._total = int(self._counts.sum())
            place = self._place
            self._leading, self._above = _bin_at(self._counts, place) if self._total else (0, 0)
            self._counts[:] = 0
        elif self._total:
            trailing, _ = _bin_at(self._counts, self._place - self._above)
            self.threshold = _score(self._leading << _HALF_BITS | trailing)

    @property
    def _place(self) -> int:
        return min(int(self._total * self._fraction), self._total - 1)


def _ordered(scores: NDArray[np.float32]) -> NDArray[np.int64]:
    """Integers that are ordered as the scores are (the sign bit flips what it must)."""
    real = scores[~np.isnan(scores)] + np.float32(0)  # makes -0.0 the 0.0 that it equals
    bits = real.view(np.uint32)
    is_negative = bits >> 31 == 1
    return np.where(is_negative, ~bits, bits | np.uint32(1 << 31)).astype(np.int64)


def _score(key: int) -> float:
    bits = key & 0x7FFF_FFFF if key >> 31 else ~key & 0xFFFF_FFFF
    return float(np.array([bits], np.uint32).view(np.float32)[0])


def _bin_at(counts: NDArray[np.int64], place: int) -> tuple[int, int]:
    """The bin that holds this place of the descending order, and how many lie in higher ones."""
    reached = np.cumsum(counts[::-1])
    position = int(np.searchsorted(reached, place, side="right"))
    above = int(reached[position - 1]) if position else 0
    return _NUM_BINS - 1 - position, above
