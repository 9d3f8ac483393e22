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
    """One condition of a fair comparison."""

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
    checks = [
        _same(
            "The encoders",
            [_without(_flat(card.recipe), _MEANT_TO_DIFFER) for card in cards],
            "share one recipe, but for the captions",
        ),
        _one(
            [_parents(card).get("dataset", "") for card in cards],
            "The encoders saw the pairs of one dataset",
            "The encoders were trained on different datasets",
        ),
    ]
    for task in tasks:
        judged = {label: models[label, task.task] for label in task.evaluations}
        checks += [
            _same(
                f"The {task.task} models",
                [_flat(card.recipe) for card in judged.values()],
                "share one recipe",
            ),
            _one(
                [_parents(card).get("data", "") for card in judged.values()],
                f"The {task.task} models were trained on the same labelled data",
                f"The {task.task} models were trained on different labelled data",
            ),
            _one(
                [result.data.digest for result in task.evaluations.values()],
                f"They were judged on the same {task.task} test data",
                f"They were judged on different {task.task} test data",
            ),
        ]
        strangers = [
            label
            for label, card in judged.items()
            if label not in encoders or _parents(card).get("encoder") != encoders[label].digest
        ]
        checks.append(
            Check(
                fair=not strangers,
                words=f"Each {task.task} model grew from the encoder of its label"
                if not strangers
                else f"The {task.task} model of {listed(strangers)} did not grow from the encoder "
                "of that label",
            )
        )
    return tuple(checks)


def _same(whose: str, recipes: Sequence[Mapping[str, object]], words: str) -> Check:
    names = sorted({name for recipe in recipes for name in recipe})
    differing = [n for n in names if any(r.get(n) != recipes[0].get(n) for r in recipes)]
    if not differing:
        return Check(fair=True, words=f"{whose} {words}")
    return Check(fair=False, words=f"{whose} also differ in {listed(differing)}")


def _one(digests: Sequence[str], same: str, differ: str) -> Check:
    fair = len(set(digests)) <= 1
    return Check(fair=fair, words=same if fair else differ)


def _parents(card: ModelCard) -> dict[str, str]:
    return {parent.role: parent.digest for parent in card.parents}


def _flat(value: Mapping[str, Any]) -> dict[str, object]:
    return dict(_leaves("", value))


def _leaves(path: str, value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        for name, part in value.items():
            yield from _leaves(f"{path}.{name}" if path else str(name), part)
    else:
        yield path, value


def _without(recipe: dict[str, object], names: frozenset[str]) -> dict[str, object]:
    return {name: value for name, value in recipe.items() if name not in names}
