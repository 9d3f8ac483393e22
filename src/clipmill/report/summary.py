"""What the results say, in words, computed from them: who led, by how much, and how sure it is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clipmill.report.format import MINUS, NO_BREAK, MetricFormat, metric_format
from clipmill.tasks.comparison import Comparison, Difference, TaskResult


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """Three degrees of detail."""

    headline: str
    """Who led, in one line."""
    findings: str
    """The figures, a sentence a label."""
    caveat: str
    """How much they can be trusted."""

    @property
    def text(self) -> str:
        """All three in a row."""
        return f"{self.headline}. {self.findings} {self.caveat}"


@dataclass(frozen=True, kw_only=True, slots=True)
class RunContext:
    """What the words need to know beside the figures."""

    captions: Mapping[str, str]
    """What the encoder of each label was trained on: ``real``, ``synthetic`` or ``both``."""
    captioner: str
    """Whose the synthetic captions are, such as ``CoCa``."""
    seeds: Mapping[str, tuple[int, ...]]
    """By label, the seeds of its encoder and task models, each once."""
    drawn: bool
    """Whether the data is the miniature world of procedural scenes."""


def judge(comparison: Comparison | None, circumstances: RunContext) -> Verdict:
    """The verdict over all tasks; without a comparison none is given."""
    if comparison is None:
        return Verdict(
            headline="Figures without a verdict",
            findings="No comparison with random weights was given, so a difference can't be told "
            "from chance.",
            caveat=_caveat(circumstances),
        )
    candidates = tuple(comparison.tasks[0].values)[1:] if comparison.tasks else ()
    if not candidates:
        return Verdict(
            headline="Nothing could be compared",
            findings="One encoder alone was evaluated.",
            caveat=_caveat(circumstances),
        )
    return Verdict(
        headline="; ".join(_outcome(label, comparison) for label in candidates),
        findings=" ".join(_finding(label, comparison, circumstances) for label in candidates),
        caveat=f"{_failures(comparison)}{_caveat(circumstances)}",
    )


def over(task: TaskResult, label: str, other: str) -> Difference:
    """The difference of one encoder over another at a task."""
    return next(d for d in task.differences if (d.label, d.over) == (label, other))


def shown(task: TaskResult) -> MetricFormat:
    """The task's metric as it is shown."""
    metric = task.metric
    return MetricFormat(metric_format(metric.name).title, metric.unit, metric.higher_is_better)


def gain_text(task: TaskResult, gain: float, *, with_unit: bool = True) -> str:
    """A signed gain, positive for better: ``+4.5 points``."""
    figure = shown(task)
    sign = "+" if gain > 0 else MINUS if gain < 0 else "±"
    text = f"{sign}{abs(gain):.{figure.decimals}f}"
    return f"{text}{NO_BREAK}{figure.change_unit}" if with_unit else text


def _outcome(label: str, comparison: Comparison) -> str:
    """``G+S is better than G on segmentation and depth``, or what else came."""
    base = next(iter(comparison.tasks[0].values))
    by_outcome: dict[str, list[str]] = {}
    for task in comparison.tasks:
        by_outcome.setdefault(over(task, label, base).outcome, []).append(task.task)
    said = {
        "better": f"{label} is better than {base} on {{}}",
        "worse": f"{label} is worse than {base} on {{}}",
        "no difference": f"no difference between {label} and {base} that this run can show on {{}}",
    }
    text = "; ".join(said[k].format(join_words(v)) for k, v in by_outcome.items())
    return text[0].upper() + text[1:]


def _finding(label: str, comparison: Comparison, circumstances: RunContext) -> str:
    base = next(iter(comparison.tasks[0].values))
    changes = []
    for task in comparison.tasks:
        figure, found = shown(task), over(task, label, base)
        low, high = (gain_text(task, end, with_unit=False) for end in (found.low, found.high))
        changes.append(
            f"{task.task} {figure.title} went from {figure.text(task.values[base])} to "
            f"{figure.text(task.values[label])}, {gain_text(task, found.gain)} "
            f"[{low}, {high}]"
        )
    given, instead = (circumstances.captions.get(name, "") for name in (label, base))
    captioner = circumstances.captioner or "synthetic"
    words = {
        "synthetic": f"{captioner} captions alone",
        "both": f"{captioner} captions beside the real ones",
    }
    new = words.get(given, "the real captions alone")
    old = words.get(instead, "the real ones alone")
    random = "; ".join(
        f"{task.task} {figure.text(min(task.random))} to {figure.text(max(task.random))}"
        for task in comparison.tasks
        for figure in (shown(task),)
    )
    return (
        f"With {new} ({label}) instead of {old} ({base}), {join_words(changes)}. "
        f"Random weights reach {random}."
    )


def _failures(comparison: Comparison) -> str:
    failed = [label for label, found in comparison.pretraining.items() if found.has_failed]
    if not failed:
        return ""
    return f"Pretraining failed for {join_words(failed)}: it is no better than chance. "


def _caveat(circumstances: RunContext) -> str:
    seeds = {seed for found in circumstances.seeds.values() for seed in found}
    if not seeds:
        return "The seeds aren't recorded, so a difference can't be told from luck."
    where = " in a miniature world of procedural scenes" if circumstances.drawn else ""
    if len(seeds) == 1:
        return (
            f"One seed ({seeds.pop()}){where}: the rule weighs test images and the spread of "
            "random seeds; docs/study/results.md has five seeds of the demo."
        )
    return f"Seeds {join_words([str(seed) for seed in sorted(seeds)])}{where}."


def seeds_of(*recipes: Mapping[str, Any]) -> tuple[int, ...]:
    """The seeds in the recipes of model cards, each once, in order."""
    found = [recipe.get("train", {}).get("seed") for recipe in recipes]
    return tuple(dict.fromkeys(seed for seed in found if seed is not None))
