"""Summary of a comparison in sentences: which encoder leads, by how much, how certain."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clipmill.report.format import MINUS, NO_BREAK, MetricFormat, join_words, metric_format
from clipmill.tasks.comparison import Comparison, Difference, TaskResult


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
    """Whether the data is procedural scenes."""


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
