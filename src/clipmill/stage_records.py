"""A stage of a run: its progress while it lasts, and its time in the store when it ends.

Progress goes as JSON lines to the file that ``CLIPMILL_EVENTS`` names, where a person's terminal
follows it; without that variable it is plain lines on standard error. Where ``CLIPMILL_METRICS``
is ``HOST:PORT``, the process serves ``/metrics`` there from its first stage on.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from clipmill.errors import ConfigError, UserError
from clipmill.storage import join, open_store, read_json, require_writable, write_json
from clipmill.telemetry import serve_metrics

Report = Callable[[int, int, str], None]
"""Progress: how much is done, of how much, and a few words."""


def silent(done: int, total: int, words: str) -> None:
    """A report for work whose progress nobody follows."""
    del done, total, words


EVENTS_VARIABLE = "CLIPMILL_EVENTS"
METRICS_VARIABLE = "CLIPMILL_METRICS"
_QUIET_SECONDS = 0.2
_END = "end.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class StageRecord:
    """What a finished stage leaves."""

    name: str
    """Which stage."""
    label: str
    """Which of several that run it, such as ``G``; empty where there is one."""
    started: float
    """Unix time, seconds."""
    seconds: float
    """How long it took."""
    reused: bool
    """Whether its result was there already."""
    output: str
    """URI of what it made, or found."""


class Stage:
    """Context manager around a stage's work; ``report`` is what the library calls."""

    def __init__(
        self, name: str, *, store: str = "", run: str = "", label: str = "", target: str = ""
    ) -> None:
        self.name = name
        self.label = label
        self._place = join(store, "runs", run) if store and run else ""
        # What it makes lies in the store, or in the dataset that it adds to.
        self._target = target or store
        self._started = 0.0
        self._told = 0.0
        self._worked = False
        self._first: tuple[int, float] | None = None
        self._output = ""

    def __enter__(self) -> Self:
        """Begin; raises ConfigError or ServerError where metrics can't be served as asked."""
        if address := os.environ.get(METRICS_VARIABLE):
            _serve_metrics(address)
        self._started = time.time()
        self._emit({"event": "start"})
        return self

    def report(self, done: int, total: int, words: str) -> None:
        """Progress: ``done`` of ``total``. Its first call says that there is work to do.

        That call raises StorageError where the work couldn't be written.
        """
        if self._target and not self._worked:
            require_writable(self._target)
        self._worked = True
        now = time.time()
        if now - self._told < _QUIET_SECONDS and done < total:
            return
        self._told = now
        event = {"event": "progress", "done": done, "total": total, "words": words}
        self._emit(event | {"remaining_seconds": self._remaining(done, total, now)})

    def _remaining(self, done: int, total: int, now: float) -> float | None:
        """Time to the end at the pace since the first report; None while there is no pace yet.

        A resumed run's first report comes late in it, so the pace isn't counted from its start.
        """
        if self._first is None or done < self._first[0]:
            self._first = (done, now)
        first, since = self._first
        return (total - done) * (now - since) / (done - first) if done > first else None

    def made(self, output: str) -> str:
        """Note the URI of the stage's output, and hand it back."""
        self._output = output
        return output

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        seconds = time.time() - self._started
        if error is not None:
            user = (
                [error.what, error.expected, error.action] if isinstance(error, UserError) else None
            )
            words = f"{type(error).__name__}: {error}"
            self._emit({"event": "failed", "seconds": seconds, "words": words, "user": user})
            return
        if self._place:
            value = {
                "name": self.name,
                "label": self.label,
                "started": self._started,
                "seconds": seconds,
                "reused": not self._worked,
                "output": self._output,
            }
            name = f"{self.name}-{self.label}.json" if self.label else f"{self.name}.json"
            write_json(join(self._place, name), value)
        self._emit({"event": "end", "seconds": seconds, "reused": not self._worked})

    def _emit(self, event: dict[str, Any]) -> None:
        event = {"stage": self.name, "label": self.label, "time": time.time(), **event}
        path = os.environ.get(EVENTS_VARIABLE)
        if path:
            with Path(path).open("a") as file:
                file.write(json.dumps(event) + "\n")
            return
        name = f"{self.name} {self.label}".strip()
        if event["event"] == "progress":
            left = event["remaining_seconds"]
            words = event["words"] if left is None else f"{event['words']}, {left:.0f} s left"
            print(f"{name}: {event['done']}/{event['total']} {words}", file=sys.stderr)
        elif event["event"] == "end":
            state = "reused" if event["reused"] else "done"
            print(f"{name}: {state} in {event['seconds']:.1f} s", file=sys.stderr)


def write_end(store: str, run: str, state: str, error: str) -> None:
    """Keep how a run ended, beside the times of its stages."""
    write_json(join(store, "runs", run, _END), {"state": state, "error": error})


def read_stages(store: str, run: str) -> list[StageRecord]:
    """The finished stages of a run, in the order in which they began."""
    place = join(store, "runs", run)
    keys = [key for key in open_store(place).list() if key != _END]
    records = [StageRecord(**read_json(join(place, key))) for key in keys]
    return sorted(records, key=lambda record: record.started)


@cache
def _serve_metrics(address: str) -> None:
    """Once a process: its stages follow one another."""
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal()):
        raise ConfigError(
            f"{METRICS_VARIABLE} is {address!r}",
            expected="HOST:PORT, such as 0.0.0.0:9090",
            action=f"correct {METRICS_VARIABLE}, or unset it",
        )
    serve_metrics(int(port), host=host)
