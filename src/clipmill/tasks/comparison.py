"""Encoders compared on frozen features: with what learned nothing, and with how sure one can be.

The rule. A difference between two encoders counts only if (1) its 95 % interval excludes zero, by a
bootstrap over the test images, the same images for both (paired), and (2) it is larger than the
spread of encoders with random weights, the largest difference between two of their seeds. The first
asks whether other test images would have said the same, the second whether another seed would have.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

import numpy as np

from clipmill.config import Config, digest_json
from clipmill.data.labeled.folder import fetch_folder
from clipmill.engine.result import read_log
from clipmill.errors import ConfigError
from clipmill.lineage import Parent
from clipmill.models.checkpoint import CheckpointMetadata, read_metadata
from clipmill.stage_records import ProgressCallback
from clipmill.storage import artifact_uri, exists, join, read_json, write_json
from clipmill.tasks.base import Metric
from clipmill.tasks.evaluation import EvaluationResult, read_evaluation
from clipmill.tasks.registry import TASKS, get_task
from clipmill.tasks.training import TrainingTask
from clipmill.tasks.training_registry import get_training_task

RANDOM = "random weights"
"""Label of the encoders that learned nothing."""
Outcome = Literal["better", "worse", "no difference"]
_RESULT = "comparison.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class ComparisonConfig(Config):
    """Rule that turns differences into outcomes."""

    num_resamples: int = 2000
    """Bootstrap resamples of the test images."""
    confidence: float = 0.95
    """Share of resamples inside the interval."""
    seed: int = 0
    """Seed of the resamples."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """One encoder over another, at one task."""

    label: str
    """The encoder that is asked about."""
    over: str
    """The one that it is compared with; of random weights their best seed."""
    gain: float
    """Improvement in the metric's unit; negative when it is worse."""
    low: float
    """Lower end of the interval of the gain."""
    high: float
    """Upper end."""
    outcome: Outcome
    """Outcome by the rule."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskResult:
    """All encoders at one task."""

    task: str
    """The task's name."""
    values: dict[str, float]
    """The metric of the trained encoders by label, the baseline first."""
    evaluations: dict[str, str]
    """URIs of their evaluations."""
    random: tuple[float, ...]
    """The metric of encoders with random weights, a seed each."""
    random_evaluations: tuple[str, ...]
    """URIs of their evaluations."""
    trivial: dict[str, float]
    """The metric of answers that see no image, by name: ``chance``, ``constant``, ..."""
    differences: tuple[Difference, ...]
    """Each trained encoder over those before it, and over random weights."""

    @property
    def metric(self) -> Metric:
        """Metric that ranks the encoders."""
        return get_task(self.task).metric

    @property
    def spread(self) -> float:
        """The largest difference between two seeds of random weights."""
        return max(self.random) - min(self.random)

    @property
    def gate(self) -> float:
        """Threshold of promotion.

        Better than any seed of random weights and any trivial answer, by the spread.
        """
        known = (*self.random, *self.trivial.values())
        if self.metric.higher_is_better:
            return max(known) + self.spread
        return min(known) - self.spread


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainingResult:
    """Losses and held-out accuracy of an encoder's pretraining."""

    losses: dict[str, float]
    """Contrastive loss by kind of caption, the mean over the last tenth of the log."""
    chance_loss: float
    """The loss of guessing: the logarithm of the batch's size."""
    pair_accuracy: float | None
    """Share of held-out images and captions nearer to their own than to others'; 0.5 is
    chance. None where no pairs were held out."""
    pair_accuracy_error: float
    """Its standard error."""

    @property
    def has_failed(self) -> bool:
        """True if a loss, or two standard errors of held-out pairs, reach chance."""
        is_level = self.pair_accuracy is not None and (
            self.pair_accuracy - 2 * self.pair_accuracy_error <= 0.5
        )
        return is_level or any(loss >= self.chance_loss for loss in self.losses.values())


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Result of comparing encoders."""

    uri: str
    """URI of the comparison."""
    digest: str
    """Its digest."""
    tasks: tuple[TaskResult, ...]
    """In the order of the tasks."""
    pretraining: dict[str, PretrainingResult]
    """By label."""

    @classmethod
    def read(cls, uri: str) -> Self:
        """The comparison at ``uri``."""
        value = read_json(join(uri, _RESULT))
        tasks = [
            TaskResult(
                **task
                | {
                    "random": tuple(task["random"]),
                    "random_evaluations": tuple(task["random_evaluations"]),
                    "differences": tuple(Difference(**d) for d in task["differences"]),
                }
            )
            for task in value["tasks"]
        ]
        return cls(
            uri=uri,
            digest=value["digest"],
            tasks=tuple(tasks),
            pretraining={k: PretrainingResult(**v) for k, v in value["pretraining"].items()},
        )

    def task(self, name: str) -> TaskResult:
        """The result of the task of that name, or a ConfigError."""
        for found in self.tasks:
            if found.task == name:
                return found
        raise ConfigError(
            f"{self.uri} compares no encoders at {name}",
            expected=f"one of {', '.join(t.task for t in self.tasks)}",
            action="name one of these tasks",
        )


def compare_encoders(
    config: ComparisonConfig,
    encoders: Mapping[str, str],
    evaluations: Sequence[str],
    random_evaluations: Sequence[str],
    data: Sequence[str],
    store: str,
    *,
    report: ProgressCallback,
) -> str:
    """Compare trained encoders with each other and with random weights; the URI, under ``store``.

    ``encoders`` has the trained ones by label, the baseline first; ``evaluations`` those of models
    made of them, ``random_evaluations`` those of encoders with random weights, at least two seeds a
    task. ``data`` has the labeled folders that the evaluations were made on.

    Raises:
        ConfigError: an encoder wasn't evaluated at a task, or random weights have one seed.
    """
    cards = {label: read_metadata(uri) for label, uri in encoders.items()}
    labels = {metadata.digest: label for label, metadata in cards.items()}
    trained = [read_evaluation(uri) for uri in evaluations]
    random = [read_evaluation(uri) for uri in random_evaluations]
    parents = [metadata.as_parent(f"encoder {label}") for label, metadata in cards.items()]
    parents += [Parent(role="evaluation", uri=e.uri, digest=e.digest) for e in (*trained, *random)]
    digest = digest_json([config.digest, [[p.role, p.digest] for p in parents]])
    uri = artifact_uri(store, "comparisons", digest[:12])
    if exists(join(uri, _RESULT)):
        return uri
    names = [name for name in TASKS if any(e.task == name for e in trained)]
    folders = {parent.digest: folder for folder, parent in (fetch_folder(d, "data") for d in data)}
    tasks = []
    for done, name in enumerate(names):
        report(done, len(names), f"comparing {name}")
        by_label = {
            labels[_encoder_digest(e)]: e
            for e in trained
            if e.task == name and _encoder_digest(e) in labels
        }
        _check(name, tuple(encoders), by_label, [e for e in random if e.task == name])
        tasks.append(
            _compare_task(
                config,
                {label: by_label[label] for label in encoders},
                [e for e in random if e.task == name],
                _trivial(get_training_task(name), by_label[next(iter(encoders))], folders),
            )
        )
    pretraining = {
        label: found for label, metadata in cards.items() if (found := _pretraining(metadata))
    }
    summary = {
        f"{d.label} over {d.over}, {t.task}": d.outcome for t in tasks for d in t.differences
    }
    write_json(
        join(uri, _RESULT),
        {
            "format": 1,
            "kind": "comparison",
            "digest": digest,
            "config": config.to_json(),
            "tasks": [asdict(task) for task in tasks],
            "pretraining": {label: asdict(found) for label, found in pretraining.items()},
            "parents": [p.to_json() for p in parents],
            "summary": summary,
        },
    )
    report(len(names), len(names), "compared")
    return uri


def outcome(gain: float, low: float, high: float, spread: float) -> Outcome:
    """Return the outcome of a gain, its interval and the spread of random weights."""
    if low > 0 and gain > spread:
        return "better"
    if high < 0 and gain < -spread:
        return "worse"
    return "no difference"


def paired_interval(
    task: TrainingTask[Any],
    value: EvaluationResult,
    over: EvaluationResult,
    config: ComparisonConfig,
) -> tuple[float, float]:
    """Ends of the bootstrap's percentile interval of the gain, over the test images of both."""
    rows, over_rows = value.per_image(), over.per_image()
    number = len(next(iter(rows.values())))
    assert number == len(next(iter(over_rows.values()))), "the same test images"
    generator = np.random.default_rng(config.seed)
    gains = []
    for _ in range(config.num_resamples):
        drawn = generator.integers(number, size=number)
        figures = [
            task.metric_from_rows({name: array[drawn] for name, array in found.items()})
            for found in (rows, over_rows)
        ]
        gains.append(task.metric.improvement(*figures))
    tail = 50 * (1 - config.confidence)
    low, high = np.percentile(gains, [tail, 100 - tail])
    return float(low), float(high)


def _compare_task(
    config: ComparisonConfig,
    by_label: Mapping[str, EvaluationResult],
    random: Sequence[EvaluationResult],
    trivial: Mapping[str, float],
) -> TaskResult:
    task = get_training_task(random[0].task)
    metric = task.metric
    best_random = max(random, key=lambda e: metric.improvement(e.metrics[metric.name], 0.0))
    known = [e.metrics[metric.name] for e in random]
    spread = max(known) - min(known)
    differences = []
    before: dict[str, EvaluationResult] = {RANDOM: best_random}
    for label, found in by_label.items():
        for other, over in reversed(before.items()):
            gain = metric.improvement(found.metrics[metric.name], over.metrics[metric.name])
            low, high = paired_interval(task, found, over, config)
            differences.append(
                Difference(
                    label=label,
                    over=other,
                    gain=gain,
                    low=low,
                    high=high,
                    outcome=outcome(gain, low, high, spread),
                )
            )
        before[label] = found
    return TaskResult(
        task=task.name,
        values={label: e.metrics[metric.name] for label, e in by_label.items()},
        evaluations={label: e.uri for label, e in by_label.items()},
        random=tuple(known),
        random_evaluations=tuple(e.uri for e in random),
        trivial=dict(trivial),
        differences=tuple(differences),
    )


def _trivial(
    task: TrainingTask[Any], evaluation: EvaluationResult, folders: Mapping[str, Any]
) -> dict[str, float]:
    """The metric of each trivial answer, over the test images of ``evaluation``."""
    folder = folders.get(evaluation.data.digest)
    if folder is None:
        raise ConfigError(
            f"{evaluation.uri} was made on {evaluation.data.uri}, which wasn't given",
            expected="the labeled data of each evaluation",
            action="give it as data",
        )
    config = task.config_type.from_json(read_metadata(evaluation.model.uri).architecture["config"])
    found = {}
    for name, answer in task.trivial_predictors(folder).items():
        judged = task.evaluate(answer, config, folder, num_samples=0, report=_silent)
        found[name] = judged.metrics[task.metric.name]
    return found


def _silent(done: int, total: int, words: str) -> None:
    del done, total, words


def _pretraining(metadata: CheckpointMetadata) -> PretrainingResult | None:
    log = [record for record in read_log(metadata.uri) if "loss" in record]
    batch_size = metadata.recipe.get("train", {}).get("batch_size")
    if not log or not batch_size:
        return None
    kinds = [k for k in log[-1] if k in {"loss/real", "loss/synthetic"}] or ["loss"]
    end = log[-max(1, len(log) // 10) :]
    held_out = [r for r in read_log(metadata.uri) if "retrieval/pair_accuracy" in r][-1:]
    return PretrainingResult(
        losses={kind: float(np.mean([r[kind] for r in end if kind in r])) for kind in kinds},
        chance_loss=math.log(batch_size),
        pair_accuracy=held_out[0]["retrieval/pair_accuracy"] if held_out else None,
        pair_accuracy_error=held_out[0]["retrieval/pair_accuracy_error"] if held_out else 0.0,
    )


def _encoder_digest(evaluation: EvaluationResult) -> str:
    parents = read_metadata(evaluation.model.uri).parents
    return next(parent.digest for parent in parents if parent.role == "encoder")


def _check(
    task: str,
    labels: Sequence[str],
    by_label: Mapping[str, EvaluationResult],
    random: Sequence[EvaluationResult],
) -> None:
    missing = [label for label in labels if label not in by_label]
    if missing:
        raise ConfigError(
            f"{', '.join(missing)} wasn't evaluated at {task}",
            expected="an evaluation of each encoder at each task",
            action="evaluate a model of it",
        )
    if len(random) < 2:
        raise ConfigError(
            f"random weights were evaluated with {len(random)} seeds at {task}",
            expected="two seeds or more: their spread says how much a seed does",
            action="evaluate models of encoders with random weights, of other seeds",
        )
