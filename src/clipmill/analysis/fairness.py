"""Whether the labels differ in their captions and in nothing else."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clipmill.analysis.comparison import TaskComparison
from clipmill.analysis.verdict import listed
from clipmill.models.checkpoint import ModelCard

# What the comparison is about.
_MEANT_TO_DIFFER = frozenset({"view.captions", "view.layer"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One condition of a fair comparison, or several that hold."""

    fair: bool
    """Whether it holds."""
    words: str
    """What was found."""


def check_fairness(
    tasks: Sequence[TaskComparison],
    encoders: Mapping[str, ModelCard],
    models: Mapping[tuple[str, str], ModelCard],
) -> tuple[Check, ...]:
    """The checks; ``encoders`` by label, ``models`` by label and task."""
    cards = list(encoders.values())
    differing = _differing([card.recipe for card in cards]) - _MEANT_TO_DIFFER
    checks = _summed_up(
        "The encoders share",
        {
            "the same pairs": ""
            if _equal(_parent(card, "dataset") for card in cards)
            else "The encoders were trained on different datasets",
            "one recipe, captions aside": f"The encoders also differ in {_names(differing)}"
            if differing
            else "",
        },
    )
    for task in tasks:
        checks += _task_checks(task, encoders, models)
    return tuple(checks)


def _task_checks(
    task: TaskComparison,
    encoders: Mapping[str, ModelCard],
    models: Mapping[tuple[str, str], ModelCard],
) -> list[Check]:
    judged = {label: models[label, task.task] for label in task.evaluations}
    cards = list(judged.values())
    differing = _differing([card.recipe for card in cards])
    strangers = [
        label
        for label, card in judged.items()
        if label not in encoders or _parent(card, "encoder") != encoders[label].digest
    ]
    found = {
        "one recipe": f"The {task.task} models also differ in {_names(differing)}"
        if differing
        else "",
        "training data": ""
        if _equal(_parent(card, "data") for card in cards)
        else f"The {task.task} models were trained on different data",
        "test data": ""
        if _equal(result.data.digest for result in task.evaluations.values())
        else f"The {task.task} models were judged on different test data",
    }
    checks = _summed_up(f"The {task.task} models share", found)
    if strangers:
        words = f"The {task.task} model of {listed(strangers)} isn't made from that label's encoder"
        checks.append(Check(fair=False, words=words))
    else:
        words = f"Each {task.task} model is made from the encoder of its label"
        checks.append(Check(fair=True, words=words))
    return checks


def _summed_up(start: str, found: Mapping[str, str]) -> list[Check]:
    """What holds in one sentence, and a sentence for each trouble; ``found`` maps to troubles."""
    held = [words for words, trouble in found.items() if not trouble]
    good = [Check(fair=True, words=f"{start} {listed(held)}")] if held else []
    return good + [Check(fair=False, words=trouble) for trouble in found.values() if trouble]


def _differing(recipes: Sequence[Mapping[str, Any]]) -> set[str]:
    flat = [dict(_leaves("", recipe)) for recipe in recipes]
    names = {name for recipe in flat for name in recipe}
    return {name for name in names if any(r.get(name) != flat[0].get(name) for r in flat)}


def _leaves(path: str, value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        for name, part in value.items():
            yield from _leaves(f"{path}.{name}" if path else str(name), part)
    else:
        yield path, value


def _names(names: set[str]) -> str:
    return listed(sorted(names))


def _equal(digests: Iterator[str]) -> bool:
    return len(set(digests)) <= 1


def _parent(card: ModelCard, role: str) -> str:
    return next((parent.digest for parent in card.parents if parent.role == role), "")
