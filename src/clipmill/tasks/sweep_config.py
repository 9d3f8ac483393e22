"""A sweep: which points there are, and how many go on."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from clipmill.config import Config
from clipmill.errors import ConfigError
from clipmill.tasks.finetune import FinetuneConfig

Point = dict[str, float]
"""A value for each swept field, by its path."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepConfig(Config):
    """A grid over a fine-tuning, thinned by successive halving (Jamieson and Talwalkar 2016).

    A rung trains its points in whole, each with its own short schedule, and the best go on to the
    next, which trains longer. Nothing of a rung is continued in the next: a schedule cut short
    ranks points by how high their rate still is, not by where they'd end.
    """

    finetune: FinetuneConfig
    """What is swept."""
    grid: dict[str, tuple[float, ...]]
    """Values by path of a field, such as ``model.drop_path``; all combinations are tried."""
    rungs: tuple[float, ...] = (1 / 9, 1 / 3, 1.0)
    """Length of each rung's training, as a share of the whole; the last is 1. ``[1.0]`` trains
    every point in whole, as the paper's sweeps did."""
    keep: float = 1 / 3
    """Share of a rung's points that go on to the next; one at least."""

    def __post_init__(self) -> None:
        """Refuse a sweep that makes no sense (ConfigError)."""
        rising = all(a < b for a, b in itertools.pairwise(self.rungs))
        if not self.rungs or not rising or self.rungs[0] <= 0 or self.rungs[-1] != 1:
            raise ConfigError(
                f"rungs were {list(self.rungs)}",
                expected="rising shares above 0, of which the last is 1",
                action="set rungs=[0.1, 0.3, 1.0], say, or [1.0] to train every point in whole",
            )
        if not 0 < self.keep < 1:
            raise ConfigError(
                f"keep was {self.keep}",
                expected="a share above 0 and below 1",
                action="set keep=0.33, say",
            )
        if not self.grid or not all(self.grid.values()):
            raise ConfigError(
                f"grid was {self.grid}",
                expected="values for at least one field",
                action="give the paths of fields and their values",
            )

    def points(self) -> Iterator[Point]:
        """All combinations, in the order of the grid."""
        for values in itertools.product(*self.grid.values()):
            yield dict(zip(self.grid, values, strict=True))

    def at(self, point: Point, rung: int) -> FinetuneConfig:
        """The fine-tuning of a point at a rung: fewer steps, the warm-up shortened alike.

        Raises:
            ConfigError: the grid names a field that there isn't.
        """
        share = self.rungs[rung]
        whole = self.finetune.override([f"{path}={value}" for path, value in point.items()])
        if share == 1:
            return whole
        train = whole.train
        schedule = replace(
            train.schedule, warmup_steps=math.ceil(train.schedule.warmup_steps * share)
        )
        steps = max(1, round(train.steps * share))
        return replace(whole, train=replace(train, steps=steps, schedule=schedule))

    def num_kept(self, number: int) -> int:
        """How many of a rung's points go on."""
        return max(1, round(number * self.keep))
