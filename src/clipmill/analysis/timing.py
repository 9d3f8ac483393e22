"""Where a run's time went: each stage's start and length on one axis."""

from collections.abc import Sequence

from clipmill.analysis.page import Html, Section, missing, paragraph, section, table, tag
from clipmill.analysis.style import series_colour
from clipmill.stage_records import StageRecord


def timing_section(stages: Sequence[StageRecord], labels: Sequence[str]) -> Section:
    """The section ``Where time went``; stages of one of the labels are in its colour."""
    if not stages:
        return section("time", "Where time went", missing("No stage of a run was recorded."))
    total = wall_seconds(stages)
    start = min(stage.started for stage in stages)
    rows = [
        [
            f"{stage.name} {stage.label}".strip(),
            tag("td", _track(stage, start, total, labels)),
            "reused" if stage.reused else duration(stage.seconds),
        ]
        for stage in stages
    ]
    rows.append(["", tag("td", _axis(total)), ""])
    worked = sum(stage.seconds for stage in stages)
    reused = sum(stage.reused for stage in stages)
    words = f"{duration(total)} from the first start to the last end; the stages add up to "
    words += f"{duration(worked)}."
    if reused:
        words += f" {reused} of {len(stages)} found their result there already (hatched)."
    return section(
        "time",
        "Where time went",
        paragraph(words),
        table(
            "Stages in the order in which they began.",
            ["Stage", "", "Time"],
            rows,
            class_="time small",
        ),
    )


def wall_seconds(stages: Sequence[StageRecord]) -> float:
    """From the first start to the last end; 0 without stages."""
    if not stages:
        return 0.0
    return max(s.started + s.seconds for s in stages) - min(s.started for s in stages)


def duration(seconds: float) -> str:
    """``0.4 s``, ``12 s``, ``2 min 05 s``, ``1 h 02 min``."""
    if seconds < 9.95:
        return f"{seconds:.1f}\u00a0s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}\u00a0s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}\u00a0min {rest:02d}\u00a0s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours}\u00a0h {minutes:02d}\u00a0min"


def _track(stage: StageRecord, start: float, total: float, labels: Sequence[str]) -> Html:
    left, width = (_percent(v, total) for v in (stage.started - start, stage.seconds))
    style = f"left: {left}; width: {width}"
    if stage.label in labels:
        style += f"; color: {series_colour(labels.index(stage.label))}"
    bar = tag("i", style=style, class_="reused" if stage.reused else "")
    return tag("div", bar, class_="track")


def _axis(total: float) -> Html:
    marks = (
        tag("span", _round_duration(v), style=f"left: {_percent(v, total)}")
        for v in range(0, int(total) + 1, _step_seconds(total))
    )
    return tag("div", marks, class_="track soft", aria_hidden="true")


def _step_seconds(total: float) -> int:
    """A round step of which at most five fit."""
    units = (1, 60, 3600, 86400, 864000, 8640000)
    steps = [unit * digit for unit in units for digit in (1, 2, 5, 10, 30)]
    return next((step for step in steps if total / step <= 5), steps[-1])


def _round_duration(seconds: int) -> str:
    for name, unit in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        if seconds and seconds % unit == 0:
            return f"{seconds // unit}\u00a0{name}"
    return "0"


def _percent(part: float, total: float) -> str:
    return f"{100 * part / total:.2f}%" if total else "0%"
