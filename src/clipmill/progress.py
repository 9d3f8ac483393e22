"""A pipeline's stages on a person's terminal: a line each, live while they run."""

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn

_POLL_SECONDS = 0.1


def follow(
    events: Path, process: subprocess.Popen[bytes], console: Console
) -> dict[str, Any] | None:
    """Draw the events of ``process`` until it ends; the event of the stage that failed, if any.

    Finished stages stay as lines with their time; running ones have a bar.
    """
    failed = None
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("[dim]{task.fields[words]}"),
        TextColumn("[dim]{task.fields[seconds]:.0f} s"),
        console=console,
        transient=True,
    ) as progress:
        bars: dict[str, tuple[TaskID, float]] = {}
        for event in _read(events, process):
            now = time.time()
            for bar, started in bars.values():
                progress.update(bar, seconds=now - started)
            if event is None:
                continue
            name = f"{event['stage']} {event['label']}".strip()
            kind = event["event"]
            if kind == "start":
                bar = progress.add_task(name, total=None, words="", seconds=0.0)
                bars[name] = (bar, event["time"])
            elif kind == "progress":
                left = event["remaining_seconds"]
                progress.update(
                    bars[name][0],
                    completed=event["done"],
                    total=event["total"],
                    words=event["words"] + ("" if left is None else f", {left:.0f} s left"),
                )
            else:
                progress.remove_task(bars.pop(name)[0])
                console.print(_line(name, event))
                failed = event if kind == "failed" else failed
    return failed


def _line(name: str, event: dict[str, Any]) -> str:
    if event["event"] == "failed":
        return f"[red]✗[/] {name:<28}[red]failed[/] after {event['seconds']:.1f} s"
    state = "[dim]reused[/]" if event["reused"] else f"{event['seconds']:6.1f} s"
    return f"[green]✓[/] {name:<28}{state}"


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
