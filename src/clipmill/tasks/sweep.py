"""Hyperparameter sweeps over a grid, with successive halving, in processes of this machine.

A trial's model and evaluation are artifacts at the addresses of ``clipmill finetune`` and
``evaluate``, so an interrupted sweep resumes, and a trial that was run before isn't repeated.
"""

import itertools
import math
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, as_completed
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from clipmill.config import Config, current_path, digest_json
from clipmill.data.labeled.folder import fetch_folder
from clipmill.errors import ConfigError, TrainingError
from clipmill.lineage import Parent, read_artifact_file
from clipmill.models.pretrained import open_encoder
from clipmill.processes import process_pool
from clipmill.stage_records import ProgressCallback, no_progress
from clipmill.storage import artifact_uri, exists, join, write_json
from clipmill.tasks.evaluation import evaluate, read_evaluation
from clipmill.tasks.finetune import FinetuneConfig, finetune
from clipmill.tasks.registry import get_task

_RESULT = "sweep.json"

Point = dict[str, float]
"""Value of each swept field by its path."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepConfig(Config):
    """Grid over a fine-tuning, with successive halving (Jamieson and Talwalkar 2016).

    A rung trains its points to the end of their own short schedules, and the best are promoted to
    the next rung, which trains longer from the start. Training isn't continued from rung to rung: a
    truncated schedule ranks points by how high their learning rate still is.
    """

    RENAMED_FIELDS: ClassVar[Mapping[str, str]] = {
        "keep": "reduction_fraction",
    }

    finetune: FinetuneConfig
    """Fine-tuning whose fields are swept."""
    grid: dict[str, tuple[float, ...]]
    """Values by path of a field, such as ``model.drop_path``; all combinations are points."""
    rungs: tuple[float, ...] = (1 / 9, 1 / 3, 1.0)
    """Length of each rung's training, as a fraction of the full one; the last is 1. ``[1.0]`` is a
    full grid search, as in the paper."""
    reduction_fraction: float = 1 / 3
    """Fraction of a rung's points that is promoted to the next; one point at least."""

    @classmethod
    def from_json(cls, value: object, path: str = "") -> Self:
        """Build from plain JSON values, in which the grid may name fields as 0.1 did."""
        # A dataclass with slots is another class than the one that ``super()`` remembers.
        config = super(SweepConfig, cls).from_json(value, path)
        grid = {current_path(config.finetune, p): values for p, values in config.grid.items()}
        return replace(config, grid=grid)

    def __post_init__(self) -> None:
        """Validate rungs, fraction and grid (ConfigError)."""
        rising = all(a < b for a, b in itertools.pairwise(self.rungs))
        if not self.rungs or not rising or self.rungs[0] <= 0 or self.rungs[-1] != 1:
            raise ConfigError(
                f"rungs were {list(self.rungs)}",
                expected="rising fractions above 0, of which the last is 1",
                action="set rungs=[0.1, 0.3, 1.0], say, or [1.0] for a full grid search",
            )
        if not 0 < self.reduction_fraction < 1:
            raise ConfigError(
                f"reduction_fraction was {self.reduction_fraction}",
                expected="a fraction above 0 and below 1",
                action="set reduction_fraction=0.33, say",
            )
        if not self.grid or not all(self.grid.values()):
            raise ConfigError(
                f"grid was {self.grid}",
                expected="values for at least one field",
                action="give the paths of fields and their values",
            )

    def points(self) -> Iterator[Point]:
        """Yield all combinations, in the order of the grid."""
        for values in itertools.product(*self.grid.values()):
            yield dict(zip(self.grid, values, strict=True))

    def config_for_rung(self, point: Point, rung: int) -> FinetuneConfig:
        """Return a point's fine-tuning at a rung, with steps and warm-up shortened.

        Raises:
            ConfigError: the grid names an unknown field.
        """
        fraction = self.rungs[rung]
        full = self.finetune.override([f"{path}={value}" for path, value in point.items()])
        if fraction == 1:
            return full
        train = full.train
        schedule = replace(
            train.schedule, warmup_steps=math.ceil(train.schedule.warmup_steps * fraction)
        )
        steps = max(1, round(train.steps * fraction))
        return replace(full, train=replace(train, steps=steps, schedule=schedule))

    def num_promoted(self, num_points: int) -> int:
        """Return how many of a rung's points are promoted."""
        return max(1, round(num_points * self.reduction_fraction))


def run_trial(
    config: FinetuneConfig, encoder: str, data: str, store: str, report: ProgressCallback
) -> str:
    """Fine-tune and evaluate a point; return the evaluation's URI, ``""`` where it diverged."""
    try:
        model = finetune(config, encoder, data, store, report=report)
    except TrainingError:
        return ""
    return evaluate(model, data, store, report=report)


def run_trial_in_subprocess(value: object, encoder: str, data: str, store: str) -> str:
    """Run a trial with the config as JSON, which any process can unpickle, without progress."""
    return run_trial(FinetuneConfig.from_json(value), encoder, data, store, no_progress)


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """Result of a point at a rung."""

    point: Point
    """Values by path."""
    rung: int
    """Index of the rung."""
    evaluation: str
    """URI of the evaluation; empty where training diverged."""
    value: float | None
    """The task's metric, in its unit; None where training diverged."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepResult:
    """Content of a sweep artifact."""

    uri: str
    """Address of the artifact."""
    task: str
    """The task's name."""
    config: SweepConfig
    """The sweep's configuration."""
    trials: tuple[Trial, ...]
    """Trials of every point, rung by rung."""

    @property
    def best(self) -> Trial:
        """Best trial of the last rung."""
        last = [t for t in self.trials if t.rung == len(self.config.rungs) - 1]
        return _ranked(last, self.task)[0]

    def last_trial(self, point: Point) -> Trial:
        """Return a point's trial at the highest rung that it reached."""
        return max((t for t in self.trials if t.point == point), key=lambda t: t.rung)


def sweep(
    config: SweepConfig,
    encoder: str,
    data: str,
    store: str,
    *,
    workers: int = 1,
    report: ProgressCallback,
) -> str:
    """Run the trials of a grid; return the URI of the result, under ``store``.

    ``workers`` processes run trials in parallel (1: all in this process); their number doesn't
    change the result. An existing result is returned at once.

    Raises:
        TrainingError: every point of a rung diverged.
        ConfigError: the grid names an unknown field.
    """
    source = open_encoder(encoder)
    parents = (source.parent, fetch_folder(data, "data")[1])
    digest = digest_json([config.digest, sorted([p.role, p.digest] for p in parents)])
    uri = artifact_uri(store, "sweeps", f"{config.finetune.task}-{digest[:12]}")
    if exists(join(uri, _RESULT)):
        return uri
    points = list(config.points())
    if source.notice:
        report(0, len(points), source.notice)
    trials: list[Trial] = []
    for rung in range(len(config.rungs)):
        finished = _run_rung(config, points, rung, (encoder, data, store), workers, report)
        trials += finished
        ranked = _ranked(finished, config.finetune.task)
        points = [trial.point for trial in ranked[: config.num_promoted(len(finished))]]
    result = SweepResult(uri=uri, task=config.finetune.task, config=config, trials=tuple(trials))
    write_json(join(uri, _RESULT), _to_json(result, digest, parents))
    return uri


def read_sweep(uri: str) -> SweepResult:
    """Read the sweep at ``uri``.

    Raises:
        NotFoundError: there is none.
        ArtifactError: the artifact is damaged or of another kind.
    """
    value = read_artifact_file(uri, _RESULT, "clipmill sweep")
    config = SweepConfig.from_stored(value["config"], uri)
    return SweepResult(
        uri=uri,
        task=value["task"],
        config=config,
        trials=tuple(
            Trial(
                point={current_path(config.finetune, p): v for p, v in t["point"].items()},
                rung=t["rung"],
                evaluation=t["evaluation"],
                value=t["figure"],
            )
            for t in value["trials"]
        ),
    )


def _run_rung(
    config: SweepConfig,
    points: list[Point],
    rung: int,
    inputs: tuple[str, str, str],
    workers: int,
    report: ProgressCallback,
) -> list[Trial]:
    """Run every point at a rung; return the trials in the points' order."""
    configs = [config.config_for_rung(point, rung) for point in points]
    message = f"points tried, rung {rung + 1} of {len(config.rungs)}"
    evaluations: dict[int, str] = {}
    if workers == 1:
        for i, point in enumerate(configs):
            evaluations[i] = run_trial(point, *inputs, report)
            report(i + 1, len(points), message)
    else:
        with process_pool(workers) as pool:
            running: Mapping[Future[str], int] = {
                pool.submit(run_trial_in_subprocess, point.to_json(), *inputs): i
                for i, point in enumerate(configs)
            }
            for done, future in enumerate(as_completed(running), start=1):
                evaluations[running[future]] = future.result()
                report(done, len(points), message)
    metric = get_task(config.finetune.task).metric.name
    return [
        Trial(
            point=point,
            rung=rung,
            evaluation=evaluations[i],
            value=read_evaluation(evaluations[i]).metrics[metric] if evaluations[i] else None,
        )
        for i, point in enumerate(points)
    ]


def _ranked(trials: list[Trial], task: str) -> list[Trial]:
    """Sort the trials that converged, the best first; of equals the first of the grid."""
    metric = get_task(task).metric
    converged = [t for t in trials if t.value is not None and not math.isnan(t.value)]
    if not converged:
        raise TrainingError(
            f"all {len(trials)} points of the sweep diverged",
            expected="at least one that converges",
            action="lower the rates of the grid",
        )
    return sorted(converged, key=lambda t: -metric.improvement(t.value or 0.0, 0.0))


def _to_json(result: SweepResult, digest: str, parents: tuple[Parent, ...]) -> dict[str, object]:
    best = result.best
    metric = get_task(result.task).metric
    evaluation = read_evaluation(best.evaluation)
    best_parent = Parent(role="best", uri=evaluation.uri, digest=evaluation.digest)
    return {
        "format": 1,
        "kind": "sweep",
        "digest": digest,
        "task": result.task,
        "config": result.config.to_json(),
        "trials": [
            {"point": t.point, "rung": t.rung, "evaluation": t.evaluation, "figure": t.value}
            for t in result.trials
        ],
        "parents": [p.to_json() for p in (*parents, best_parent)],
        "summary": {metric.name: f"{best.value:.3f} {metric.unit}"},
    }
