"""What the results say, in words, computed from them: who led, by how much, and how sure it is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clipmill.analysis.comparison import TaskComparison
from clipmill.analysis.figures import NO_BREAK


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
class Circumstances:
    """What the words need to know beside the figures."""

    captions: Mapping[str, str]
    """What the encoder of each label was trained on: ``real``, ``synthetic`` or ``both``."""
    captioner: str
    """Whose the synthetic captions are, such as ``CoCa``."""
    seeds: Mapping[str, tuple[int, ...]]
    """By label, the seeds of its encoder and task models, each once."""
    drawn: bool
    """Whether the data is the miniature world of procedural scenes."""


def judge(tasks: Sequence[TaskComparison], circumstances: Circumstances) -> Verdict:
    """The verdict over all tasks."""
    labels = tasks[0].labels if tasks else ()
    candidates = [
        label for label in labels[1:] if any(task.gain(label) is not None for task in tasks)
    ]
    if not candidates:
        return Verdict(
            headline="Nothing could be compared",
            findings="No task was judged for the baseline and for another label.",
            caveat=_caveat(circumstances),
        )
    return Verdict(
        headline="; ".join(_outcome(label, tasks) for label in candidates),
        findings=" ".join(_finding(label, tasks, circumstances) for label in candidates),
        caveat=_caveat(circumstances),
    )


def _outcome(label: str, tasks: Sequence[TaskComparison]) -> str:
    gains = {task.task: gain for task in tasks if (gain := task.gain(label)) is not None}
    sides = {
        "ahead": [name for name, gain in gains.items() if gain > 0],
        "behind": [name for name, gain in gains.items() if gain < 0],
        "level": [name for name, gain in gains.items() if gain == 0],
    }
    taken = {side: names for side, names in sides.items() if names}
    if len(taken) == 1:
        side, names = next(iter(taken.items()))
        where = {1: names[0], 2: "both tasks"}.get(len(names), f"all {len(names)} tasks")
        came = "came out level with the baseline" if side == "level" else f"came out {side}"
        return f"{label} {came} on {where}"
    parts = ", ".join(f"{side} on {listed(names)}" for side, names in taken.items())
    if "ahead" in taken and "behind" in taken:
        return f"The results split: {label} is {parts}"
    return f"{label} came out {parts}"


def _finding(label: str, tasks: Sequence[TaskComparison], circumstances: Circumstances) -> str:
    changes = []
    for task in tasks:
        value, over = task.value(label), task.value(task.labels[0])
        if value is not None and over is not None:
            changes.append(_change(task, value, over))
    base = tasks[0].labels[0]
    given, instead = (circumstances.captions.get(name, "") for name in (label, base))
    if given == instead:
        return f"With {label} instead of {base}, {listed(changes)}."
    captioner = circumstances.captioner or "synthetic"
    words = {
        "synthetic": f"{captioner} captions alone",
        "both": f"{captioner} captions beside the real ones",
    }
    new = words.get(given, "the real captions alone")
    old = words.get(instead, "the real ones alone")
    return f"With {new} ({label}) instead of {old} ({base}), {listed(changes)}."


def _change(task: TaskComparison, value: float, over: float) -> str:
    figure = task.figure
    name = f"{task.task} {figure.title}"
    gain = figure.gain(value, over)
    if gain == 0:
        return f"{name} stayed at {figure.text(value)}"
    change = f"{figure.change(value, over)}{NO_BREAK}{figure.change_unit}".rstrip()
    if not figure.higher_is_better:
        # A sign would have to be read together with the direction of better.
        change = f"{'better' if gain > 0 else 'worse'} by {change[1:]}"
    return f"{name} went from {figure.text(over)} to {figure.text(value)} ({change})"


def _caveat(circumstances: Circumstances) -> str:
    seeds = {seed for found in circumstances.seeds.values() for seed in found}
    if not seeds:
        return "The seeds aren't recorded, so an effect can't be told from luck."
    where = " in a miniature world of drawn scenes" if circumstances.drawn else ""
    if len(seeds) == 1:
        runs = "a single pair of runs" if len(circumstances.seeds) == 2 else "single runs"
        return f"One seed ({seeds.pop()}){where}: {runs} can't tell an effect from luck."
    each = ", ".join(
        f"{label} {listed([str(seed) for seed in found])}"
        for label, found in circumstances.seeds.items()
    )
    return (
        f"A single run each{where}, with seeds that differ ({each}): this can't tell an effect "
        "from luck."
    )


def seeds_of(*recipes: Mapping[str, Any]) -> tuple[int, ...]:
    """The seeds in the recipes of model cards, each once, in order."""
    found = [recipe.get("train", {}).get("seed") for recipe in recipes]
    return tuple(dict.fromkeys(seed for seed in found if seed is not None))


def listed(words: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last
