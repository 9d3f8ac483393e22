"""Axes and lines."""

import itertools
import math
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipmill.report.html.charts import Line, Reference, line_chart, ticks


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.integers(3, 9))
def test_ticks_enclose_the_values_in_round_steps(low: float, span: float, at_most: int) -> None:
    found = ticks(low, low + span, at_most)
    assert 2 <= len(found) <= at_most
    step = found[1] - found[0]
    assert found[0] <= low + 1e-6 * step
    assert found[-1] >= low + span - 1e-6 * step
    leading = step / 10 ** math.floor(math.log10(step) + 1e-6)
    assert min(abs(leading - digit) for digit in (1, 2, 5)) < 1e-3


def test_ticks_of_a_constant_surround_it() -> None:
    found = ticks(3, 3, 5)
    assert found[0] < 3 < found[-1]


def draw(lines: list[Line], reference: Reference | None = None) -> ET.Element:
    figure = line_chart("Loss", "a note", lines, x_name="updates", reference=reference)
    return ET.fromstring(figure)


def line(label: str, y: list[float], series: int = 0) -> Line:
    return Line(label=label, x=tuple(range(1, len(y) + 1)), y=tuple(y), series=series)


def points(svg: ET.Element, index: int = 0) -> list[tuple[float, float]]:
    words = svg.findall("svg/polyline")[index].get("points", "").split()
    return [(float(x), float(y)) for x, y in (word.split(",") for word in words)]


def test_lines_are_drawn_to_scale() -> None:
    # From 4 to 0 over three points: the axis runs from 0 to 4, so the middle lies in the middle.
    found = points(draw([line("a", [4.0, 2.0, 0.0])]))
    (x0, top), (x1, middle), (x2, bottom) = found
    assert top < bottom
    assert middle == pytest.approx((top + bottom) / 2, abs=0.2)
    assert x2 - x1 == pytest.approx(x1 - x0, abs=0.2)


def test_labels_at_line_ends_keep_apart() -> None:
    svg = draw([line(name, [2.0, 1.0 + 0.001 * i], i) for i, name in enumerate("abcd")])
    labels = {e.text: float(e.get("y", "")) for e in svg.findall("svg/text[@class='end']")}
    assert set(labels) == {"a 1", "b 1", "c 1", "d 1"}
    places = sorted(labels.values())
    assert min(b - a for a, b in itertools.pairwise(places)) >= 12
    # Higher values are labeled higher.
    assert labels["d 1"] < labels["a 1"]


def test_many_points_are_smoothed_over_their_raw_values() -> None:
    zigzag = [2.0 + (-1) ** i for i in range(60)]
    raw, smooth = (points(draw([line("a", zigzag)]), k) for k in (0, 1))
    assert len(raw) == len(smooth) == 60

    def travel(curve: list[tuple[float, float]]) -> float:
        inner = [y for _, y in curve[5:-5]]
        return sum(abs(b - a) for a, b in itertools.pairwise(inner))

    assert travel(smooth) < travel(raw) / 2


def test_a_long_log_is_thinned_and_keeps_its_course() -> None:
    found = points(draw([line("a", [5 - i / 1000 for i in range(4000)])]), 1)
    assert 100 < len(found) <= 400
    assert all(a[1] <= b[1] for a, b in itertools.pairwise(found))


def test_a_reference_lies_in_the_plot() -> None:
    svg = draw([line("a", [1.0, 0.5])], Reference(label="guessing", y=4.2))
    place = float(svg.find("svg/line[@class='reference']").get("y1", ""))
    assert 0 < place < min(y for _, y in points(svg))
    assert "guessing" in [e.text for e in svg.findall("svg/text")]


def test_a_single_point_is_enough() -> None:
    assert "a from 1 to 1" in draw([line("a", [1.0])]).find("svg").get("aria-label", "")
