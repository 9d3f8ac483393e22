"""Comparisons of given figures, judged by the rule itself."""

from collections.abc import Mapping

from clipmill.tasks.comparison import RANDOM, Difference, TaskResult, outcome
from clipmill.tasks.registry import get_task

RANDOM_FIGURES: dict[str, tuple[float, ...]] = {
    "segmentation": (20.1, 21.0, 20.4),
    "depth": (1.02, 1.0, 1.01),
}
"""The spread is 0.9 points and 0.02 m."""
TRIVIAL = {
    "segmentation": {"chance": 5.3, "constant": 11.6},
    "depth": {"chance": 1.7, "constant": 1.3, "mean map": 0.95},
}
HALF_WIDTHS = {"segmentation": 1.1, "depth": 0.01}
"""Of a difference's interval."""


def task_result(
    name: str,
    values: Mapping[str, float],
    *,
    evaluations: Mapping[str, str] | None = None,
    half_width: float | None = None,
) -> TaskResult:
    """The result of a task, with these figures by label, the baseline first."""
    metric, random = get_task(name).metric, RANDOM_FIGURES[name]
    half = HALF_WIDTHS[name] if half_width is None else half_width
    best = max(random, key=lambda value: metric.improvement(value, 0.0))
    differences = []
    before = {RANDOM: best}
    for label, value in values.items():
        for other, over in reversed(before.items()):
            gain = metric.improvement(value, over)
            ends = (gain - half, gain + half)
            found = outcome(gain, *ends, max(random) - min(random))
            differences.append(
                Difference(
                    label=label, over=other, gain=gain, low=ends[0], high=ends[1], outcome=found
                )
            )
        before[label] = value
    return TaskResult(
        task=name,
        values=dict(values),
        evaluations=dict(evaluations or {}),
        random=random,
        random_evaluations=tuple(f"evaluations/random-{i}" for i in range(len(random))),
        trivial=TRIVIAL[name],
        differences=tuple(differences),
    )
