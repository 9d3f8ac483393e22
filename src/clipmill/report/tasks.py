"""HTML pages of fine-tuning: a task's evaluation, and a sweep's grid with all its points."""

from collections.abc import Sequence
from datetime import UTC, datetime

from clipmill.config import digest_json
from clipmill.lineage import Parent
from clipmill.models.checkpoint import read_metadata
from clipmill.report.comparison import TaskComparison, compare
from clipmill.report.html.page import (
    Html,
    Section,
    concat,
    document,
    paragraph,
    section,
    table,
    tag,
)
from clipmill.report.sections.predictions import predictions_section
from clipmill.report.sections.provenance import environment, provenance_section
from clipmill.storage import join, open_store, write_bytes, write_json
from clipmill.tasks.base import Metric
from clipmill.tasks.promotion import read_promotion
from clipmill.tasks.registry import get_task
from clipmill.tasks.sweep import SweepResult, Trial

_LABEL = "this encoder"


def tasks_report(
    encoder: str, evaluations: Sequence[str], promotions: Sequence[str], store: str
) -> str:
    """Write ``report.html`` and ``report.json`` under ``store``; return the URI of their folder.

    Raises:
        NotFoundError: an artifact doesn't exist.
        ConfigError: two evaluations are of one task.
    """
    tasks = compare({_LABEL: evaluations})
    results = [task.evaluations[_LABEL] for task in tasks]
    promoted = {e.task: e for e in (read_promotion(p).evaluation for p in promotions)}
    parents = [Parent(role="evaluation", uri=e.uri, digest=e.digest) for e in results]
    parents += [Parent(role="serving", uri=e.uri, digest=e.digest) for e in promoted.values()]
    digest = digest_json([[parent.role, parent.digest] for parent in parents])
    uri = join(open_store(store).uri, "reports", digest[:12])
    date = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    headline = "; ".join(f"{task.task} {_format_value(task)}" for task in tasks)
    now = {task.task: promoted[task.task] for task in tasks if task.task in promoted}
    rows = [
        [
            task.task,
            _format_value(task),
            task.format.text(now[task.task].metrics[task.metric.name]) if task.task in now else "—",
            "this" if now.get(task.task) == task.evaluations[_LABEL] else "another, not beaten",
        ]
        for task in tasks
    ]
    head = ["Task", "This encoder", "Serves now", "Which model"]
    models = {(_LABEL, e.task): read_metadata(e.model.uri) for e in results}
    header = tag(
        "header",
        paragraph(f"clipmill report · {date}", class_="kicker"),
        tag("h1", headline),
        paragraph(tag("code", encoder), class_="caveat"),
    )
    sections = [
        section("results", "Results", table("Each task's metric on its test data.", head, rows)),
        predictions_section(tasks, models),
        provenance_section(
            [(f"Model for {e.task}", e.model.uri) for e in results], store, environment(), date
        ),
    ]
    write_bytes(join(uri, "report.html"), document(headline, header, sections).encode())
    write_json(
        join(uri, "report.json"),
        {
            "format": 1,
            "kind": "report",
            "digest": digest,
            "parents": [parent.to_json() for parent in parents],
            "summary": {"verdict": headline},
            "encoder": encoder,
            "metrics": {e.task: dict(e.metrics) for e in results},
            "date": date,
        },
    )
    return uri


def _format_value(task: TaskComparison) -> str:
    value = task.evaluations[_LABEL].metrics[task.metric.name]
    return f"{task.format.title} {task.format.text(value)}"


_FAINTEST, _STRONGEST = 8, 62
"""Opacity of a cell with the worst and with the best value, percent."""


def sweep_page(result: SweepResult) -> str:
    """Return a self-contained HTML page."""
    metric = get_task(result.task).metric
    best = result.best
    settings = ", ".join(f"{_name(path)} {value:g}" for path, value in best.point.items())
    header = concat(
        paragraph("clipmill sweep", class_="kicker"),
        tag("h1", f"Sweep of {result.task}"),
        paragraph(f"Best: {settings}, {_value(best, metric)}"),
        paragraph(tag("code", result.uri), class_="caveat"),
    )
    return document(
        f"Sweep of {result.task}",
        header,
        [*_heat_map(result, metric), _table(result, metric)],
        stylesheets=["sweep"],
    )


def _heat_map(result: SweepResult, metric: Metric) -> list[Section]:
    """Return the heat map of a grid of two fields, by each point's last trial."""
    if len(result.config.grid) != 2:
        return []
    (row_path, rows), (column_path, columns) = result.config.grid.items()
    reached = {
        (r, c): result.last_trial({row_path: r, column_path: c}) for r in rows for c in columns
    }
    body = [[f"{r:g}", *(_cell(reached[r, c], result, metric) for c in columns)] for r in rows]
    note = (
        "A figure is of the longest training that the point came to, given below it as a share of "
        "the whole; colors compare points of one length. Framed: the best."
    )
    head = [f"{_name(row_path)} \\ {_name(column_path)}", *(f"{c:g}" for c in columns)]
    caption = f"{metric.name} {metric.unit}".strip()
    return [
        section(
            "grid",
            "Grid",
            paragraph(note, class_="caveat"),
            table(caption, head, body, class_="heat"),
        )
    ]


def _cell(trial: Trial, result: SweepResult, metric: Metric) -> Html:
    share = result.config.rungs[trial.rung]
    length = tag("small", f"{share:.0%}")
    peers = [
        metric.improvement(t.value, 0.0)
        for t in result.trials
        if t.rung == trial.rung and t.value is not None
    ]
    strength = 0.0
    if trial.value is not None:
        spread = max(peers) - min(peers)
        position = (metric.improvement(trial.value, 0.0) - min(peers)) / spread if spread else 1.0
        strength = _FAINTEST + position * (_STRONGEST - _FAINTEST)
    return tag(
        "td",
        _value(trial, metric),
        length,
        class_="best" if trial == result.best else "",
        style=f"background:color-mix(in srgb, var(--series-1) {strength:.0f}%, transparent)",
    )


def _table(result: SweepResult, metric: Metric) -> Section:
    """Return a table of all points, by the last rung, then by value."""
    reached = [result.last_trial(point) for point in result.config.points()]
    reached.sort(
        key=lambda t: (t.rung, t.value is not None, metric.improvement(t.value or 0.0, 0.0)),
        reverse=True,
    )
    paths = list(result.config.grid)
    rows = [
        [
            str(rank),
            *(f"{trial.point[path]:g}" for path in paths),
            _value(trial, metric),
            f"{result.config.rungs[trial.rung]:.0%}",
            tag("td", tag("code", trial.evaluation)),
        ]
        for rank, trial in enumerate(reached, start=1)
    ]
    head = ["place", *map(_name, paths), metric.name, "trained", "evaluation"]
    return section("points", "Points", table("Every point of the grid", head, rows))


def _value(trial: Trial, metric: Metric) -> str:
    return "diverged" if trial.value is None else f"{trial.value:.3f} {metric.unit}".strip()


def _name(path: str) -> str:
    """Return a field's display name: ``train.schedule.lr`` is the peak rate."""
    return {"train.schedule.lr": "rate"}.get(path, path.rpartition(".")[2].replace("_", " "))
