"""Training runs of a store, finished or not, compared by settings and curves."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clipmill.config import flatten
from clipmill.cost import RunCost, read_cost
from clipmill.engine.result import RUN_FILE, STATE_FOLDER, read_log
from clipmill.errors import ArtifactError, NotFoundError, StorageError
from clipmill.lineage import LOG_FILE
from clipmill.models.checkpoint import read_metadata
from clipmill.report.html.charts import Line, line_chart
from clipmill.report.html.page import (
    Html,
    Section,
    concat,
    details,
    document,
    empty_section,
    section,
    table,
    tag,
)
from clipmill.report.sections.cost import cost_section
from clipmill.report.sections.sources import source_charts
from clipmill.storage import join, open_store, read_bytes, read_json

_CARD = "model.json"
_NONE = "\u2013"
# Curves of a page, in this order, then whatever else the logs hold.
_CURVES = {
    "loss": ("Loss", "the sum of the terms"),
    "gradient_norm": ("Gradient norm", "before clipping"),
    "logit_scale": ("Logit scale", "what cosines are multiplied with"),
    "samples_per_second": ("Samples a second", "all ranks together"),
    "data_wait": ("Waiting for data", "share of the time"),
    "mfu": ("Model FLOPs utilization", "share of the device's peak"),
    "learning_rate": ("Learning rate", "of the fastest group"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingRun:
    """A training run with its settings and log."""

    name: str
    """Path in the store: ``encoders/both-1a2b3c4d5e6f``."""
    uri: str
    """URI of the folder."""
    status: str
    """``finished``, ``running``, ``stopped`` or ``failed``."""
    reason: str
    """Cause of a failure; empty otherwise."""
    step: int
    """Completed steps, by the log."""
    steps: int
    """Steps of the full run."""
    settings: Mapping[str, Any]
    """Config values by dotted path."""
    log: tuple[dict[str, float], ...]
    """Log records."""
    cost: RunCost | None
    """Its cost so far; None of a run of clipmill 0.1."""

    @property
    def last(self) -> dict[str, float]:
        """Last log record."""
        return self.log[-1] if self.log else {}

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, with the last record of the log."""
        names = ("name", "uri", "status", "step", "steps")
        own = {name: getattr(self, name) for name in names} | {"words": self.reason}
        cost = None if self.cost is None else self.cost.to_json()
        return own | {"settings": dict(self.settings), "last": self.last, "cost": cost}


def list_runs(store: str) -> list[TrainingRun]:
    """Return all training runs under a store, by name, without unreadable ones.

    Raises:
        NotFoundError: the store is empty.
    """
    runs = []
    keys = list(open_store(store).list())
    if not keys:
        raise NotFoundError(
            f"there is nothing under {store}",
            expected="the directory or s3:// URI of --store in the commands before",
            action="check the path",
        )
    for key in keys:
        folder, _, file = key.rpartition("/")
        try:
            if file == _CARD:
                runs.append(_finished(store, folder))
            elif file == RUN_FILE and folder.rpartition("/")[2] == STATE_FOLDER:
                runs.append(_unfinished(store, folder.rpartition("/")[0]))
        except (ArtifactError, StorageError, KeyError):
            # Not a run of training, or one that is being written.
            continue
    return sorted(runs, key=lambda run: run.name)


def varying_settings(runs: Sequence[TrainingRun]) -> dict[str, list[Any]]:
    """Return the settings that differ between runs, with the value of each run."""
    varying = {}
    for path in sorted({path for run in runs for path in run.settings}):
        if len({str(run.settings[path]) for run in runs if path in run.settings}) > 1:
            varying[path] = [run.settings.get(path) for run in runs]
    return varying


def runs_page(store: str, runs: Sequence[TrainingRun]) -> str:
    """Return an HTML page with a table of the runs, their varying settings, and curves."""
    header = tag(
        "header", tag("h1", "Training runs"), tag("p", f"{len(runs)} under {store}", class_="lead")
    )
    costs = cost_section({run.name: run.cost for run in runs})
    sections = [_table(runs), costs, _curves(runs), _single_values(runs), _settings(runs)]
    return document("Training runs", header, [part for part in sections if part is not None])


def _finished(store: str, name: str) -> TrainingRun:
    uri = join(store, name)
    metadata = read_metadata(uri)
    steps = int(metadata.recipe["train"]["steps"])
    try:
        log = tuple(read_log(uri))
    except NotFoundError:
        log = ()
    return TrainingRun(
        name=name,
        uri=uri,
        status="finished",
        reason="",
        step=steps,
        steps=steps,
        settings=flatten(metadata.recipe),
        log=log,
        cost=read_cost(uri),
    )


def _unfinished(store: str, name: str) -> TrainingRun:
    uri = join(store, name)
    run = read_json(join(uri, STATE_FOLDER, RUN_FILE))
    lines = read_bytes(join(uri, STATE_FOLDER, LOG_FILE)).decode().splitlines()
    return TrainingRun(
        name=name,
        uri=uri,
        status=run["status"],
        reason=run["words"],
        step=int(run["step"]),
        steps=int(run["steps"]),
        settings=flatten({"train": run["train"]}),
        log=tuple(json.loads(line) for line in lines),
        cost=read_cost(join(uri, STATE_FOLDER)),
    )


def _table(runs: Sequence[TrainingRun]) -> Section:
    if not runs:
        return section("runs", "Runs", empty_section("There is no training run here."))
    head = ["Run", "Status", "Updates", "Loss", "Samples/s"]
    rows = [
        [
            run.name,
            f"{run.status}: {run.reason}" if run.reason else run.status,
            f"{run.step:,} of {run.steps:,}",
            format_cell(run.last.get("loss"), 3),
            format_cell(run.last.get("samples_per_second"), 0),
        ]
        for run in runs
    ]
    return section("runs", "Runs", table("Training runs, by name.", head, rows, class_="small"))


def _settings(runs: Sequence[TrainingRun]) -> Section:
    varying = varying_settings(runs)
    if not varying:
        return section("settings", "What sets them apart", empty_section("No setting differs."))
    rows = [[path, *(_plain(v) for v in values)] for path, values in varying.items()]
    head = ["Setting", *(run.name for run in runs)]
    body = table("Settings that aren't the same in all runs.", head, rows, class_="small")
    return section("settings", "What sets them apart", details(f"{len(rows)} settings", body))


def _curves(runs: Sequence[TrainingRun]) -> Section:
    names = {name for name, count in _num_records(runs).items() if count > 1}
    order = [n for n in _CURVES if n in names] + sorted(names - _CURVES.keys())
    charts = [chart for name in order if (chart := _curve(name, runs))]
    for run in runs:
        charts += source_charts(run.log, run.name.rpartition("/")[2])
    if not charts:
        return section("curves", "Curves", empty_section("No run has left a record yet."))
    return section("curves", "Curves", tag("div", concat(*charts), class_="charts"))


def _single_values(runs: Sequence[TrainingRun]) -> Section | None:
    """Return the table of metrics that no run logged more than once; None if there are none."""
    names = sorted(name for name, count in _num_records(runs).items() if count == 1)
    if not names:
        return None
    rows = [
        [
            name,
            *(format_cell(next((r[name] for r in run.log if name in r), None), 3) for run in runs),
        ]
        for name in names
    ]
    head = ["Metric", *(run.name.rpartition("/")[2] for run in runs)]
    body = table("Values that no run has logged more than once.", head, rows, class_="small")
    return section("values", "Metrics after training", body)


def _num_records(runs: Sequence[TrainingRun]) -> dict[str, int]:
    """Count each metric's records in the run that has most of them; not those of sources."""
    counts: dict[str, int] = {}
    for run in runs:
        for name, count in Counter(key for record in run.log for key in record).items():
            counts[name] = max(counts.get(name, 0), count)
    return {n: c for n, c in counts.items() if n != "step" and not n.startswith("source/")}


def _curve(name: str, runs: Sequence[TrainingRun]) -> Html | None:
    lines = []
    for series, run in enumerate(runs):
        records = [record for record in run.log if name in record]
        if records:
            x, y = (tuple(record[key] for record in records) for key in ("step", name))
            lines.append(Line(label=run.name.rpartition("/")[2], x=x, y=y, series=series))
    title, note = _CURVES.get(name, (name, ""))
    return line_chart(title, note, lines, x_name="updates") if lines else None


def format_cell(value: float | None, decimals: int) -> str:
    """Format a number for a table; a dash for None."""
    return _NONE if value is None else f"{value:,.{decimals}f}"


def _plain(value: Any) -> str:
    return _NONE if value is None else str(value)
