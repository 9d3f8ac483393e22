"""A distribution as a small figure: bars, and its median."""

from clipmill.analysis.page import Html, tag
from clipmill.data.distribution import QUANTILES, Distribution

_WIDTH, _HEIGHT, _BASE = 300, 96, 76
_MEDIAN = QUANTILES.index(0.5)


def histogram(title: str, distribution: Distribution, colour: str) -> Html:
    """A figure of one score, its bars in a CSS colour; it needs at least one number."""
    d = distribution
    median = d.quantiles[_MEDIAN]
    step, most = _WIDTH / len(d.bins), max(d.bins)
    bars = []
    for i, count in enumerate(d.bins):
        height = max(1.5, (_BASE - 4) * count / most) if count else 0.0
        bars.append(
            tag(
                "rect",
                x=f"{i * step + 0.75:.1f}",
                y=f"{_BASE - height:.1f}",
                width=f"{step - 1.5:.1f}",
                height=f"{height:.1f}",
                rx=1,
            )
        )
    at = _WIDTH * place(median, d)
    marks = [
        tag("line", x1=0, x2=_WIDTH, y1=_BASE + 0.5, y2=_BASE + 0.5, class_="grid"),
        tag("line", x1=f"{at:.1f}", x2=f"{at:.1f}", y1=0, y2=_BASE, class_="median"),
        tag("text", number(d.low), x=0, y=_HEIGHT - 2),
        tag("text", number(d.high), x=_WIDTH, y=_HEIGHT - 2, text_anchor="end"),
    ]
    said = f"{title}: from {number(d.low)} to {number(d.high)}, median {number(median)}"
    chart = tag("svg", bars, marks, viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img", aria_label=said)
    missing = f", {d.missing:,} missing" if d.missing else ""
    note = tag("small", f"median {number(median)}, mean {number(d.mean)}{missing}")
    words = tag("figcaption", tag("span", title), note)
    return tag("figure", words, chart, class_="histogram", style=f"color: {colour}")


def place(value: float, distribution: Distribution) -> float:
    """Where a value lies between the least and the most, from 0 to 1."""
    low, high = distribution.low, distribution.high
    return 0.5 if high <= low else min(1.0, max(0.0, (value - low) / (high - low)))


def share_below(value: float, distribution: Distribution) -> float:
    """The share of all numbers that lie below a value, to within a bin; from 0 to 1."""
    bins = distribution.bins
    position = place(value, distribution) * len(bins)
    whole = min(int(position), len(bins) - 1)
    below = sum(bins[:whole]) + bins[whole] * (position - whole)
    return below / sum(bins)


def number(value: float) -> str:
    """A score in few characters."""
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.3g}"
