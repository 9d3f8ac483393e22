"""A sweep: which points there are, and how many go on."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from clipmill.config import Config
from clipmill.errors import ConfigError
from clipmill.tasks.finetune import FinetuneConfig
from clipmill.errors import TrainingError
from clipmill.stage_records import Report, silent
from clipmill.tasks.evaluation import evaluate
from clipmill.tasks.finetune import FinetuneConfig, finetune
from collections.abc import Mapping
from concurrent.futures import Future, as_completed
from dataclasses import dataclass
from clipmill.data.labeled.folder import open_folder
from clipmill.config import digest_json
from clipmill.models.pretrained import open_encoder
from clipmill.processes import process_pool
from clipmill.stage_records import Report
from clipmill.storage import exists, join, write_json
from clipmill.lineage import Parent, read_artifact_file
from clipmill.tasks.evaluation import read_evaluation
from clipmill.tasks.registry import get_task

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



def run_point(config: FinetuneConfig, encoder: str, data: str, store: str, report: Report) -> str:
    """The URI of the evaluation of a point; ``""`` where training diverged.

    Model and evaluation lie where ``clipmill finetune`` and ``evaluate`` would put them, so that a
    point that was tried before, by whatever command, isn't tried again. Runs in any process.
    """
    try:
        model = finetune(config, encoder, data, store, report=report)
    except TrainingError:
        return ""
    return evaluate(model, data, store, report=report)


def run_quietly(value: object, encoder: str, data: str, store: str) -> str:
    """``run_point`` in a process of its own, which gets the config as JSON."""
    return run_point(FinetuneConfig.from_json(value), encoder, data, store, silent)


_RESULT = "sweep.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """A point at a rung."""

    point: Point
    """Its values by path."""
    rung: int
    """Which rung, from 0."""
    evaluation: str
    """URI of its evaluation; empty where training diverged."""
    figure: float | None
    """The task's metric, in its unit; None where training diverged."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepResult:
    """What a sweep found."""

    uri: str
    """Where it lies."""
    task: str
    """The task's name."""
    config: SweepConfig
    """What was swept."""
    trials: tuple[Trial, ...]
    """Every point at every rung that it reached, rung by rung."""

    @property
    def best(self) -> Trial:
        """The best of the last rung."""
        last = [t for t in self.trials if t.rung == len(self.config.rungs) - 1]
        return _ranked(last, self.task)[0]

    def reached(self, point: Point) -> Trial:
        """A point's trial at the highest rung that it came to."""
        return max((t for t in self.trials if t.point == point), key=lambda t: t.rung)


def sweep(
    config: SweepConfig, encoder: str, data: str, store: str, *, workers: int = 1, report: Report
) -> str:
    """Try the grid's points; the URI of the result, under ``store``.

    ``workers`` processes try points side by side (1: all in this one). What a sweep that was
    killed had finished is found again: a point's model and evaluation are artifacts of their own,
    and a training that was cut off goes on from its last state. How many workers there are
    changes nothing in the result. A result that is there already is returned at once.

    Raises:
        TrainingError: every point of a rung diverged.
        ConfigError: the grid names a field that there isn't.
    """
    start = open_encoder(encoder)
    parents = (start.parent, open_folder(data, "data")[1])
    digest = digest_json([config.digest, sorted([p.role, p.digest] for p in parents)])
    uri = join(store, "sweeps", f"{config.finetune.task}-{digest[:12]}")
    if exists(join(uri, _RESULT)):
        return uri
    points = list(config.points())
    if start.notice:
        report(0, len(points), start.notice)
    trials: list[Trial] = []
    for rung in range(len(config.rungs)):
        tried = _try(config, points, rung, (encoder, data, store), workers, report)
        trials += tried
        ranked = _ranked(tried, config.finetune.task)
        points = [trial.point for trial in ranked[: config.num_kept(len(tried))]]
    result = SweepResult(uri=uri, task=config.finetune.task, config=config, trials=tuple(trials))
    write_json(join(uri, _RESULT), _to_json(result, digest, parents))
    return uri


def read_sweep(uri: str) -> SweepResult:
    """The result at ``uri``; NotFoundError or ArtifactError where none or another thing lies."""
    value = read_artifact_file(uri, _RESULT, "clipmill sweep")
    return SweepResult(
        uri=uri,
        task=value["task"],
        config=SweepConfig.from_json(value["config"]),
        trials=tuple(Trial(**trial) for trial in value["trials"]),
    )


def _try(
    config: SweepConfig,
    points: list[Point],
    rung: int,
    where: tuple[str, str, str],
    workers: int,
    report: Report,
) -> list[Trial]:
    """Every point at a rung, in the points' order."""
    configs = [config.at(point, rung) for point in points]
    words = f"points tried, rung {rung + 1} of {len(config.rungs)}"
    evaluations: dict[int, str] = {}
    if workers == 1:
        for i, point in enumerate(configs):
            evaluations[i] = run_point(point, *where, report)
            report(i + 1, len(points), words)
    else:
        with process_pool(workers) as pool:
            running: Mapping[Future[str], int] = {
                pool.submit(run_quietly, point.to_json(), *where): i
                for i, point in enumerate(configs)
            }
            for done, future in enumerate(as_completed(running), start=1):
                evaluations[running[future]] = future.result()
                report(done, len(points), words)
    metric = get_task(config.finetune.task).metric.name
    return [
        Trial(
            point=point,
            rung=rung,
            evaluation=evaluations[i],
            figure=read_evaluation(evaluations[i]).metrics[metric] if evaluations[i] else None,
        )
        for i, point in enumerate(points)
    ]


def _ranked(trials: list[Trial], task: str) -> list[Trial]:
    """Those that converged, the best first; of equals the first of the grid."""
    metric = get_task(task).metric
    found = [t for t in trials if t.figure is not None and not math.isnan(t.figure)]
    if not found:
        raise TrainingError(
            f"all {len(trials)} points of the sweep diverged",
            expected="at least one that can be judged",
            action="lower the rates of the grid",
        )
    return sorted(found, key=lambda t: -metric.improvement(t.figure or 0.0, 0.0))


def _to_json(result: SweepResult, digest: str, parents: tuple[Parent, ...]) -> dict[str, object]:
    best = result.best
    metric = get_task(result.task).metric
    judged = [Parent(role="best", uri=best.evaluation, digest=_digest(best.evaluation))]
    return {
        "format": 1,
        "kind": "sweep",
        "digest": digest,
        "task": result.task,
        "config": result.config.to_json(),
        "trials": [
            {"point": t.point, "rung": t.rung, "evaluation": t.evaluation, "figure": t.figure}
            for t in result.trials
        ],
        "parents": [p.to_json() for p in (*parents, *judged)],
        "summary": {metric.name: f"{best.figure:.3f} {metric.unit}"},
    }


def _digest(evaluation: str) -> str:
    return read_evaluation(evaluation).digest
