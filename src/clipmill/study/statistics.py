"""Intervals and tests for a few seeds, without assumptions about the distribution.

The tests compare them with scipy.stats, which isn't used here: it takes 125 MB and 1.2 s to import,
its bootstrap refuses a single seed, and its Page test is one-sided.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_NUM_RESAMPLES = 10_000
_MAX_EXACT = 16
_CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """A mean with its 95 % interval."""

    mean: float
    """Mean of the values."""
    low: float
    """Lower bound."""
    high: float
    """Upper bound."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PairedDifference:
    """Improvement of one condition over another, over seeds."""

    change: Interval
    """Mean difference, positive for an improvement."""
    percent: float
    """Mean difference, percent of the other's mean."""
    p: float
    """p-value of a sign-flip test."""
    num_seeds: int
    """Number of pairs."""

    @property
    def is_significant(self) -> bool:
        """Whether the interval excludes 0; never with one seed."""
        return self.num_seeds > 1 and not self.change.low <= 0 <= self.change.high


@dataclass(frozen=True, kw_only=True, slots=True)
class PowerLaw:
    """Function ``factor * x ** exponent``, a straight line between logarithms."""

    exponent: float
    """Slope of that line."""
    factor: float
    """Value at 1."""

    def at(self, x: float) -> float:
        """Return the value at ``x``."""
        return float(self.factor * x**self.exponent)

    def inverse(self, value: float) -> float:
        """Return the ``x`` of a value; the exponent isn't 0."""
        return float((value / self.factor) ** (1 / self.exponent))


def power_law(x: Sequence[float], y: Sequence[float]) -> PowerLaw | None:
    """Fit by least squares between logarithms; None for a single ``x``, or if any ``y`` <= 0."""
    if len(set(x)) < 2 or min(y) <= 0:
        return None
    exponent, log_factor = np.polyfit(np.log(x), np.log(y), 1)
    return PowerLaw(exponent=float(exponent), factor=float(np.exp(log_factor)))


def paired_difference(improvements: Sequence[float], baseline: Sequence[float]) -> PairedDifference:
    """Summarize improvements, one a seed, over ``baseline``."""
    change = bootstrap(improvements)
    return PairedDifference(
        change=change,
        percent=100 * change.mean / float(np.mean(baseline)),
        p=sign_flip_pvalue(improvements),
        num_seeds=len(improvements),
    )


def bootstrap(values: Sequence[float], *, seed: int = 0) -> Interval:
    """Compute the mean's percentile bootstrap interval (Efron 1979), too narrow for few values."""
    array = np.asarray(values, dtype=np.float64)
    picks = np.random.default_rng(seed).integers(len(array), size=(_NUM_RESAMPLES, len(array)))
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(array[picks].mean(axis=1), [tail, 1 - tail])
    return Interval(mean=float(array.mean()), low=float(low), high=float(high))


def sign_flip_pvalue(differences: Sequence[float], *, seed: int = 0) -> float:
    """Compute the two-sided p-value of differences symmetric about 0 (Fisher 1935).

    All 2^n sign patterns are counted up to 16 differences, else 10,000 random ones. With n
    differences it can't be below 2 / 2^n.
    """
    array = np.asarray(differences, dtype=np.float64)
    n = len(array)
    if n <= _MAX_EXACT:
        signs = np.array(list(itertools.product((-1, 1), repeat=n)))
    else:
        signs = np.random.default_rng(seed).choice((-1, 1), size=(_NUM_RESAMPLES, n))
    sums = np.abs(signs @ array)
    # Rounding must not make the observed pattern rarer than itself.
    return float((sums >= abs(array.sum()) * (1 - 1e-12)).mean())


def trend_pvalue(values: Sequence[Sequence[float]], *, seed: int = 0) -> float:
    """Compute the two-sided p-value of a monotone trend (Page's L, by permutation within seeds).

    ``values[i][s]`` is the metric at level ``i``, in ascending order, with seed ``s``.
    """
    array = np.asarray(values, dtype=np.float64)
    ranks = array.argsort(axis=0).argsort(axis=0).astype(np.float64)
    levels = np.arange(len(array)) - (len(array) - 1) / 2
    observed = abs(levels @ ranks.sum(axis=1))
    random = np.random.default_rng(seed)
    shuffled = random.permuted(np.broadcast_to(ranks, (_NUM_RESAMPLES, *ranks.shape)), axis=1)
    statistics = np.abs(np.einsum("d,rds->r", levels, shuffled))
    # The observed order is one of those possible.
    return float(((statistics >= observed - 1e-9).sum() + 1) / (_NUM_RESAMPLES + 1))
