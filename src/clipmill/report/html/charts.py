"""Charts as inline SVG: lines named at the margin in their color, intervals, histograms.

Colors are CSS variables, so that a chart follows the page from light to dark and onto paper.
matplotlib writes fixed colors; its file of such a chart has 39 KB rather than 16, takes 140 ms
rather than 20, after an import of 0.7 s.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from clipmill.data.stats import QUANTILES, Distribution
from clipmill.report.html.page import Html, concat, series_color, tag

_WIDTH, _HEIGHT = 460, 250
_LEFT, _TOP, _BOTTOM = 38, 12, 38
_LABEL_HEIGHT = 15
_HISTOGRAM_WIDTH, _HISTOGRAM_HEIGHT, _HISTOGRAM_BASE = 300, 96, 76
_MEDIAN = QUANTILES.index(0.5)
_CHARACTER_WIDTH = 7.2
_MAX_POINTS = 400
_SMOOTHED_FROM = 40


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One curve of a line chart."""

    label: str
    """Label at the margin, next to the last value."""
    x: tuple[float, ...]
    """Ascending positions."""
    y: tuple[float, ...]
    """Values, one for each ``x``."""
    series: int
    """Index of the color."""


@dataclass(frozen=True, kw_only=True, slots=True)
class IntervalPoint:
    """A mean with its bounds at one position."""

    x: float
    """Position."""
    low: float
    """Lower bound."""
    mean: float
    """Mean."""
    high: float
    """Upper bound."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """A value to compare the curves with."""

    label: str
    """Label at the margin."""
    y: float
    """Value."""


def line_chart(
    title: str,
    note: str,
    lines: Sequence[Line],
    *,
    x_name: str,
    reference: Reference | None = None,
) -> Html:
    """A figure with the curves; one of many points is smoothed, over its faint raw values.

    ``title`` says what the vertical axis holds. Each line needs at least one point.
    """
    curves = [_Curve(line) for line in lines]
    values = [v for curve in curves for v in curve.raw] + ([reference.y] if reference else [])
    last_x = max(curve.x[-1] for curve in curves)
    right = _WIDTH - 12 - max(len(curve.words) for curve in curves) * _CHARACTER_WIDTH
    marks, at_x, at_y = _axes((0, last_x), (min(values), max(values)), right, x_name)
    if reference:
        y = _px(at_y(reference.y))
        marks.append(tag("line", x1=_LEFT, x2=_px(right), y1=y, y2=y, class_="reference"))
        marks.append(_text(reference.label, right, at_y(reference.y) - 5, text_anchor="end"))
    for curve in curves:
        stroke = f"stroke: {curve.color}"
        places = [at_x(x) for x in curve.x]
        if len(curve.x) >= _SMOOTHED_FROM:
            points = _points(places, [at_y(y) for y in curve.raw])
            marks.append(tag("polyline", points=points, style=stroke, class_="raw"))
        points = _points(places, [at_y(y) for y in curve.y])
        marks.append(tag("polyline", points=points, style=stroke))
    for curve, place in zip(
        curves, _avoid_overlap([at_y(curve.y[-1]) for curve in curves]), strict=True
    ):
        # All at the margin: beside the end of a short line, others would run through it.
        fill = f"fill: {curve.color}"
        marks.append(_text(curve.words, right + 8, place + 4, class_="end", style=fill))
    said = "; ".join(f"{c.line.label} from {c.y[0]:.3g} to {c.y[-1]:.3g}" for c in curves)
    return _figure(title, note, marks, f"over {x_name}: {said}")


def dot_chart(
    title: str,
    note: str,
    columns: Sequence[Sequence[float]],
    *,
    x_name: str,
    limits: tuple[float, float],
    series: int,
) -> Html:
    """A figure with a dot for each value, over the number of its column from 1.

    ``limits`` are the lowest and highest value that the axis has to show, so that figures beside
    one another can be compared.
    """
    right = _WIDTH - 24.0
    marks, at_x, at_y = _axes((0.5, len(columns) + 0.5), limits, right, x_name)
    fill = f"fill: {series_color(series)}"
    marks += [
        tag("circle", cx=_px(at_x(number)), cy=_px(at_y(value)), r=4, style=fill, opacity=0.65)
        for number, column in enumerate(columns, start=1)
        for value in column
    ]
    said = "; ".join(f"{min(c):.3g} to {max(c):.3g}" for c in columns)
    return _figure(title, note, marks, f"by {x_name}: {said}")


def interval_chart(
    title: str,
    note: str,
    spreads: Mapping[str, Sequence[IntervalPoint]],
    *,
    x_name: str,
    x_labels: Mapping[float, str] | None = None,
    fits: Mapping[str, Sequence[float]] | None = None,
) -> Html:
    """A figure with means and their bounds, those of one label joined, from left to right.

    ``x_labels`` are what is written at which places of the axis; without it, round numbers. With
    ``fits``, values that stand at the places of a label's means, those are joined in their stead,
    and the vertical axis is logarithmic.
    """
    everything = [spread for group in spreads.values() for spread in group]
    right = _WIDTH - 12 - max(len(label) for label in spreads) * _CHARACTER_WIDTH
    low_x, high_x = min(s.x for s in everything), max(s.x for s in everything)
    room = 0.06 * (high_x - low_x) or 0.5
    marks, at_x, at_y = _axes(
        (low_x - room, high_x + room),
        (min(s.low for s in everything), max(s.high for s in everything)),
        right,
        x_name,
        x_labels,
        is_log=fits is not None,
    )
    for series, (label, group) in enumerate(spreads.items()):
        color = series_color(series)
        places = [at_x(s.x) for s in group]
        fit = (fits or {}).get(label)
        joined = fit or [s.mean for s in group]
        points = _points(places, [at_y(y) for y in joined])
        kind = "fit" if fit else ""
        marks.append(tag("polyline", points=points, style=f"stroke: {color}", class_=kind))
        for x, spread in zip(places, group, strict=True):
            y1, y2 = _px(at_y(spread.low)), _px(at_y(spread.high))
            line = {"x1": _px(x), "x2": _px(x), "y1": y1, "y2": y2}
            marks.append(tag("line", **line, style=f"stroke: {color}", stroke_width=1.5))
            mean = _px(at_y(spread.mean))
            marks.append(tag("circle", cx=_px(x), cy=mean, r=3.5, style=f"fill: {color}"))
    ends = _avoid_overlap([at_y(group[-1].mean) for group in spreads.values()])
    for series, (label, place) in enumerate(zip(spreads, ends, strict=True)):
        fill = f"fill: {series_color(series)}"
        marks.append(_text(label, right + 8, place + 4, class_="end", style=fill))
    said = "; ".join(f"{name} ends at {group[-1].mean:.3g}" for name, group in spreads.items())
    return _figure(title, note, marks, f"over {x_name}: {said}")


_Place = Callable[[float], float]


def _axes(
    limits_x: tuple[float, float],
    limits_y: tuple[float, float],
    right: float,
    x_name: str,
    x_labels: Mapping[float, str] | None = None,
    *,
    is_log: bool = False,
) -> tuple[list[Html], _Place, _Place]:
    """Grid and labels, and where on the figure a value of either axis lies.

    If ``is_log``, the vertical axis is logarithmic, and what it shows is more than 0.
    """
    base = _HEIGHT - _BOTTOM
    ticks_y = [v for v in ticks(*limits_y, 6) if v > 0 or not is_log]
    first_x, last_x = limits_x
    scale: _Place = math.log10 if is_log else float
    first_y, last_y = scale(min(ticks_y[0], limits_y[0])), scale(ticks_y[-1])

    def at_x(x: float) -> float:
        return _LEFT + (right - _LEFT) * (x - first_x) / (last_x - first_x)

    def at_y(y: float) -> float:
        return base - (base - _TOP) * (scale(y) - first_y) / (last_y - first_y)

    marks = [_grid_line(at_y(v), f"{v:g}", right) for v in ticks_y]
    if x_labels is None:
        # Longer numbers need more room.
        round_x = ticks(0, last_x, 7 if last_x < 10_000 else 4)
        x_labels = {x: f"{x:,.10g}" for x in round_x if first_x <= x <= last_x}
    marks += [
        _text(words, at_x(x), base + 18, text_anchor="middle") for x, words in x_labels.items()
    ]
    marks.append(_text(x_name, (_LEFT + right) / 2, base + 36, text_anchor="middle"))
    return marks, at_x, at_y


def _figure(title: str, note: str, marks: list[Html], said: str) -> Html:
    chart = tag(
        "svg",
        marks,
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        role="img",
        aria_label=f"{title}, {said}",
    )
    return tag("figure", tag("figcaption", title, tag("small", note)), chart)


class _Curve:
    """A line as it is drawn: thinned to what can be seen, and smoothed if it has many points."""

    def __init__(self, line: Line) -> None:
        pieces = min(len(line.x), _MAX_POINTS)
        self.line = line
        self.x, self.raw = (
            [float(piece.mean()) for piece in np.array_split(np.array(values), pieces)]
            for values in (line.x, line.y)
        )
        self.y = _smoothed(self.raw) if pieces >= _SMOOTHED_FROM else self.raw
        self.words = f"{line.label} {self.y[-1]:.3g}"
        self.color = series_color(line.series)


def ticks(low: float, high: float, at_most: int) -> list[float]:
    """At most so many round values, evenly apart, from at or below ``low`` to at or above ``high``.

    Steps are 1, 2 or 5 times a power of ten. ``at_most`` is 3 or more.
    """
    if high <= low:
        low, high = low - 0.5, high + 0.5
    exponent = math.floor(math.log10((high - low) / at_most))
    for power in range(exponent, exponent + 3):
        for digit in (1, 2, 5):
            step = digit * 10.0**power
            first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
            if last - first < at_most:
                return [round(i * step, 12) for i in range(first, last + 1)]
    raise AssertionError((low, high, at_most))


def _smoothed(values: Sequence[float]) -> list[float]:
    """A centered moving average, over fewer values towards the ends."""
    reach = max(1, len(values) // 24)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    near = np.minimum(reach, np.minimum(at, len(values) - 1 - at))
    smooth: list[float] = ((sums[at + near + 1] - sums[at - near]) / (2 * near + 1)).tolist()
    return smooth


def _avoid_overlap(places: Sequence[float]) -> list[float]:
    """The places moved so that labels don't overlap nor leave the plot, in their order."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    moved = list(places)
    lowest = -math.inf
    for i in order:
        moved[i] = max(moved[i], lowest)
        lowest = moved[i] + _LABEL_HEIGHT
    highest = float(_HEIGHT - _BOTTOM)
    for i in reversed(order):
        moved[i] = min(moved[i], highest)
        highest = moved[i] - _LABEL_HEIGHT
    return moved


def _grid_line(y: float, words: str, right: float) -> Html:
    line = tag("line", x1=_LEFT, x2=_px(right), y1=_px(y), y2=_px(y), class_="grid")
    return concat(line, _text(words, _LEFT - 8, y + 4, text_anchor="end"))


def _text(words: str, x: float, y: float, **attributes: str) -> Html:
    return tag("text", words, x=_px(x), y=_px(y), **attributes)


def _points(x: Sequence[float], y: Sequence[float]) -> str:
    return " ".join(f"{_px(a)},{_px(b)}" for a, b in zip(x, y, strict=True))


def _px(value: float) -> str:
    return f"{value:.1f}"


def histogram(title: str, distribution: Distribution, color: str) -> Html:
    """Draw the histogram of a score in a CSS color; the distribution isn't empty."""
    d = distribution
    median = d.quantiles[_MEDIAN]
    bars = _bars(d, max(d.bins))
    at = _HISTOGRAM_WIDTH * normalized_position(median, d)
    marks = [
        tag(
            "line",
            x1=0,
            x2=_HISTOGRAM_WIDTH,
            y1=_HISTOGRAM_BASE + 0.5,
            y2=_HISTOGRAM_BASE + 0.5,
            class_="grid",
        ),
        tag("line", x1=f"{at:.1f}", x2=f"{at:.1f}", y1=0, y2=_HISTOGRAM_BASE, class_="median"),
        tag("text", format_number(d.low), x=0, y=_HISTOGRAM_HEIGHT - 2),
        tag(
            "text",
            format_number(d.high),
            x=_HISTOGRAM_WIDTH,
            y=_HISTOGRAM_HEIGHT - 2,
            text_anchor="end",
        ),
    ]
    low, middle, high = (format_number(v) for v in (d.low, median, d.high))
    label = f"{title}: from {low} to {high}, median {middle}"
    chart = tag(
        "svg",
        bars,
        marks,
        viewBox=f"0 0 {_HISTOGRAM_WIDTH} {_HISTOGRAM_HEIGHT}",
        role="img",
        aria_label=label,
    )
    missing = f", {d.missing:,} missing" if d.missing else ""
    note = tag("small", f"median {format_number(median)}, mean {format_number(d.mean)}{missing}")
    caption = tag("figcaption", tag("span", title), note)
    return tag("figure", caption, chart, class_="histogram", style=f"color: {color}")


def before_after_histogram(title: str, before: Distribution, after: Distribution) -> Html:
    """Draw two histograms of a score over the same bins: all samples behind those kept."""
    most = max(before.bins)
    marks = [*_bars(before, most, class_="before"), *_bars(after, most, class_="after")]
    low, high = (format_number(value) for value in (before.low, before.high))
    base = _HISTOGRAM_BASE + 0.5
    marks += [
        tag("line", x1=0, x2=_HISTOGRAM_WIDTH, y1=base, y2=base, class_="grid"),
        tag("text", low, x=0, y=_HISTOGRAM_HEIGHT - 2),
        tag("text", high, x=_HISTOGRAM_WIDTH, y=_HISTOGRAM_HEIGHT - 2, text_anchor="end"),
    ]
    medians = [format_number(d.quantiles[_MEDIAN]) if d.count else "none" for d in (before, after)]
    note = f"median {medians[0]} → {medians[1]}"
    if before.missing:
        note += f", {before.missing:,} missing"
    chart = tag(
        "svg",
        marks,
        viewBox=f"0 0 {_HISTOGRAM_WIDTH} {_HISTOGRAM_HEIGHT}",
        role="img",
        aria_label=f"{title}: from {low} to {high}, {note}",
    )
    caption = tag("figcaption", tag("span", title), tag("small", note))
    return tag("figure", caption, chart, class_="histogram")


def _bars(distribution: Distribution, most: int, **attributes: str) -> list[Html]:
    """Draw a histogram's bars; one of ``most`` samples is as high as the chart."""
    step = _HISTOGRAM_WIDTH / len(distribution.bins)
    bars = []
    for i, count in enumerate(distribution.bins):
        height = max(1.5, (_HISTOGRAM_BASE - 4) * count / most) if count else 0.0
        bars.append(
            tag(
                "rect",
                x=f"{i * step + 0.75:.1f}",
                y=f"{_HISTOGRAM_BASE - height:.1f}",
                width=f"{step - 1.5:.1f}",
                height=f"{height:.1f}",
                rx=1,
                **attributes,
            )
        )
    return bars


def normalized_position(value: float, distribution: Distribution) -> float:
    """Return a value's position between the lowest and the highest, 0 to 1."""
    low, high = distribution.low, distribution.high
    return 0.5 if high <= low else min(1.0, max(0.0, (value - low) / (high - low)))


def share_below(value: float, distribution: Distribution) -> float:
    """Return the share of all numbers below a value, 0 to 1, interpolated within a bin."""
    bins = distribution.bins
    position = normalized_position(value, distribution) * len(bins)
    index = min(int(position), len(bins) - 1)
    below = sum(bins[:index]) + bins[index] * (position - index)
    return below / sum(bins)


def format_number(value: float) -> str:
    """Format a score in few characters."""
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.3g}"
