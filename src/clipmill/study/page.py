"""A study on one page: the paper's table with error bars, dose and response, caption quality."""

from clipmill.analysis.charts import Line, line_chart
from clipmill.analysis.page import (
    Html,
    Section,
    details,
    document,
    paragraph,
    section,
    table,
    tag,
    together,
)
from clipmill.analysis.provenance import environment
from clipmill.study.result import StudyResult, StudyRun
from clipmill.study.statistics import bootstrap, sign_flip_p, trend_p
from clipmill.tasks.contract import Metric
from clipmill.tasks.registry import task_named

_CAVEAT = (
    "A miniature world: drawn scenes, small encoders, minutes of training. It can show whether "
    "the mechanism works as the paper says and which way; it can't show how large the effect is "
    "on photographs, nor for encoders of full size."
)


def study_page(result: StudyResult) -> str:
    """A self-contained HTML page."""
    seeds = len(result.config.seeds)
    header = together(
        paragraph("clipmill study captions", class_="kicker"),
        tag("h1", "Does caption quality make better dense features?"),
        paragraph(" ".join(verdict(result)), class_="lead"),
        paragraph(_CAVEAT, class_="caveat"),
    )
    dosed = [c for c in result.config.conditions if c.dose is not None]
    parts = [
        section(
            "results",
            "Results",
            paragraph(
                f"Mean over {seeds} seed{'s' if seeds != 1 else ''} with its 95 % bootstrap "
                f"interval; below it the paired difference to {result.config.conditions[0].name}, "
                "its interval, and p of a sign-flip test, which "
                f"{seeds} pairs can't bring below {2 / 2**seeds:.3g}.",
                class_="caveat",
            ),
            _results(result),
        ),
        *([_doses(result)] if len(dosed) > 2 else []),
        _quality(result),
        _traces(result),
    ]
    return document("Study of captions", header, parts, style=_STYLE)


_STYLE = """
td small { display: block; color: var(--soft); white-space: nowrap; }
"""


def verdict(result: StudyResult) -> list[str]:
    """A sentence a condition and task whose difference's interval excludes 0, or that none does."""
    first, *others = result.config.conditions
    found = []
    for condition in others:
        for task in result.tasks:
            metric = task_named(task).metric
            gains = _gains(result, condition.name, task, metric)
            interval = bootstrap(gains)
            if interval.low > 0 or interval.high < 0:
                better = "better" if interval.mean > 0 else "worse"
                found.append(
                    f"{condition.name} is {better} than {first.name} at {task} by "
                    f"{_signed(abs(interval.mean), metric)[1:]}."
                )
    return found or [f"No condition differs from {first.name} by more than its interval."]


def markdown(result: StudyResult) -> str:
    """The results as a Markdown table."""
    head = ["captions", *(f"{t} {task_named(t).metric.name}" for t in result.tasks)]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for condition in result.config.conditions:
        cells = [condition.name]
        for task in result.tasks:
            metric = task_named(task).metric
            found = bootstrap(result.figures(condition.name, task))
            cells.append(f"{_plain(found.mean, metric)} [{found.low:.3f}, {found.high:.3f}]")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def rows(result: StudyResult) -> list[dict[str, str | int | float]]:
    """Every figure of every run: what a CSV holds."""
    return [
        {
            "condition": run.condition,
            "seed": run.seed,
            "task": task,
            "metric": name,
            "value": value,
            "encoder": run.encoder,
            "evaluation": run.evaluations[task],
        }
        for run in result.runs
        for task, metrics in run.metrics.items()
        for name, value in metrics.items()
    ]


def _gains(result: StudyResult, condition: str, task: str, metric: Metric) -> list[float]:
    """How much better than the first condition, seed by seed."""
    first = result.figures(result.config.conditions[0].name, task)
    own = result.figures(condition, task)
    return [metric.gain(value, over) for value, over in zip(own, first, strict=True)]


def _results(result: StudyResult) -> Html:
    head = ["Captions", *(_heading(task) for task in result.tasks)]
    body = [
        [condition.name, *(_cell(result, condition.name, task) for task in result.tasks)]
        for condition in result.config.conditions
    ]
    return table("Each encoder fine-tuned for each task.", head, body)


def _heading(task: str) -> str:
    metric = task_named(task).metric
    return f"{task} {metric.name} {metric.unit}".strip()


def _cell(result: StudyResult, condition: str, task: str) -> Html:
    metric = task_named(task).metric
    found = bootstrap(result.figures(condition, task))
    own = f"{_plain(found.mean, metric)} ({found.low:.3f} to {found.high:.3f})"
    if condition == result.config.conditions[0].name:
        return tag("td", own)
    gains = _gains(result, condition, task, metric)
    change = bootstrap(gains)
    over = bootstrap(result.figures(result.config.conditions[0].name, task)).mean
    words = (
        f"{_signed(change.mean, metric)} ({change.low:+.3f} to {change.high:+.3f}), "
        f"{100 * change.mean / over:+.1f} %, p = {sign_flip_p(gains):.3g}"
    )
    return tag("td", own, tag("small", words))


def _doses(result: StudyResult) -> Section:
    dosed = sorted(
        (c for c in result.config.conditions if c.dose is not None), key=lambda c: c.dose or 0.0
    )
    charts = []
    for task in result.tasks:
        metric = task_named(task).metric
        figures = [result.figures(condition.name, task) for condition in dosed]
        points = tuple(sum(values) / len(values) for values in figures)
        line = Line(label=task, x=tuple(c.dose or 0.0 for c in dosed), y=points, series=0)
        note = f"mean over seeds, {metric.unit or 'share'}; trend: p = {trend_p(figures):.2g}"
        charts.append(line_chart(_heading(task), note, [line], x_name="wrong captions, percent"))
    return section(
        "dose",
        "Dose and response",
        paragraph("True captions, of which a share is another picture's."),
        tag("div", charts, class_="charts"),
    )


def _quality(result: StudyResult) -> Section:
    body = [
        [name, f"{q.true_share:.1f} %", f"{q.num_words:.1f}", f"{q.num_different:,}"]
        for name, q in result.quality.items()
    ]
    head = ["Captions", "Pictures with true words alone", "Words", "Different captions"]
    note = "Colours and objects named, against those that the picture shows."
    return section("quality", "Quality of the captions", table(note, head, body))


def _traces(result: StudyResult) -> Section:
    runs = [
        [f"{run.condition}, seed {run.seed}", tag("td", tag("code", run.encoder)), *_uris(run)]
        for run in result.runs
    ]
    head = ["Run", "Encoder", *(f"Evaluation, {task}" for task in result.tasks)]
    facts = [[name, value] for name, value in environment().items()]
    facts += [
        ["study", result.uri],
        ["digest of its config", result.config.digest],
        ["hours of this run", f"{result.seconds / 3600:.2f}"],
    ]
    return section(
        "traces",
        "Where each number comes from",
        table("What it was made with.", ["Fact", "Value"], facts, class_="small"),
        details(
            f"All {len(result.runs)} runs",
            paragraph("clipmill lineage URI draws any of them back to source files."),
            table("By condition and seed.", head, runs, class_="small"),
        ),
    )


def _uris(run: StudyRun) -> list[Html]:
    return [tag("td", tag("code", uri)) for uri in run.evaluations.values()]


def _plain(value: float, metric: Metric) -> str:
    return f"{value:.3f} {metric.unit}".strip()


def _signed(value: float, metric: Metric) -> str:
    return f"{value:+.3f} {metric.unit}".strip()
