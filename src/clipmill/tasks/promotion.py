"""Promotion: a model serves only if it passes the gate and beats the one that serves now."""

from collections.abc import Sequence
from dataclasses import dataclass

from clipmill.config import Config
from clipmill.config import digest_json
from clipmill.errors import ConfigError, GateError
from clipmill.storage import exists, join, write_json
from clipmill.lineage import read_artifact_file
from clipmill.tasks.evaluation import EvaluationResult, read_evaluation
from clipmill.tasks.registry import get_task

_RECORD = "promotion.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class GateConfig(Config):
    """What a model must reach to be served."""

    task: str
    """Name of the task."""
    threshold: float
    """Value of the task's metric that must be reached, in its unit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Promotion:
    """What a promotion decided."""

    uri: str
    """Where its record lies."""
    evaluation: EvaluationResult
    """The evaluation of the model that serves now."""
    replaced: bool
    """Whether another model served before, or none."""


def promote(gate: GateConfig, evaluations: Sequence[str], store: str) -> Promotion:
    """Let the best of the judged models serve, if it may; what serves from now on.

    A candidate that fails leaves the model serving that did. One that is judged on other data than
    the serving model can't be compared with it, and replaces it on the gate's word alone.

    Raises:
        GateError: no candidate passes, and nothing serves yet.
    """
    metric = get_task(gate.task).metric
    results = [read_evaluation(uri) for uri in evaluations]
    candidates = [r for r in results if r.task == gate.task]
    if results and not candidates:
        raise ConfigError(
            f"no evaluation is of the task {gate.task!r}, but of "
            + ", ".join(sorted({r.task for r in results})),
            expected=f"at least one evaluation of a {gate.task} model",
            action=f"name the evaluations' task, or give what `clipmill evaluate` printed for a "
            f"{gate.task} model",
        )
    best = max(
        candidates, key=lambda r: metric.improvement(r.metrics[metric.name], gate.threshold), default=None
    )
    place = join(store, "serving", gate.task)
    serving = read_promotion(place).evaluation if exists(join(place, _RECORD)) else None
    if best is None or metric.improvement(best.metrics[metric.name], gate.threshold) < 0:
        if serving is not None:
            return Promotion(uri=place, evaluation=serving, replaced=False)
        found = "none was judged" if best is None else f"{best.metrics[metric.name]:.4g}"
        raise GateError(
            f"no {gate.task} model may serve: the best {metric.name} is {found}",
            expected=f"{'at least' if metric.higher_is_better else 'at most'} {gate.threshold:.4g}"
            f" {metric.unit}",
            action="train longer or on better data, or lower the gate",
        )
    if serving is not None and serving.data.digest == best.data.digest:
        over = serving.metrics[metric.name]
        if metric.improvement(best.metrics[metric.name], over) <= 0:
            return Promotion(uri=place, evaluation=serving, replaced=False)
    parents = [
        best.model.to_json() | {"role": "model"},
        {"role": "evaluation", "uri": best.uri, "digest": best.digest},
    ]
    write_json(
        join(place, _RECORD),
        {
            "format": 1,
            "kind": "promotion",
            "digest": digest_json([gate.digest, best.digest]),
            "gate": gate.to_json(),
            "evaluation": best.uri,
            "parents": parents,
            "summary": {metric.name: f"{best.metrics[metric.name]:.3f} {metric.unit}"},
        },
    )
    return Promotion(uri=place, evaluation=best, replaced=True)


def read_promotion(uri: str) -> Promotion:
    """The record at ``uri``; NotFoundError or ArtifactError where none or another thing lies."""
    value = read_artifact_file(uri, _RECORD, "clipmill promote")
    return Promotion(uri=uri, evaluation=read_evaluation(value["evaluation"]), replaced=False)
