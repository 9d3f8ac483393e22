"""The results of every label side by side, task by task. The first label is the baseline."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from clipmill.analysis.figures import Figure, figure_named
from clipmill.errors import ConfigError
from clipmill.tasks.contract import Metric
from clipmill.tasks.evaluation import EvaluationResult, read_evaluation
from clipmill.tasks.registry import TASKS


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskComparison:
    """One task's evaluations by label."""

    task: str
    """The task's name."""
    metric: Metric
    """What models of the task are compared by."""
    labels: tuple[str, ...]
    """All labels of the report, the baseline first."""
    evaluations: Mapping[str, EvaluationResult]
    """Those that there are."""

    @property
    def figure(self) -> Figure:
        """The task's metric as it is shown."""
        known = figure_named(self.metric.name)
        return Figure(known.title, self.metric.unit, self.metric.higher_is_better)

    def value(self, label: str) -> float | None:
        """The metric's value, None where the label wasn't judged on this task."""
        found = self.evaluations.get(label)
        return None if found is None else found.metrics[self.metric.name]

    def gain(self, label: str) -> float | None:
        """How much better the label is than the baseline; 0 where they agree as shown."""
        value, over = self.value(label), self.value(self.labels[0])
        return None if value is None or over is None else self.figure.gain(value, over)

    def best(self) -> tuple[str, ...]:
        """The labels that lead, as shown; empty where all that were judged agree."""
        values = {k: v for k in self.labels if (v := self.value(k)) is not None}
        if len(values) < 2:
            return ()
        reference = next(iter(values.values()))
        gains = {label: self.figure.gain(v, reference) for label, v in values.items()}
        top = max(gains.values())
        leaders = tuple(label for label, gain in gains.items() if gain == top)
        return () if len(leaders) == len(values) else leaders


def compare(evaluations: Mapping[str, Sequence[str]]) -> tuple[TaskComparison, ...]:
    """Read the evaluations (URIs by label) and line them up, in the order of the tasks.

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
        TaskComparison(task=name, metric=task.metric, labels=tuple(read), evaluations=found)
        for name, task in TASKS.items()
        if (found := {k: r for k, results in read.items() for r in results if r.task == name})
    )
