"""Section of a comparison: metrics, differences, the decision rule and the threshold."""

from collections.abc import Sequence

from clipmill.report.comparison import Check
from clipmill.report.format import join_words, metric_format
from clipmill.report.html.page import (
    Section,
    details,
    empty_section,
    paragraph,
    section,
    table,
    tag,
)
from clipmill.report.summary import format_gain, task_format
from clipmill.tasks.comparison import RANDOM, Comparison, PretrainingResult, TaskResult
from clipmill.tasks.evaluation import read_evaluation

_TRIVIAL = {
    ("segmentation", "chance"): "a random class for each pixel",
    ("segmentation", "constant"): "the commonest class everywhere",
    ("depth", "chance"): "another image's depth",
    ("depth", "constant"): "the mean depth everywhere",
    ("depth", "mean map"): "the mean depth of each place",
}
_MARKS = {"better": "ok", "worse": "no", "no difference": "soft"}


def results_section(comparison: Comparison | None, checks: Sequence[Check]) -> Section:
    """Return the section ``Results``."""
    marks = (
        tag("li", tag("b", "✓" if check.fair else "✗"), check.words, class_=_mark(check))
        for check in checks
    )
    comparability = (tag("h3", "What the encoders share"), tag("ul", marks, class_="checks"))
    if comparison is None or not comparison.tasks:
        nothing = empty_section("No comparison with random weights was given.")
        return section("results", "Results", nothing, *(comparability if checks else ()))
    labels = tuple(comparison.tasks[0].values)
    best_first = labels[::-1]
    values = table(
        "Frozen features under a linear head, on test images. Answers that see no image, and "
        "encoders that learned nothing, show where figures begin.",
        ["Task", *best_first, RANDOM, "answers that see no image", "gate"],
        [_values(task, best_first) for task in comparison.tasks],
        class_="large",
    )
    differences = table(
        "Differences, positive for better, with their 95 % intervals.",
        [
            "Difference",
            "Task",
            "Gain",
            "95 % interval",
            "Spread of random weights",
            "Outcome",
        ],
        [row for task in comparison.tasks for row in _differences(task)],
        class_="small",
    )
    learned = table(
        "Did pretraining learn anything? Its contrastive loss at the end against the loss of "
        "guessing, and how often held-out images and captions are nearer to their own than to "
        "others', where guessing gives 50 %.",
        ["Encoder", "Loss, guessing", "Held-out pairs", "Outcome"],
        [_learned(label, result) for label, result in comparison.pretraining.items()],
        class_="small",
    )
    others = table(
        "All figures of the evaluations.",
        ["Figure", *labels],
        [row for task in comparison.tasks for row in _all_metrics(task)],
        class_="small",
    )
    return section(
        "results",
        "Results",
        values,
        tag("h3", "How sure is it?"),
        paragraph(RULE),
        differences,
        learned if comparison.pretraining else "",
        details("All figures", others),
        *comparability,
    )


RULE = (
    "The rule: a difference counts as better or worse if its 95 % interval, by a paired bootstrap "
    "over the test images, excludes zero, and if it is larger than the spread of random weights, "
    "which is what a seed alone can do. Otherwise this run shows no difference. Over random "
    "weights, the best of their seeds is what counts. The gate, which a model must pass to be "
    "served, is the best of random weights and of the answers that see no image, plus that spread."
)


def _values(task: TaskResult, labels: Sequence[str]) -> list[str]:
    metric = task_format(task)
    direction = "higher is better" if metric.higher_is_better else "lower is better"
    name = tag("span", task.task, tag("small", f"{metric.title}, {direction}"))
    passing = [task.metric.improvement(task.values[label], task.gate) >= 0 for label in labels]
    trivial = [
        tag("small", f"{metric.text(value)}: {_TRIVIAL.get((task.task, kind), kind)}")
        for kind, value in task.trivial.items()
    ]
    seeds = f"{len(task.random)} seeds: {join_words([metric.text(v) for v in task.random])}"
    middle = sorted(task.random)[len(task.random) // 2]
    sign = "≥" if metric.higher_is_better else "≤"
    return [
        name,
        *(
            tag("td", metric.text(task.values[label]), class_="best" if passes else "")
            for label, passes in zip(labels, passing, strict=True)
        ),
        tag("td", metric.text(middle), tag("small", seeds)),
        tag("td", *trivial),
        f"{sign} {metric.text(task.gate)}",
    ]


def _differences(task: TaskResult) -> list[list[str]]:
    return [
        [
            f"{d.label} over {d.over}",
            task.task,
            format_gain(task, d.gain),
            " to ".join(format_gain(task, end, with_unit=False) for end in (d.low, d.high)),
            format_gain(task, task.spread)[1:],
            tag("td", d.outcome, class_=_MARKS[d.outcome]),
        ]
        for d in reversed(task.differences)
    ]


def _learned(label: str, result: PretrainingResult) -> list[str]:
    losses = ", ".join(
        f"{kind.removeprefix('loss/')} {value:.2f}" if "/" in kind else f"{value:.2f}"
        for kind, value in result.losses.items()
    )
    held_out = "—"
    if result.pair_accuracy is not None:
        error = 100 * result.pair_accuracy_error
        held_out = f"{100 * result.pair_accuracy:.1f} ± {error:.1f} %"
    outcome = (
        tag("td", "failed: no better than chance", class_="worse")
        if result.has_failed
        else tag("td", "learned", class_="better")
    )
    return [label, f"{losses}; {result.chance_loss:.2f}", held_out, outcome]


def _all_metrics(task: TaskResult) -> list[list[str]]:
    metrics = {label: read_evaluation(uri).metrics for label, uri in task.evaluations.items()}
    names = dict.fromkeys(name for values in metrics.values() for name in values)
    rows = []
    for name in names:
        metric = metric_format(name)
        values = ["—" if name not in own else metric.text(own[name]) for own in metrics.values()]
        rows.append([tag("span", metric.title, tag("small", task.task)), *values])
    return rows


def _mark(check: Check) -> str:
    return "ok" if check.fair else "no"
