"""Intervals and tests against scipy and by hand."""

import numpy as np
import pytest
from scipy import stats

from clipmill.study.tables import bootstrap, power_law, sign_flip_pvalue, trend_pvalue


def test_bootstrap_is_scipys():
    values = np.random.default_rng(3).normal(5, 2, 12)
    found = bootstrap(values)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=1
    ).confidence_interval
    assert found.mean == pytest.approx(values.mean())
    assert found.low == pytest.approx(theirs.low, abs=0.06)
    assert found.high == pytest.approx(theirs.high, abs=0.06)


@pytest.mark.parametrize(
    ("differences", "expected"),
    [([1.0], 1.0), ([1, 2, 3], 0.25), ([1, 2, -3], 1.0), ([0.3] * 5, 2 / 32), ([0, 0], 1.0)],
)
def test_sign_flips_by_hand(differences, expected):
    assert sign_flip_pvalue(differences) == pytest.approx(expected)


def test_sign_flips_are_scipys():
    differences = np.random.default_rng(0).normal(0.4, 1, 9)
    theirs = stats.permutation_test(
        (differences,), lambda x, axis: x.sum(axis=axis), permutation_type="samples"
    )
    assert sign_flip_pvalue(differences) == pytest.approx(theirs.pvalue)
    many = np.random.default_rng(1).normal(0.5, 1, 24)
    assert sign_flip_pvalue(many) == pytest.approx(stats.wilcoxon(many).pvalue, abs=0.03)


def test_a_trend_is_found_whichever_way_it_goes_and_noise_is_none():
    random = np.random.default_rng(0)
    noise = random.normal(size=(5, 4))
    slope = np.arange(5)[:, None] * 2
    assert trend_pvalue(noise + slope) < 0.001
    assert trend_pvalue(noise - slope) < 0.001
    found = [trend_pvalue(random.normal(size=(5, 4)), seed=i) < 0.05 for i in range(60)]
    assert sum(found) <= 8


def test_trend_agrees_with_pages_test():
    figures = np.random.default_rng(2).normal(size=(4, 6)) + np.arange(4)[:, None] * 0.4
    one_sided = stats.page_trend_test(figures.T, method="exact").pvalue
    assert trend_pvalue(figures) == pytest.approx(2 * one_sided, abs=0.02)


def test_a_power_law_is_a_line_between_logarithms():
    x = np.array([1e3, 3e3, 1e4, 1e5])
    y = 3 * x**0.25 * np.exp(np.random.default_rng(0).normal(0, 0.1, 4))
    theirs = stats.linregress(np.log(x), np.log(y))
    found = power_law(x.tolist(), y.tolist())
    assert found.exponent == pytest.approx(theirs.slope)
    assert found.at(1) == pytest.approx(np.exp(theirs.intercept))
    assert found.inverse(found.at(777.0)) == pytest.approx(777.0)
    assert power_law([10.0, 10.0], [1.0, 2.0]) is None
    assert power_law([1.0, 10.0], [0.0, 2.0]) is None
