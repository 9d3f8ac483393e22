"""Hyperparameter sweeps by grid, random search or TPE, with successive halving.

A sweep is a sequence of waves: the trials of a wave are independent of each other, and
:func:`next_wave` derives them from the results of the waves before. They run in processes of this
machine, or in pods of a pipeline. A trial's model and evaluation are artifacts at the addresses of
``clipmill finetune`` and ``evaluate``, so an interrupted sweep resumes, and a trial that was run
before isn't repeated.
"""

import itertools
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, as_completed
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Self

from clipmill.config import Config, current_path, digest_json, flatten
from clipmill.data.labeled.folder import folder_parent
from clipmill.engine.result import result_uri
from clipmill.errors import ConfigError, LostRankError, NotFoundError, TrainingError
from clipmill.lineage import Parent, read_artifact, read_artifact_file
from clipmill.models.pretrained import open_encoder
from clipmill.processes import process_pool
from clipmill.stage_records import ProgressCallback, no_progress
from clipmill.storage import artifact_uri, exists, join, read_json, write_json
from clipmill.tasks.evaluation import evaluate, read_evaluation
from clipmill.tasks.finetune import FinetuneConfig, finetune
from clipmill.tasks.registry import get_task
from clipmill.tasks.search_space import (
    Point,
    RangeConfig,
    SearchSpace,
    is_in_space,
    propose_points,
)
from clipmill.tracking import is_tracked, track_artifact

_RESULT = "sweep.json"
_TRIAL = "trial.json"
_POINTS_PER_ROUND = 4
_SEED = "train.seed"


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepConfig(Config):
    """Search over fields of a fine-tuning, with successive halving (Jamieson and Talwalkar 2016).

    A rung trains its points to the end of their own short schedules, and the best are promoted to
    the next rung, which trains longer from the start. Training isn't continued from rung to rung: a
    truncated schedule ranks points by how high their learning rate still is.

    A sampler proposes the points of the first rung, and learns from the results of that rung alone.
    Its first point is the recipe's own values, where they lie in the search space.
    """

    RENAMED_FIELDS: ClassVar[Mapping[str, str]] = {
        "keep": "reduction_fraction",
    }

    finetune: FinetuneConfig
    """Fine-tuning whose fields are swept."""
    grid: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """Values by path of a field, such as ``model.drop_path``. All combinations are points; for
    another sampler than ``grid`` these are the field's choices."""
    ranges: dict[str, RangeConfig] = field(default_factory=dict)
    """Range of values by path of a field, for the samplers ``random`` and ``tpe``."""
    sampler: Literal["grid", "random", "tpe"] = "grid"
    """``grid``: all combinations; ``random``: uniform samples; ``tpe``: Optuna's tree-structured
    Parzen estimator."""
    num_points: int | None = None
    """Points that ``random`` or ``tpe`` samples; null for the grid."""
    points_per_round: int = _POINTS_PER_ROUND
    """Points that ``tpe`` proposes at once, before it knows their results."""
    seed: int = 0
    """Seed of the sampler."""
    rungs: tuple[float, ...] = (1 / 9, 1 / 3, 1.0)
    """Length of each rung's training, as a fraction of the full one; the last is 1. ``[1.0]`` is a
    full grid search, as in the paper."""
    reduction_fraction: float = 1 / 3
    """Fraction of a rung's points that is promoted to the next; one point at least."""
    num_repeats: int = 0
    """Further full trainings, with other seeds, of the best point and of the recipe's own values.
    Their spread is the noise that differences between points are to be compared with."""

    @classmethod
    def from_json(cls, value: object, path: str = "") -> Self:
        """Build from plain JSON values, in which the grid may name fields as 0.1 did."""
        # A dataclass with slots is another class than the one that ``super()`` remembers.
        config = super(SweepConfig, cls).from_json(value, path)
        grid = {current_path(config.finetune, p): values for p, values in config.grid.items()}
        return replace(config, grid=grid)

    def __post_init__(self) -> None:
        """Validate rungs, fraction, space and sampler (ConfigError)."""
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
        if not self.space or not all(self.grid.values()):
            raise ConfigError(
                f"grid was {self.grid}" + (f", ranges {self.ranges}" if self.ranges else ""),
                expected="values for at least one field",
                action="give the paths of fields and their values",
            )
        self._validate_sampler()

    def _validate_sampler(self) -> None:
        if twice := sorted(set(self.grid) & set(self.ranges)):
            raise ConfigError(
                f"grid and ranges both have {twice[0]}",
                expected="each field in one of them",
                action=f"remove {twice[0]} from one of them",
            )
        if self.sampler == "grid":
            if self.ranges or self.num_points is not None:
                name = "ranges" if self.ranges else "num_points"
                raise ConfigError(
                    f"sampler was grid, and {name} was set",
                    expected="all combinations of the grid's values",
                    action=f"set sampler=tpe or random, or leave {name} out",
                )
            return
        most = None if self.ranges else math.prod(len(set(v)) for v in self.grid.values())
        if self.num_points is None or self.num_points < 1 or (most and self.num_points > most):
            raise ConfigError(
                f"num_points was {self.num_points}",
                expected=f"1 to {most}, the combinations" if most else "1 or more",
                action=f"set num_points={min(16, most or 16)}, say",
            )
        if self.points_per_round < 1:
            raise ConfigError(
                f"points_per_round was {self.points_per_round}",
                expected="1 or more",
                action=f"set points_per_round={_POINTS_PER_ROUND}, say",
            )

    @property
    def space(self) -> SearchSpace:
        """Choices or range of each field."""
        return {**self.grid, **self.ranges}

    @property
    def num_waves(self) -> int:
        """Waves of trials, at most: rounds of the sampler, further rungs, and repeats."""
        rounds = 1
        if self.sampler == "tpe" and self.num_points is not None:
            rounds = math.ceil(self.num_points / self.points_per_round)
        return rounds + len(self.rungs) - 1 + bool(self.num_repeats)

    def grid_points(self) -> Iterator[Point]:
        """Yield all combinations of the grid, in its order."""
        for values in itertools.product(*self.grid.values()):
            yield dict(zip(self.grid, values, strict=True))

    def baseline_point(self) -> Point | None:
        """Return the recipe's own values of the swept fields; None where one isn't a number."""
        own = flatten(self.finetune.to_json())
        values = {path: own.get(path) for path in self.space}
        point = {path: float(v) for path, v in values.items() if isinstance(v, int | float)}
        return point if len(point) == len(values) else None

    def repeated(self, point: Point) -> list[Point]:
        """Return a point once for each seed of a further training."""
        seed = self.finetune.train.seed
        return [{**point, _SEED: float(seed + i)} for i in range(1, self.num_repeats + 1)]

    def config_for_rung(self, point: Point, rung: int) -> FinetuneConfig:
        """Return a point's fine-tuning at a rung, with steps and warm-up shortened.

        The index after the last rung is that of repeats, which train in full.

        Raises:
            ConfigError: the search space names an unknown field.
        """
        fraction = (*self.rungs, 1.0)[rung]
        # A field of whole numbers takes no 16.0.
        values = {p: int(v) if v.is_integer() else v for p, v in point.items()}
        full = self.finetune.override([f"{path}={value}" for path, value in values.items()])
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
    config: FinetuneConfig,
    encoder: str,
    data: str,
    store: str,
    report: ProgressCallback,
    sweep: str = "",
) -> str:
    """Fine-tune and evaluate a point; return the evaluation's URI, ``""`` where it diverged.

    The outcome is an artifact, so a training that diverged isn't repeated. The tracker shows it as
    a run, with the address of the ``sweep``, of which a trial may also be none.
    """
    parents = _parents(encoder, data)
    uri = result_uri(store, "trials", config.task, config, parents)
    seconds = None
    if not exists(join(uri, _TRIAL)):
        started = time.monotonic()
        evaluation = _train_and_evaluate(config, encoder, data, store, report)
        seconds = time.monotonic() - started
        write_json(join(uri, _TRIAL), _trial_artifact(config, evaluation, parents))
    artifact = read_json(join(uri, _TRIAL))
    if is_tracked():
        track_artifact(
            uri, artifact, stage="sweep point", seconds=seconds, tags={"clipmill.sweep": sweep}
        )
    return str(artifact["evaluation"])


def _train_and_evaluate(
    config: FinetuneConfig, encoder: str, data: str, store: str, report: ProgressCallback
) -> str:
    try:
        model = finetune(config, encoder, data, store, report=report)
    except LostRankError:
        raise
    except TrainingError:
        return ""
    if is_tracked():
        track_artifact(model, read_artifact(model), stage=f"finetune {config.task}", seconds=None)
    return evaluate(model, data, store, report=report)


def _trial_artifact(
    config: FinetuneConfig, evaluation: str, parents: tuple[Parent, ...]
) -> dict[str, object]:
    result = read_evaluation(evaluation) if evaluation else None
    metric = get_task(config.task).metric
    outcome = f"{result.metrics[metric.name]:.3f} {metric.unit}" if result else "diverged"
    if result:
        evaluated = Parent(role="evaluation", uri=result.uri, digest=result.digest)
        parents = (*parents, result.model, evaluated)
    return {
        "format": 1,
        "kind": "trial",
        "digest": digest_json([config.digest, [[p.role, p.digest] for p in parents]]),
        "config": config.to_json(),
        "evaluation": evaluation,
        "metrics": result.metrics if result else {},
        "parents": [p.to_json() for p in parents],
        "summary": {metric.name: outcome.strip()},
    }


def run_trial_in_subprocess(
    value: object, encoder: str, data: str, store: str, sweep: str = ""
) -> str:
    """Run a trial with the config as JSON, which any process can unpickle, without progress."""
    return run_trial(FinetuneConfig.from_json(value), encoder, data, store, no_progress, sweep)


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

    @property
    def has_diverged(self) -> bool:
        """True if it has no value to compare."""
        return self.value is None or math.isnan(self.value)


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
    repeats: tuple[Trial, ...] = ()
    """Full trainings of the best point and of the recipe's own values with other seeds."""

    @property
    def best(self) -> Trial:
        """Best trial of the last rung."""
        return _best(self.config, self.trials)

    @property
    def points(self) -> list[Point]:
        """Points in the order in which they were proposed."""
        return [t.point for t in self.trials if t.rung == 0]

    def repeat_values(self, point: Point) -> list[float]:
        """Return the values of a point's repeats that converged."""
        seeds = self.config.repeated(point)
        trials = [t for t in self.repeats if t.point in seeds and not t.has_diverged]
        return [t.value for t in trials if t.value is not None]

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
    """Run the trials of a sweep; return the URI of the result, under ``store``.

    ``workers`` processes run trials in parallel (1: all in this process); their number doesn't
    change the result. An existing result is returned at once.

    Raises:
        TrainingError: every point of a rung diverged.
        ConfigError: the search space names an unknown field.
        MissingExtraError: the sampler needs Optuna, which isn't installed.
    """
    uri, digest, parents = _identity(config, encoder, data, store)
    if exists(join(uri, _RESULT)):
        return uri
    inputs = (encoder, data, store, uri)
    if notice := open_encoder(encoder).notice:
        report(0, config.num_waves, notice)
    trials: list[Trial] = []
    while True:
        rung, points = next_wave(config, trials)
        if not points:
            break
        evaluations = _run_wave(config, points, rung, inputs, workers, report)
        trials += [
            _trial(config, point, rung, evaluation)
            for point, evaluation in zip(points, evaluations, strict=True)
        ]
    num_rungs = len(config.rungs)
    result = SweepResult(
        uri=uri,
        task=config.finetune.task,
        config=config,
        trials=tuple(t for t in trials if t.rung < num_rungs),
        repeats=tuple(t for t in trials if t.rung == num_rungs),
    )
    write_json(join(uri, _RESULT), _to_json(result, digest, parents))
    return uri


def next_wave(config: SweepConfig, trials: Sequence[Trial]) -> tuple[int, list[Point]]:
    """Return the rung and the points of the wave after ``trials``; no points after the last.

    It depends on nothing but its arguments. Repeats follow the last rung, as one more.

    Raises:
        TrainingError: every point of the last rung so far diverged.
        MissingExtraError: the sampler needs Optuna, which isn't installed.
    """
    rung = trials[-1].rung if trials else 0
    of_rung = [t for t in trials if t.rung == rung]
    if rung == 0 and (points := _propose(config, of_rung)):
        return 0, points
    if rung + 1 == len(config.rungs):
        return rung + 1, _repeats(config, trials)
    if rung == len(config.rungs):
        return rung, []
    ranked = _ranked(of_rung, config.finetune.task)
    return rung + 1, [trial.point for trial in ranked[: config.num_promoted(len(of_rung))]]


def read_wave(
    config: SweepConfig, wave: int, encoder: str, data: str, store: str
) -> tuple[int, list[Point]]:
    """Return the rung and the points of a wave, by number from 0, after those in ``store``.

    Raises:
        NotFoundError: a trial of an earlier wave isn't finished.
        TrainingError, MissingExtraError: as :func:`next_wave` does.
    """
    trials: list[Trial] = []
    parents = _parents(encoder, data) if wave else ()
    for _ in range(wave):
        rung, points = next_wave(config, trials)
        for point in points:
            finetuning = config.config_for_rung(point, rung)
            uri = result_uri(store, "trials", finetuning.task, finetuning, parents)
            if not exists(join(uri, _TRIAL)):
                raise NotFoundError(
                    f"{point} at rung {rung + 1} has no result in {store}",
                    expected="results of all trials of the waves before",
                    action="run the sweep again, which resumes",
                )
            trials.append(
                _trial(config, point, rung, str(read_json(join(uri, _TRIAL))["evaluation"]))
            )
    return next_wave(config, trials)


def sweep_uri(config: SweepConfig, encoder: str, data: str, store: str) -> str:
    """Return the address of a sweep's result, which needn't exist yet."""
    return _identity(config, encoder, data, store)[0]


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
        trials=tuple(_trial_from_json(config, t) for t in value["trials"]),
        repeats=tuple(_trial_from_json(config, t) for t in value.get("repeats", ())),
    )


def _identity(
    config: SweepConfig, encoder: str, data: str, store: str
) -> tuple[str, str, tuple[Parent, ...]]:
    """Return a sweep's URI, digest and parents."""
    parents = _parents(encoder, data)
    digest = digest_json([config.digest, sorted([p.role, p.digest] for p in parents)])
    uri = artifact_uri(store, "sweeps", f"{config.finetune.task}-{digest[:12]}")
    return uri, digest, parents


def _parents(encoder: str, data: str) -> tuple[Parent, ...]:
    return (open_encoder(encoder).parent, folder_parent(data, "data"))


def _repeats(config: SweepConfig, trials: Sequence[Trial]) -> list[Point]:
    """Return the points that other seeds train again, in full."""
    best, baseline = _best(config, trials).point, config.baseline_point()
    is_other = baseline is not None and baseline != best
    return config.repeated(best) + (config.repeated(baseline) if baseline and is_other else [])


def _propose(config: SweepConfig, finished: Sequence[Trial]) -> list[Point]:
    """Return the next points of the first rung; none if it has all."""
    if config.sampler == "grid" or config.num_points is None:
        return [] if finished else list(config.grid_points())
    metric = get_task(config.finetune.task).metric
    left = config.num_points - len(finished)
    count = min(left, config.points_per_round) if config.sampler == "tpe" else left
    baseline = None if finished else config.baseline_point()
    is_first = baseline is not None and is_in_space(config.space, baseline)
    first = [baseline] if baseline is not None and is_first else []
    results = [
        (t.point, None if t.has_diverged else -metric.improvement(t.value or 0.0, 0.0))
        for t in finished
    ]
    # Told without a result, the baseline isn't proposed again.
    proposed = propose_points(
        config.space,
        config.sampler,
        [*results, *((point, None) for point in first)],
        count=count - len(first),
        num_points=config.num_points,
        seed=config.seed,
    )
    return [*first, *proposed]


def _run_wave(
    config: SweepConfig,
    points: list[Point],
    rung: int,
    inputs: tuple[str, str, str, str],
    workers: int,
    report: ProgressCallback,
) -> list[str]:
    """Run every point at a rung; return the evaluations in the points' order."""
    configs = [config.config_for_rung(point, rung) for point in points]
    num_rungs = len(config.rungs)
    message = f"points tried, rung {rung + 1} of {num_rungs}" if rung < num_rungs else "repeated"
    evaluations: dict[int, str] = {}
    if workers == 1:
        for i, point in enumerate(configs):
            encoder, data, store, uri = inputs
            evaluations[i] = run_trial(point, encoder, data, store, report, uri)
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
    return [evaluations[i] for i in range(len(points))]


def _trial(config: SweepConfig, point: Point, rung: int, evaluation: str) -> Trial:
    metric = get_task(config.finetune.task).metric.name
    value = read_evaluation(evaluation).metrics[metric] if evaluation else None
    return Trial(point=point, rung=rung, evaluation=evaluation, value=value)


def _best(config: SweepConfig, trials: Sequence[Trial]) -> Trial:
    last = len(config.rungs) - 1
    return _ranked([t for t in trials if t.rung == last], config.finetune.task)[0]


def _ranked(trials: Sequence[Trial], task: str) -> list[Trial]:
    """Sort the trials that converged, the best first; of equals the first proposed."""
    metric = get_task(task).metric
    converged = [t for t in trials if not t.has_diverged]
    if not converged:
        raise TrainingError(
            f"all {len(trials)} points of the sweep diverged",
            expected="at least one that converges",
            action="lower the learning rates",
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
        "trials": [_trial_to_json(t) for t in result.trials],
        "repeats": [_trial_to_json(t) for t in result.repeats],
        "parents": [p.to_json() for p in (*parents, best_parent)],
        "metrics": {
            metric.name: best.value,
            "num_points": len(result.points),
            "num_diverged": sum(t.has_diverged for t in result.trials),
        },
        "summary": {metric.name: f"{best.value:.3f} {metric.unit}".strip()},
    }


def _trial_to_json(trial: Trial) -> dict[str, object]:
    return {
        "point": trial.point,
        "rung": trial.rung,
        "evaluation": trial.evaluation,
        "figure": trial.value,
    }


def _trial_from_json(config: SweepConfig, value: Mapping[str, Any]) -> Trial:
    return Trial(
        point={current_path(config.finetune, p): v for p, v in value["point"].items()},
        rung=value["rung"],
        evaluation=value["evaluation"],
        value=value["figure"],
    )
