"""The exact threshold of a top fraction."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipmill.data.filters import TopFractionThreshold

scores_of = st.lists(st.floats(width=32, allow_infinity=False, allow_nan=False), min_size=1)


def threshold(pieces, fraction):
    top = TopFractionThreshold(fraction)
    for _ in range(top.num_passes):
        for piece in pieces:
            top.observe(np.array(piece, np.float32))
        top.finish_pass()
    return top.threshold


@given(scores_of, st.floats(0.001, 1.0), st.data())
def test_it_is_datacomps(scores, fraction, data):
    """``-np.sort(-scores)[int(len(scores) * fraction)]``, the last one at the fraction 1."""
    cut = data.draw(st.integers(0, len(scores)))
    place = min(int(len(scores) * fraction), len(scores) - 1)
    expected = -np.sort(-np.array(scores, np.float32))[place]
    assert threshold([scores[:cut], scores[cut:]], fraction) == expected


def test_no_score_is_no_row():
    assert threshold([[0.5, np.nan, 0.25, np.nan, -1.0]], 0.4) == 0.25


@pytest.mark.parametrize("scores", [[], [np.nan]])
def test_without_scores_nothing_reaches_it(scores):
    assert threshold([scores], 0.5) == np.inf
