"""Progress of a pipeline on a terminal: one line per stage, and one for the whole run."""

import json
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn

PLAN_EVENT = "plan"
"""First event of a pipeline: ``stages``, pairs of a stage's name and its typical seconds."""

_POLL_SECONDS = 0.1
_PRIOR_SECONDS = 30.0  # of typical speed, assumed beside what was measured
_REUSED_SECONDS = 3.0  # to find out that a stage's result exists
_DEFAULT_SECONDS = 20.0
_SMOOTHING_SECONDS = 10.0
_QUIET_SECONDS = 5.0  # before a stage's own time left is shown


class TimeLeft:
    """Position in a run and time to its end, from typical durations scaled by measured speed.

    Times are Unix seconds. Stages that the plan doesn't name are added as they start.
    """

    def __init__(self, plan: Sequence[tuple[str, float]], started: float) -> None:
        self._waiting = [(name, seconds) for name, seconds in plan]
        self._started = started
        self._running: dict[str, _Running] = {}
        self._done_seconds = 0.0
        self._num_started = 0
        self._end: float | None = None
        self._updated = started

    @property
    def position(self) -> str:
        """``stage 5 of 19``, by the latest stage that started."""
        total = self._num_started + len(self._waiting)
        return f"stage {max(self._num_started, 1)} of {max(total, 1)}"

    @property
    def fraction(self) -> float:
        """Part of the typical durations that is done, 0 to 1."""
        done = self._done_seconds + sum(r.seconds * r.fraction for r in self._running.values())
        total = done + self._left_seconds()
        return done / total if total else 0.0

    def start(self, key: str, stage: str) -> None:
        """Note that ``stage`` started; ``key`` distinguishes several that run it."""
        self._num_started += 1
        family = stage.split(maxsplit=1)[0]
        planned = next((stage for stage in self._waiting if stage[0] == family), None)
        if planned is not None:
            self._waiting.remove(planned)
        self._running[key] = _Running(planned[1] if planned else _DEFAULT_SECONDS)

    def advance(self, key: str, fraction: float) -> None:
        """Note how much of a running stage is done."""
        self._running[key].fraction = fraction

    def finish(self, key: str, *, reused: bool) -> None:
        """Note a stage's end; a reused result counts for what looking it up takes."""
        seconds = self._running.pop(key).seconds
        self._done_seconds += min(seconds, _REUSED_SECONDS) if reused else seconds

    def remaining_seconds(self, now: float) -> float:
        """Smoothed time to the end."""
        elapsed = max(now - self._started, 0.0)
        done = self._done_seconds + sum(r.seconds * r.fraction for r in self._running.values())
        speed = (done + _PRIOR_SECONDS) / (elapsed + _PRIOR_SECONDS)
        end = now + self._left_seconds() / speed
        if self._end is None:
            self._end = end
        share = min((now - self._updated) / _SMOOTHING_SECONDS, 1.0)
        self._end += share * (end - self._end)
        self._updated = now
        return max(self._end - now, 0.0)

    def describe(self, now: float) -> str:
        """Return the time to the end as text."""
        minutes = round(self.remaining_seconds(now) / 60)
        return f"about {minutes} min left" if minutes else "less than a minute left"

    def _left_seconds(self) -> float:
        running = sum(r.seconds * (1 - r.fraction) for r in self._running.values())
        return running + sum(seconds for _, seconds in self._waiting)


@dataclass(slots=True)
class _Running:
    seconds: float
    """Typical duration."""
    fraction: float = 0.0
    """Part that is done."""


def render_progress(
    events: Path, process: subprocess.Popen[bytes], console: Console
) -> dict[str, Any] | None:
    """Show the events of ``process`` until it ends; the event of the stage that failed, if any.

    A finished stage stays as a line with its time and the time left. On a terminal, running stages
    and the whole run have bars; elsewhere there are only the lines.
    """
    failed = None
    left = TimeLeft([], time.time())
    bars: dict[str, tuple[TaskID, float]] = {}
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[share]:>4}"),
        TextColumn("[dim]{task.fields[message]}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        total = progress.add_task("[bold]starting", total=1.0, share="", message="")
        for event in _read(events, process):
            now = time.time()
            progress.update(
                total,
                description=f"[bold]{left.position}" if bars else "[bold]starting",
                completed=left.fraction,
                message=left.describe(now) if bars else "",
            )
            if event is None:
                continue
            kind = event["event"]
            if kind == PLAN_EVENT:
                left = TimeLeft([(name, float(s)) for name, s in event["stages"]], now)
                continue
            name = f"{event['stage']} {event['label']}".strip()
            if kind == "start":
                left.start(name, event["stage"])
                bar = progress.add_task(name, total=None, share="", message="starting")
                bars[name] = (bar, event["time"])
            elif kind == "progress":
                share = event["done"] / event["total"] if event["total"] else 0.0
                left.advance(name, share)
                bar, started = bars[name]
                progress.update(
                    bar,
                    completed=event["done"],
                    total=event["total"],
                    share=f"{share:.0%}",
                    message=_stage_message(event, now - started),
                )
            else:
                progress.remove_task(bars.pop(name)[0])
                left.finish(name, reused=kind == "failed" or event["reused"])
                console.print(_line(name, event, left, now), soft_wrap=True)
                failed = event if kind == "failed" else failed
    return failed


def _stage_message(event: dict[str, Any], elapsed: float) -> str:
    seconds = event["remaining_seconds"]
    if seconds is None or elapsed < _QUIET_SECONDS:
        return str(event["words"])
    return f"{event['words']}, {5 * -(-seconds // 5):.0f} s left"


def _line(name: str, event: dict[str, Any], left: TimeLeft, now: float) -> str:
    if event["event"] == "failed":
        return f"[red]✗[/] {name:<28}[red]failed[/] after {event['seconds']:.1f} s"
    state = "  reused" if event["reused"] else f"{event['seconds']:6.1f} s"
    return f"[green]✓[/] {name:<28}{state}[dim]   {left.position}, {left.describe(now)}[/]"


def _read(events: Path, process: subprocess.Popen[bytes]) -> Iterator[dict[str, Any] | None]:
    """Events as they are written, and None between them, until the process has ended."""
    with events.open() as file:
        rest = ""
        while True:
            ended = process.poll() is not None
            while text := file.readline():
                rest += text
                if rest.endswith("\n"):
                    yield json.loads(rest)
                    rest = ""
            if ended:
                return
            yield None
            time.sleep(_POLL_SECONDS)
