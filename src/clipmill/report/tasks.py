"""HTML pages of fine-tuning: a task's evaluation, and a sweep's grid with all its points."""

import itertools
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from statistics import fmean, stdev, variance

from clipmill.config import digest_json
from clipmill.lineage import Parent
from clipmill.models.checkpoint import read_metadata
from clipmill.report.comparison import TaskComparison, compare
from clipmill.report.html.charts import Line, Reference, dot_chart, line_chart
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
from clipmill.report.sections.cost import cost_section, stored_cost
from clipmill.report.sections.predictions import predictions_section
from clipmill.report.sections.provenance import environment, provenance_section
from clipmill.storage import join, open_store, write_bytes, write_json
from clipmill.tasks.base import Metric
from clipmill.tasks.promotion import read_promotion
from clipmill.tasks.registry import get_task
from clipmill.tasks.search_space import Point
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
        cost_section({e.task: stored_cost(e.model.uri) for e in results}),
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
    header = concat(
        paragraph("clipmill sweep", class_="kicker"),
        tag("h1", f"Sweep of {result.task}"),
        paragraph(f"Best: {_settings(best.point)}, {_value(best, metric)}"),
        paragraph(tag("code", result.uri), class_="caveat"),
    )
    return document(
        f"Sweep of {result.task}",
        header,
        [
            _comparison(result, metric),
            *_heat_map(result, metric),
            _charts(result, metric),
            _table(result, metric),
        ],
        stylesheets=["sweep"],
    )


def _comparison(result: SweepResult, metric: Metric) -> Section:
    """Compare the best point with the recipe's own values, and say how large the noise is."""
    best, own = result.best.point, result.config.baseline_point()
    points = {"best": best}
    if own is not None and own != best:
        points["recipe"] = own
    rows = []
    for name, point in points.items():
        values = result.repeat_values(point)
        last = result.last_trial(point) if point in result.points else None
        rows.append(
            [
                name if own != best else "best, and the recipe's own",
                _settings(point),
                "not a point" if last is None else _value(last, metric),
                "" if last is None else f"{result.config.rungs[last.rung]:.0%}",
                f"{fmean(values):.3f}" if values else "—",
                f"{stdev(values):.3f}" if len(values) > 1 else "—",
                str(len(values)),
            ]
        )
    head = ["", "values", metric.name, "trained", "mean of repeats", "std", "repeats"]
    return section(
        "comparison",
        "Best and baseline",
        paragraph(_verdict(result, metric, points)),
        table("The best point, and the recipe as it is", head, rows),
    )


def _verdict(result: SweepResult, metric: Metric, points: Mapping[str, Point]) -> str:
    repeats = [result.repeat_values(point) for point in points.values()]
    num_points = len(result.points)
    if min(map(len, repeats)) < 2:
        return (
            f"The noise isn't known: each point was trained with one seed. The best of {num_points}"
            " is chosen by that seed, so its value is optimistic. num_repeats=3 trains it, and the "
            "recipe's own values, with 3 other seeds."
        )
    if len(repeats) == 1:
        return f"The repeats use other seeds than the one by which the best of {num_points} won."
    better, own = repeats
    gain = metric.improvement(fmean(better), fmean(own))
    error = math.sqrt(variance(better) / len(better) + variance(own) / len(own))
    comparison = "above" if abs(gain) > 2 * error else "within"
    return (
        f"Over {len(better)} and {len(own)} further seeds, the best is better by {gain:.3f} ± "
        f"{error:.3f} {metric.unit}".rstrip()
        + f" (standard error): {comparison} twice the noise. Seeds by which the best was chosen "
        "aren't among them."
    )


def _settings(point: Point) -> str:
    return ", ".join(f"{_name(path)} {value:g}" for path, value in point.items())


def _heat_map(result: SweepResult, metric: Metric) -> list[Section]:
    """Return the heat map of a grid of two fields, by each point's last trial."""
    if len(result.config.grid) != 2 or result.config.sampler != "grid":
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
        if t.rung == trial.rung and t.value is not None and not t.has_diverged
    ]
    strength = 0.0
    if trial.value is not None and not trial.has_diverged:
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


def _charts(result: SweepResult, metric: Metric) -> Section:
    """Plot the points of each rung, and what a sampler found over time."""
    title = f"{metric.name} {metric.unit}".strip()
    better = "higher" if metric.higher_is_better else "lower"
    converged = [t for t in result.trials if not t.has_diverged]
    columns = [
        [t.value or 0.0 for t in converged if t.rung == rung]
        for rung in range(len(result.config.rungs))
    ]
    values = [value for column in columns for value in column]
    charts = [
        dot_chart(
            title,
            f"each point by rung; {better} is better",
            columns,
            x_name="rung",
            limits=(min(values), max(values)),
            series=0,
        )
    ]
    own = result.config.baseline_point()
    first = [t for t in converged if t.rung == 0]
    if result.config.sampler != "grid" and len(first) > 1:
        choose = max if metric.higher_is_better else min
        tried = [result.points.index(t.point) + 1.0 for t in first]
        best = list(itertools.accumulate((t.value or 0.0 for t in first), choose))
        lines = [
            Line(label="tried", x=tuple(tried), y=tuple(t.value or 0.0 for t in first), series=1),
            Line(label="best", x=tuple(tried), y=tuple(best), series=0),
        ]
        baseline = next((t.value for t in first if t.point == own), None)
        reference = None if baseline is None else Reference(label="recipe", y=baseline)
        note = f"points of the first rung in their order, by {result.config.sampler}"
        charts.append(line_chart(title, note, lines, x_name="points tried", reference=reference))
    return section("rungs", "Rungs", tag("div", *charts, class_="charts"))


def _table(result: SweepResult, metric: Metric) -> Section:
    """Return a table of all points, by the last rung, then by value."""
    reached = [result.last_trial(point) for point in result.points]
    reached.sort(
        key=lambda t: (t.rung, t.value is not None, metric.improvement(t.value or 0.0, 0.0)),
        reverse=True,
    )
    paths = list(result.config.space)
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
    return section(
        "points",
        "Points",
        table("Every point, by the longest training that it came to", head, rows),
    )


def _value(trial: Trial, metric: Metric) -> str:
    return "diverged" if trial.has_diverged else f"{trial.value:.3f} {metric.unit}".strip()


def _name(path: str) -> str:
    """Return a field's display name: ``train.schedule.lr`` is the peak rate."""
    return {"train.schedule.lr": "rate"}.get(path, path.rpartition(".")[2].replace("_", " "))
