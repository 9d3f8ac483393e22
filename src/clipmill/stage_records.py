"""Records of a run's stages: progress while they last, and times in the store when they end.

Progress goes as JSON lines to the file that ``CLIPMILL_EVENTS`` names, where a person's terminal
follows it; without that variable it is plain lines on standard error. Where ``CLIPMILL_METRICS``
is ``HOST:PORT``, the process serves ``/metrics`` there from its first stage on; of those that
torchrun starts on a machine only the first one. ``CLIPMILL_RUN`` names
the run of a pipeline's tasks: as a parameter it would keep a task of another run from Kubeflow's
cache.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from clipmill import registry, tracking
from clipmill.errors import ConfigError, UserError
from clipmill.lineage import artifact_at, read_artifact
from clipmill.processes import local_rank
from clipmill.storage import join, open_store, read_json, require_writable, write_json
from clipmill.telemetry import serve_metrics_once
from clipmill.tracking import check_tracking, is_tracked, track_artifact

ProgressCallback = Callable[[int, int, str], None]
"""Callback with the amount done, the total, and a short message."""


def no_progress(done: int, total: int, words: str) -> None:
    """Ignore progress."""
    del done, total, words


EVENTS_VARIABLE = "CLIPMILL_EVENTS"
METRICS_VARIABLE = "CLIPMILL_METRICS"
RUN_VARIABLE = "CLIPMILL_RUN"
_PROGRESS_INTERVAL_SECONDS = 0.2
_MAX_LINE_INTERVAL_SECONDS = 10.0
_LINES = 50  # in any time up to 500 s; a pod's log of a day has 8,640
_END = "end.json"
"""Written by clipmill 0.2 next to the stages' records."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageRecord:
    """Record of a finished stage."""

    name: str
    """Name of the stage."""
    label: str
    """Name of one of several runs of the stage, such as ``G``; empty where there is one."""
    started: float
    """Unix time, seconds."""
    seconds: float
    """Duration."""
    reused: bool
    """True if its result existed already."""
    output: str
    """URI of its output."""


class Stage:
    """Context manager around a stage's work; ``report`` is what the library calls."""

    def __init__(
        self, name: str, *, store: str = "", run: str = "", label: str = "", target: str = ""
    ) -> None:
        self.name = name
        self.label = label
        run = run or current_run()
        self._folder = join(store, "runs", run) if store and run else ""
        # Its output lies in the store, or in the dataset that it adds to.
        self._target = target or store
        self._started = 0.0
        self._reported = 0.0
        self._worked = False
        self._first: tuple[int, float] | None = None
        self._output = ""

    def __enter__(self) -> Self:
        """Begin; raises ConfigError or ServerError where metrics can't be served as asked."""
        if address := os.environ.get(METRICS_VARIABLE):
            _serve_metrics(address)
        check_tracking()
        registry.check_registry()
        self._started = time.time()
        self._write_event({"event": "start"})
        return self

    def report(self, done: int, total: int, words: str) -> None:
        """Report ``done`` of ``total``. The first call marks the stage as one that does work.

        That call raises StorageError where the work couldn't be written.
        """
        if self._target and not self._worked:
            require_writable(self._target)
        self._worked = True
        now = time.time()
        if now - self._reported < self._interval_seconds(now) and done < total:
            return
        self._reported = now
        event = {"event": "progress", "done": done, "total": total, "words": words}
        self._write_event(event | {"remaining_seconds": self._remaining(done, total, now)})

    def _interval_seconds(self, now: float) -> float:
        """Return the time between two reports: less often as lines, which a log keeps."""
        if os.environ.get(EVENTS_VARIABLE):
            return _PROGRESS_INTERVAL_SECONDS
        interval = min((now - self._started) / _LINES, _MAX_LINE_INTERVAL_SECONDS)
        return max(interval, _PROGRESS_INTERVAL_SECONDS)

    def _remaining(self, done: int, total: int, now: float) -> float | None:
        """Return the time to the end at the rate since the first report; None without a rate yet.

        A resumed run's first report comes late in it, so the rate isn't counted from its start.
        """
        if self._first is None or done < self._first[0]:
            self._first = (done, now)
        first, since = self._first
        return (total - done) * (now - since) / (done - first) if done > first else None

    def set_output(self, output: str) -> str:
        """Record the URI of the stage's output, and return it."""
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
            self._write_event({"event": "failed", "seconds": seconds, "words": words, "user": user})
            return
        if self._folder:
            value = {
                "name": self.name,
                "label": self.label,
                "started": self._started,
                "seconds": seconds,
                "reused": not self._worked,
                "output": self._output,
            }
            name = f"{self.name}-{self.label}.json" if self.label else f"{self.name}.json"
            write_json(join(self._folder, name), value)
        self._track(seconds)
        self._write_event({"event": "end", "seconds": seconds, "reused": not self._worked})

    def _track(self, seconds: float) -> None:
        """Send the stage's artifact to the tracker or registry, if one is configured."""
        is_wanted = is_tracked() or registry.is_kubeflow()
        if not (self._output and is_wanted and artifact_at(self._output)):
            return
        artifact = read_artifact(self._output)
        if artifact["kind"] == "promotion":
            of_tracker = tracking.register_promotion
            (registry.register_promotion if registry.is_kubeflow() else of_tracker)(artifact)
            return
        if not is_tracked():
            return
        name = f"{self.name} {self.label}".strip()
        spent = seconds if self._worked else None
        track_artifact(self._output, artifact, stage=name, seconds=spent)

    def _write_event(self, event: dict[str, Any]) -> None:
        event = {"stage": self.name, "label": self.label, "time": time.time(), **event}
        path = os.environ.get(EVENTS_VARIABLE)
        if path:
            with Path(path).open("a") as file:
                file.write(json.dumps(event) + "\n")
            return
        name = f"{self.name} {self.label}".strip()
        if event["event"] == "progress":
            left = event["remaining_seconds"]
            words = event["words"] if not left else f"{event['words']}, {left:.0f} s left"
            print(f"{name}: {event['done']}/{event['total']} {words}", file=sys.stderr)
        elif event["event"] == "end":
            state = "reused" if event["reused"] else "done"
            print(f"{name}: {state} in {event['seconds']:.1f} s", file=sys.stderr)


def current_run() -> str:
    """Return the name of the run that this process is a task of; empty outside a pipeline."""
    return os.environ.get(RUN_VARIABLE, "")


def read_stages(store: str, run: str) -> list[StageRecord]:
    """Return the finished stages of a run, in the order in which they began."""
    folder = join(store, "runs", run)
    keys = [key for key in open_store(folder).list() if key != _END]
    records = [StageRecord(**read_json(join(folder, key))) for key in keys]
    return sorted(records, key=lambda record: record.started)


def _serve_metrics(address: str) -> None:
    """Serve metrics, by the first process of a machine if torchrun started several."""
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal()):
        raise ConfigError(
            f"{METRICS_VARIABLE} is {address!r}",
            expected="HOST:PORT, such as 0.0.0.0:9090",
            action=f"correct {METRICS_VARIABLE}, or unset it",
        )
    if local_rank() == 0:
        serve_metrics_once(int(port), host)
