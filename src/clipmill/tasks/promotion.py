"""Promote the best model of a task if it reaches a minimum metric and beats the current one."""

from collections.abc import Sequence
from dataclasses import dataclass

from clipmill.config import Config, digest_json
from clipmill.errors import ConfigError, GateError
from clipmill.lineage import read_artifact_file
from clipmill.storage import artifact_uri, exists, join, write_json
from clipmill.tasks.evaluation import EvaluationResult, read_evaluation
from clipmill.tasks.registry import get_task

_RECORD = "promotion.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class PromotionConfig(Config):
    """Condition for a model to be promoted."""

    task: str
    """Name of the task."""
    threshold: float
    """Minimum of the task's metric (maximum where lower is better), in its unit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Promotion:
    """Content of a promotion record."""

    uri: str
    """Address of the record."""
    evaluation: EvaluationResult
    """Evaluation of the promoted model."""
    replaced: bool
    """True if this call replaced the promoted model, or promoted the first."""
    refusal: str = ""
    """Reason why the best candidate wasn't promoted; empty where it is the promoted model."""


def promote(config: PromotionConfig, evaluations: Sequence[str], store: str) -> Promotion:
    """Promote the best of the evaluated models; return the promotion in effect afterwards.

    The current model stays if no candidate reaches the threshold or beats it. A candidate that was
    evaluated on other data can't be compared with the current one, and only has to reach the
    threshold.

    Raises:
        GateError: no candidate reaches the threshold, and none was promoted before.
    """
    metric = get_task(config.task).metric
    results = [read_evaluation(uri) for uri in evaluations]
    candidates = [r for r in results if r.task == config.task]
    if results and not candidates:
        raise ConfigError(
            f"no evaluation is of the task {config.task!r}, but of "
            + ", ".join(sorted({r.task for r in results})),
            expected=f"at least one evaluation of a {config.task} model",
            action=f"name the evaluations' task, or give what `clipmill eval task` printed for a "
            f"{config.task} model",
        )
    best = max(
        candidates,
        key=lambda r: metric.improvement(r.metrics[metric.name], config.threshold),
        default=None,
    )
    uri = artifact_uri(store, "serving", config.task)
    current = read_promotion(uri).evaluation if exists(join(uri, _RECORD)) else None
    if best is None or metric.improvement(best.metrics[metric.name], config.threshold) < 0:
        value = "none was evaluated" if best is None else f"{best.metrics[metric.name]:.4g}"
        bound = "at least" if metric.higher_is_better else "at most"
        required = f"{bound} {config.threshold:.4g} {metric.unit}"
        if current is not None:
            refusal = f"the best {metric.name} is {value}, required is {required}"
            return Promotion(uri=uri, evaluation=current, replaced=False, refusal=refusal)
        raise GateError(
            f"no {config.task} model may serve: the best {metric.name} is {value}",
            expected=required,
            action="train longer or on better data, or lower the gate",
        )
    if current is not None and current.data.digest == best.data.digest:
        own, baseline = best.metrics[metric.name], current.metrics[metric.name]
        if metric.improvement(own, baseline) <= 0:
            refusal = (
                ""
                if best.digest == current.digest
                else f"its {metric.name} of {own:.4g} {metric.unit} is no better than "
                f"{baseline:.4g} of the promoted model"
            )
            return Promotion(uri=uri, evaluation=current, replaced=False, refusal=refusal)
    parents = [
        best.model.to_json() | {"role": "model"},
        {"role": "evaluation", "uri": best.uri, "digest": best.digest},
    ]
    write_json(
        join(uri, _RECORD),
        {
            "format": 1,
            "kind": "promotion",
            "digest": digest_json([config.digest, best.digest]),
            "gate": config.to_json(),
            "evaluation": best.uri,
            "parents": parents,
            "summary": {metric.name: f"{best.metrics[metric.name]:.3f} {metric.unit}"},
        },
    )
    return Promotion(uri=uri, evaluation=best, replaced=True)


def read_promotion(uri: str) -> Promotion:
    """Read the promotion at ``uri``.

    Raises:
        NotFoundError: there is none.
        ArtifactError: the record is damaged or of another kind.
    """
    value = read_artifact_file(uri, _RECORD, "clipmill promote")
    return Promotion(uri=uri, evaluation=read_evaluation(value["evaluation"]), replaced=False)
