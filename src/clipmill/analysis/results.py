"""The figures of every task and label in a table, and whether they may be compared."""

from collections.abc import Sequence

from clipmill.analysis.comparison import TaskComparison
from clipmill.analysis.fairness import Check
from clipmill.analysis.figures import MINUS, Figure, figure_named
from clipmill.analysis.page import Html, Section, details, missing, section, table, tag
from clipmill.analysis.verdict import listed


def results_section(tasks: Sequence[TaskComparison], checks: Sequence[Check]) -> Section:
    """The section ``Results``."""
    if not tasks:
        return section("results", "Results", missing("No evaluation was given."))
    labels = tasks[0].labels
    head = ["Task", *labels, *_difference_names(labels), "Better"]
    main = table(
        "Each task's metric on its test data; the best is marked.",
        head,
        [_row(task) for task in tasks],
        class_="large two" if len(labels) == 2 else "large",
    )
    others = table(
        "All figures of the evaluations.",
        ["Figure", *labels, *_difference_names(labels)],
        [row for task in tasks for row in _other_rows(task)],
        class_="small",
    )
    marks = (
        tag("li", tag("b", "✓" if check.fair else "✗"), check.words, class_=_mark(check))
        for check in checks
    )
    return section(
        "results",
        "Results",
        main,
        details("All figures", others),
        tag("h3", "Is it a fair comparison?"),
        tag("ul", marks, class_="checks"),
    )


def _difference_names(labels: Sequence[str]) -> list[str]:
    if len(labels) == 2:
        return ["Difference"]
    return [f"{label} {MINUS} {labels[0]}" for label in labels[1:]]


def _row(task: TaskComparison) -> list[str]:
    figure, best = task.figure, task.best()
    direction = "higher is better" if figure.higher_is_better else "lower is better"
    name = tag("span", task.task, tag("small", f"{figure.title}, {direction}"))
    values = [
        tag(
            "td",
            "—" if (value := task.value(label)) is None else figure.text(value),
            class_="best" if label in best else "",
        )
        for label in task.labels
    ]
    differences = [
        _difference(figure, task.value(k), task.value(task.labels[0])) for k in task.labels[1:]
    ]
    tied = "tied" if len(task.evaluations) > 1 else "—"
    return [name, *values, *differences, listed(best) if best else tied]


def _other_rows(task: TaskComparison) -> list[list[str]]:
    names = dict.fromkeys(name for e in task.evaluations.values() for name in e.metrics)
    rows = []
    for name in names:
        figure = figure_named(name)
        found = [
            task.evaluations[k].metrics.get(name) if k in task.evaluations else None
            for k in task.labels
        ]
        shown = ["—" if value is None else figure.text(value) for value in found]
        differences = [_difference(figure, value, found[0]) for value in found[1:]]
        heading = tag("span", figure.title, tag("small", task.task))
        rows.append([heading, *shown, *differences])
    return rows


def _difference(figure: Figure, value: float | None, over: float | None) -> Html:
    if value is None or over is None:
        return tag("td", "—")
    gain = figure.gain(value, over)
    side = "better" if gain > 0 else "worse" if gain < 0 else "soft"
    return tag("td", figure.change(value, over), class_=side)


def _mark(check: Check) -> str:
    return "ok" if check.fair else "no"
