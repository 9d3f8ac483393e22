"""What a few seeds allow to say: intervals, and tests that assume no distribution."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_RESAMPLES = 10_000
_MOST_EXACT = 16
_LEVEL = 0.95


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """A mean with its bounds."""

    mean: float
    """Of the values."""
    low: float
    """Lower bound, 95 %."""
    high: float
    """Upper bound, 95 %."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gain:
    """How much better one condition is than another, over seeds."""

    change: Interval
    """Mean difference, positive where it is better."""
    percent: float
    """The mean difference, of the other's mean."""
    p: float
    """Of a sign-flip test."""
    num_seeds: int
    """How many pairs there are."""

    @property
    def is_sure(self) -> bool:
        """Whether the interval leaves 0 out; of one seed nothing is sure."""
        return self.num_seeds > 1 and not self.change.low <= 0 <= self.change.high


@dataclass(frozen=True, kw_only=True, slots=True)
class PowerLaw:
    """``factor * x ** exponent``: a straight line between logarithms."""

    exponent: float
    """Slope of that line."""
    factor: float
    """What it gives at 1."""

    def at(self, x: float) -> float:
        """Its value there."""
        return float(self.factor * x**self.exponent)

    def reaches(self, value: float) -> float:
        """Where it has this value; the exponent isn't 0."""
        return float((value / self.factor) ** (1 / self.exponent))


def power_law(x: Sequence[float], y: Sequence[float]) -> PowerLaw | None:
    """Least squares between logarithms; None of a single place, or if not all of ``y`` is > 0."""
    if len(set(x)) < 2 or min(y) <= 0:
        return None
    exponent, base = np.polyfit(np.log(x), np.log(y), 1)
    return PowerLaw(exponent=float(exponent), factor=float(np.exp(base)))


def paired_gain(gains: Sequence[float], others: Sequence[float]) -> Gain:
    """Of gains seed by seed over ``others``."""
    change = bootstrap(gains)
    percent = 100 * change.mean / float(np.mean(others))
    return Gain(change=change, percent=percent, p=sign_flip_p(gains), num_seeds=len(gains))


def bootstrap(values: Sequence[float], *, seed: int = 0) -> Interval:
    """The mean's percentile bootstrap interval (Efron 1979). Few values make it too narrow."""
    found = np.asarray(values, dtype=np.float64)
    picks = np.random.default_rng(seed).integers(len(found), size=(_RESAMPLES, len(found)))
    tail = (1 - _LEVEL) / 2
    low, high = np.quantile(found[picks].mean(axis=1), [tail, 1 - tail])
    return Interval(mean=float(found.mean()), low=float(low), high=float(high))


def sign_flip_p(differences: Sequence[float], *, seed: int = 0) -> float:
    """Two-sided p-value of paired differences being even about 0 (Fisher 1935).

    All 2^n sign patterns are counted up to 16 differences, else 10,000 drawn ones. With n
    differences it can't fall below 2 / 2^n.
    """
    found = np.asarray(differences, dtype=np.float64)
    n = len(found)
    if n <= _MOST_EXACT:
        signs = np.array(list(itertools.product((-1, 1), repeat=n)))
    else:
        signs = np.random.default_rng(seed).choice((-1, 1), size=(_RESAMPLES, n))
    sums = np.abs(signs @ found)
    # Rounding must not make the observed pattern rarer than itself.
    return float((sums >= abs(found.sum()) * (1 - 1e-12)).mean())


def trend_p(figures: Sequence[Sequence[float]], *, seed: int = 0) -> float:
    """Two-sided p-value of a monotone trend (Page's L, by permutation within seeds).

    ``figures[i][s]`` is what dose ``i``, in ascending order, gave with seed ``s``.
    """
    values = np.asarray(figures, dtype=np.float64)
    ranks = values.argsort(axis=0).argsort(axis=0).astype(np.float64)
    doses = np.arange(len(values)) - (len(values) - 1) / 2
    observed = abs(doses @ ranks.sum(axis=1))
    random = np.random.default_rng(seed)
    shuffled = random.permuted(np.broadcast_to(ranks, (_RESAMPLES, *ranks.shape)), axis=1)
    found = np.abs(np.einsum("d,rds->r", doses, shuffled))
    # The observed order is one of those possible.
    return float(((found >= observed - 1e-9).sum() + 1) / (_RESAMPLES + 1))
