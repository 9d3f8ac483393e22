"""Search space of a sweep, and the points that a sampler proposes in it.

A proposal is a function of the space, the seed and the results before it, so that a sweep that was
killed, or whose points run in other pods, proposes the same points again. Only this module imports
Optuna.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from clipmill.config import Config
from clipmill.errors import ConfigError, MissingExtraError

Point = dict[str, float]
"""Value of each swept field by its path."""
Sampler = Literal["random", "tpe"]
"""Uniform samples, or Optuna's tree-structured Parzen estimator (Bergstra et al. 2011)."""

_DIGITS = 4  # significant ones of a proposed value
_ATTEMPTS_PER_POINT = 50  # where few combinations are left
_STARTUP_FRACTION = 0.25  # of the points, which TPE samples uniformly


@dataclass(frozen=True, kw_only=True, slots=True)
class RangeConfig(Config):
    """Range of a field's values."""

    low: float
    """Smallest value."""
    high: float
    """Largest value."""
    log: bool = False
    """Sample the logarithm uniformly, as for a learning rate."""

    def __post_init__(self) -> None:
        """Validate the bounds (ConfigError)."""
        if self.low >= self.high or (self.log and self.low <= 0):
            raise ConfigError(
                f"a range was {self.low:g} to {self.high:g}" + (", log" if self.log else ""),
                expected="low below high" + (", and above 0" if self.log else ""),
                action='set {"low": 1e-4, "high": 1e-2, "log": true}, say',
            )

    def __contains__(self, value: float) -> bool:
        """Return whether a value lies in the range, bounds included."""
        return self.low <= value <= self.high

    def rounded(self, value: float) -> float:
        """Return a value of the range with few digits, for addresses and tables."""
        return min(max(float(f"{value:.{_DIGITS}g}"), self.low), self.high)


SearchSpace = Mapping[str, tuple[float, ...] | RangeConfig]
"""Choices or range of each swept field by its path."""


def is_in_space(space: SearchSpace, point: Point) -> bool:
    """Return whether each of a point's values is a choice, or within the range, of its field."""
    return all(path in point and point[path] in values for path, values in space.items())


def propose_points(
    space: SearchSpace,
    sampler: Sampler,
    finished: Sequence[tuple[Point, float | None]],
    *,
    count: int,
    num_points: int,
    seed: int,
) -> list[Point]:
    """Propose ``count`` points that differ from the finished ones and from each other.

    Args:
        space: Choices or range of each field.
        sampler: How to sample; ``random`` ignores the results.
        finished: Points with their losses, less being better, in the order in which they were
            proposed; None where training diverged, which counts as worse than any loss.
        count: Points to propose. They are fewer where no more combinations are left.
        num_points: Points of the whole search, of which TPE samples the first quarter uniformly.
        seed: Seed of the search.

    Raises:
        MissingExtraError: Optuna isn't installed.
    """
    optuna = _import_optuna()
    distributions = {
        path: optuna.distributions.FloatDistribution(values.low, values.high, log=values.log)
        if isinstance(values, RangeConfig)
        else optuna.distributions.CategoricalDistribution(values)
        for path, values in space.items()
    }
    state = np.random.SeedSequence((seed, len(finished))).generate_state(1)
    samplers = {
        "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
        "tpe": lambda seed: optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=max(1, math.ceil(num_points * _STARTUP_FRACTION))
        ),
    }
    study = optuna.create_study(sampler=samplers[sampler](int(state[0])))
    for point, loss in finished:
        # TPE ranks a pruned trial without values below all others.
        outcome = {"state": optuna.trial.TrialState.PRUNED} if loss is None else {"value": loss}
        study.add_trial(
            optuna.trial.create_trial(params=point, distributions=distributions, **outcome)
        )
    seen = [point for point, _ in finished]
    points: list[Point] = []
    for _ in range(_ATTEMPTS_PER_POINT * count):
        if len(points) == count:
            break
        # A proposal that has no result yet repels the next one (Optuna's constant liar).
        params = study.ask(distributions).params
        point = {
            path: values.rounded(params[path]) if isinstance(values, RangeConfig) else params[path]
            for path, values in space.items()
        }
        if point not in seen:
            seen.append(point)
            points.append(point)
    return points


def _import_optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise MissingExtraError(
            "the samplers random and tpe need the Python package optuna, which isn't installed",
            expected="clipmill with the extra 'optuna'",
            action="pip install 'clipmill[optuna]', or set sampler=grid",
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
