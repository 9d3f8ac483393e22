"""Stages on one axis."""

import re

import pytest

from clipmill.report.format import format_duration
from clipmill.report.sections.training import timing_section, wall_seconds
from clipmill.stage_records import StageRecord


def stage(name: str, started: float, seconds: float, *, label="", reused=False) -> StageRecord:
    return StageRecord(
        name=name, label=label, started=started, seconds=seconds, reused=reused, output="x"
    )


STAGES = [
    stage("shard", 1000, 0.1, reused=True),
    stage("pretrain", 1010, 60, label="G"),
    stage("pretrain", 1020, 80, label="G+S"),
]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.6, "1 min 00 s"),
        (125, "2 min 05 s"),
        (3599.7, "1 h 00 min"),
        (7320, "2 h 02 min"),
    ],
)
def test_durations(seconds: float, words: str) -> None:
    assert format_duration(seconds).replace("\u00a0", " ") == words


def test_bars_lie_where_their_stages_do() -> None:
    body = timing_section(STAGES, ["G", "G+S"]).body
    found = re.findall(r'<i style="left: ([\d.]+)%; width: ([\d.]+)%([^"]*)"([^>]*)>', body)
    places = [(float(left), float(width)) for left, width, _, _ in found]
    assert places == [(0, 0.1), (10, 60), (20, 80)]
    assert [color for _, _, color, _ in found] == [
        "",
        "; color: var(--series-0)",
        "; color: var(--series-1)",
    ]
    assert ["reused" in rest for _, _, _, rest in found] == [True, False, False]


def test_totals() -> None:
    assert wall_seconds(STAGES) == 100
    words = timing_section(STAGES, []).body.replace("\u00a0", " ")
    assert "1 min 40 s from the first start" in words
    assert "add up to 2 min 20 s" in words
    assert "1 of 3 found their result there already" in words
    # Twenty seconds apart: the smallest round step of which five fit would be 30.
    assert re.findall(r"<span [^>]*>([^<]+)</span>", words) == ["0", "30 s", "1 min", "90 s"]


def test_no_stages() -> None:
    assert wall_seconds([]) == 0
    assert "No stage" in timing_section([], []).body
