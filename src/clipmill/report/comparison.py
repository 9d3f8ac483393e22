"""Evaluations of several labels by task, and checks that they are comparable.

The first label is the baseline.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clipmill.errors import ConfigError
from clipmill.models.checkpoint import CheckpointMetadata
from clipmill.report.format import MetricFormat, join_words, metric_format
from clipmill.tasks.base import Metric
from clipmill.tasks.comparison import Comparison
from clipmill.tasks.evaluation import EvaluationResult, read_evaluation
from clipmill.tasks.registry import TASKS


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskComparison:
    """One task's evaluations by label."""

    task: str
    """Name of the task."""
    metric: Metric
    """Metric of the task."""
    labels: tuple[str, ...]
    """All labels of the report, the baseline first."""
    evaluations: Mapping[str, EvaluationResult]
    """Existing evaluations by label."""

    @property
    def format(self) -> MetricFormat:
        """Display format of the task's metric."""
        known = metric_format(self.metric.name)
        return MetricFormat(known.title, self.metric.unit, self.metric.higher_is_better)

    def value(self, label: str) -> float | None:
        """Return the metric's value, None where the label wasn't evaluated on this task."""
        result = self.evaluations.get(label)
        return None if result is None else result.metrics[self.metric.name]

    def improvement(self, label: str) -> float | None:
        """Return the improvement of a label over the baseline; 0 where they are equal as shown."""
        value, baseline = self.value(label), self.value(self.labels[0])
        if value is None or baseline is None:
            return None
        return self.format.improvement(value, baseline)

    def best(self) -> tuple[str, ...]:
        """Return the leading labels, as shown; empty where all are equal."""
        values = {k: v for k in self.labels if (v := self.value(k)) is not None}
        if len(values) < 2:
            return ()
        reference = next(iter(values.values()))
        gains = {label: self.format.improvement(v, reference) for label, v in values.items()}
        top = max(gains.values())
        leaders = tuple(label for label, gain in gains.items() if gain == top)
        return () if len(leaders) == len(values) else leaders


def compare(evaluations: Mapping[str, Sequence[str]]) -> tuple[TaskComparison, ...]:
    """Read evaluations (URIs by label) and group them by task.

    Raises:
        ConfigError: a label has two evaluations of one task.
    """
    read = {label: [read_evaluation(uri) for uri in uris] for label, uris in evaluations.items()}
    for label, results in read.items():
        names = [result.task for result in results]
        if len(set(names)) < len(names):
            raise ConfigError(
                f"{label} has evaluations of {', '.join(names)}",
                expected="at most one of each task",
                action="give each label the evaluations of one model a task",
            )
    return tuple(
        TaskComparison(task=name, metric=task.metric, labels=tuple(read), evaluations=by_label)
        for name, task in TASKS.items()
        if (by_label := {k: r for k, results in read.items() for r in results if r.task == name})
    )


_EXPECTED_DIFFERENCES = frozenset({"view.captions", "view.layer"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """A condition of a fair comparison, or several that hold."""

    fair: bool
    """True if the condition holds."""
    words: str
    """Description of the finding."""


def check_comparability(
    tasks: Sequence[TaskComparison],
    encoders: Mapping[str, CheckpointMetadata],
    models: Mapping[tuple[str, str], CheckpointMetadata],
) -> tuple[Check, ...]:
    """Check that the labels differ in their captions alone.

    ``encoders`` are by label, ``models`` by label and task.
    """
    cards = list(encoders.values())
    differing = _differing([metadata.recipe for metadata in cards]) - _EXPECTED_DIFFERENCES
    checks = _summarize(
        "The encoders share",
        {
            "the same pairs": ""
            if _equal(_parent(metadata, "dataset") for metadata in cards)
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
    encoders: Mapping[str, CheckpointMetadata],
    models: Mapping[tuple[str, str], CheckpointMetadata],
) -> list[Check]:
    task_models = {label: models[label, task.task] for label in task.evaluations}
    cards = list(task_models.values())
    differing = _differing([metadata.recipe for metadata in cards])
    mismatched = [
        label
        for label, metadata in task_models.items()
        if label not in encoders or _parent(metadata, "encoder") != encoders[label].digest
    ]
    problems = {
        "one recipe": f"The {task.task} models also differ in {_names(differing)}"
        if differing
        else "",
        "training data": ""
        if _equal(_parent(metadata, "data") for metadata in cards)
        else f"The {task.task} models were trained on different data",
        "test data": ""
        if _equal(result.data.digest for result in task.evaluations.values())
        else f"The {task.task} models were evaluated on different test data",
    }
    checks = _summarize(f"The {task.task} models share", problems)
    if mismatched:
        names = join_words(mismatched)
        words = f"The {task.task} model of {names} isn't made from that label's encoder"
        checks.append(Check(fair=False, words=words))
    else:
        words = f"Each {task.task} model is made from the encoder of its label"
        checks.append(Check(fair=True, words=words))
    return checks


def _summarize(start: str, problems: Mapping[str, str]) -> list[Check]:
    """Return a check of all conditions that hold, and one for each problem.

    ``problems`` maps a condition to its problem, empty where it holds.
    """
    held = [condition for condition, problem in problems.items() if not problem]
    good = [Check(fair=True, words=f"{start} {join_words(held)}")] if held else []
    return good + [Check(fair=False, words=problem) for problem in problems.values() if problem]


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
    return join_words(sorted(names))


def _equal(digests: Iterator[str]) -> bool:
    return len(set(digests)) <= 1


def _parent(metadata: CheckpointMetadata, role: str) -> str:
    return next((parent.digest for parent in metadata.parents if parent.role == role), "")


def comparison_markdown(uri: str) -> str:
    """Return the comparison at ``uri`` as a Markdown table: a row per task, a column per label."""
    tasks = Comparison.read(uri).tasks
    labels = list(tasks[0].values)
    head = ["task", "metric", *labels, "random weights", "required to serve"]
    rows = [head, ["---"] * len(head)]
    for task in tasks:
        shown = MetricFormat(
            metric_format(task.metric.name).title, task.metric.unit, task.metric.higher_is_better
        )
        values = [shown.text(task.values[label]) for label in labels]
        random = " to ".join(shown.text(value) for value in (min(task.random), max(task.random)))
        rows.append([task.task, shown.title, *values, random, shown.text(task.gate)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"
