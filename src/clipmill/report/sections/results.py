"""Results of a comparison: its summary in sentences, and the section of metrics and differences."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clipmill.report.comparison import Check
from clipmill.report.format import MINUS, NO_BREAK, MetricFormat, join_words, metric_format
from clipmill.report.html.page import (
    Section,
    details,
    empty_section,
    paragraph,
    section,
    table,
    tag,
)
from clipmill.tasks.comparison import RANDOM, Comparison, Difference, PretrainingResult, TaskResult
from clipmill.tasks.evaluation import read_evaluation


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """Summary in three degrees of detail."""

    headline: str
    """Outcome in one line."""
    findings: str
    """Metrics, a sentence a label."""
    caveat: str
    """Reliability of the result."""

    @property
    def text(self) -> str:
        """All three, joined."""
        return f"{self.headline}. {self.findings} {self.caveat}"


@dataclass(frozen=True, kw_only=True, slots=True)
class RunContext:
    """Facts about the runs that the sentences need."""

    captions: Mapping[str, str]
    """Caption source of each label's encoder: ``real``, ``synthetic`` or ``both``."""
    captioner: str
    """Captioner of the synthetic captions, such as ``CoCa``."""
    seeds: Mapping[str, tuple[int, ...]]
    """Distinct seeds of the encoder and task models, by label."""
    uses_synthetic_scenes: bool
    """True if the data is procedural scenes."""


def summarize(comparison: Comparison | None, context: RunContext) -> Summary:
    """Summarize a comparison over all tasks; None makes a summary that says so."""
    if comparison is None:
        return Summary(
            headline="Figures without a verdict",
            findings="No comparison with random weights was given, so a difference can't be told "
            "from chance.",
            caveat=_caveat(context),
        )
    candidates = tuple(comparison.tasks[0].values)[1:] if comparison.tasks else ()
    if not candidates:
        return Summary(
            headline="Nothing could be compared",
            findings="One encoder alone was evaluated.",
            caveat=_caveat(context),
        )
    return Summary(
        headline="; ".join(_outcome(label, comparison) for label in candidates),
        findings=" ".join(_finding(label, comparison, context) for label in candidates),
        caveat=f"{_failures(comparison)}{_caveat(context)}",
    )


def difference(task: TaskResult, label: str, baseline: str) -> Difference:
    """Return the difference of one encoder over another at a task."""
    return next(d for d in task.differences if (d.label, d.over) == (label, baseline))


def task_format(task: TaskResult) -> MetricFormat:
    """Return the display format of the task's metric."""
    metric = task.metric
    return MetricFormat(metric_format(metric.name).title, metric.unit, metric.higher_is_better)


def format_gain(task: TaskResult, gain: float, *, with_unit: bool = True) -> str:
    """Format a signed gain, positive for better: ``+4.5 points``."""
    metric = task_format(task)
    sign = "+" if gain > 0 else MINUS if gain < 0 else "±"
    text = f"{sign}{abs(gain):.{metric.decimals}f}"
    return f"{text}{NO_BREAK}{metric.change_unit}" if with_unit else text


def _outcome(label: str, comparison: Comparison) -> str:
    """Format the outcomes of a label: ``G+S is better than G on segmentation and depth``."""
    base = next(iter(comparison.tasks[0].values))
    by_outcome: dict[str, list[str]] = {}
    for task in comparison.tasks:
        by_outcome.setdefault(difference(task, label, base).outcome, []).append(task.task)
    templates = {
        "better": f"{label} is better than {base} on {{}}",
        "worse": f"{label} is worse than {base} on {{}}",
        "no difference": f"no difference between {label} and {base} that this run can show on {{}}",
    }
    text = "; ".join(templates[k].format(join_words(v)) for k, v in by_outcome.items())
    return text[0].upper() + text[1:]


def _finding(label: str, comparison: Comparison, context: RunContext) -> str:
    base = next(iter(comparison.tasks[0].values))
    changes = []
    for task in comparison.tasks:
        metric, change = task_format(task), difference(task, label, base)
        low, high = (format_gain(task, end, with_unit=False) for end in (change.low, change.high))
        changes.append(
            f"{task.task} {metric.title} went from {metric.text(task.values[base])} to "
            f"{metric.text(task.values[label])}, {format_gain(task, change.gain)} "
            f"[{low}, {high}]"
        )
    source, base_source = (context.captions.get(name, "") for name in (label, base))
    captioner = context.captioner or "synthetic"
    descriptions = {
        "synthetic": f"{captioner} captions alone",
        "both": f"{captioner} captions in addition to the real ones",
    }
    new = descriptions.get(source, "the real captions alone")
    old = descriptions.get(base_source, "the real ones alone")
    random = "; ".join(
        f"{task.task} {metric.text(min(task.random))} to {metric.text(max(task.random))}"
        for task in comparison.tasks
        for metric in (task_format(task),)
    )
    return (
        f"With {new} ({label}) instead of {old} ({base}), {join_words(changes)}. "
        f"Random weights reach {random}."
    )


def _failures(comparison: Comparison) -> str:
    failed = [label for label, result in comparison.pretraining.items() if result.has_failed]
    if not failed:
        return ""
    return f"Pretraining failed for {join_words(failed)}: it is no better than chance. "


def _caveat(context: RunContext) -> str:
    seeds = {seed for seeds in context.seeds.values() for seed in seeds}
    if not seeds:
        return "The seeds aren't recorded, so a difference can't be told from luck."
    where = " in a miniature world of procedural scenes" if context.uses_synthetic_scenes else ""
    if len(seeds) == 1:
        return (
            f"One seed ({seeds.pop()}){where}: the rule weighs test images and the spread of "
            "random seeds; docs/study/results.md has five seeds of the demo."
        )
    return f"Seeds {join_words([str(seed) for seed in sorted(seeds)])}{where}."


def seeds_of(*recipes: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the distinct seeds of checkpoints' recipes, in order."""
    seeds = [recipe.get("train", {}).get("seed") for recipe in recipes]
    return tuple(dict.fromkeys(seed for seed in seeds if seed is not None))


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
