"""Evaluations of several conditions over seeds: the data of every table of a study."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from clipmill.errors import ConfigError
from clipmill.models.checkpoint import CheckpointMetadata, read_metadata
from clipmill.study.statistics import PairedDifference, paired_difference
from clipmill.tasks.base import Metric
from clipmill.tasks.evaluation import read_evaluation
from clipmill.tasks.finetune import FinetuneConfig
from clipmill.tasks.registry import get_task

_TASKS = ("segmentation", "depth", "detection", "classification")


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyRun:
    """One condition with one seed."""

    condition: str
    """Name of the condition."""
    seed: int
    """Seed of weights and order."""
    encoder: str
    """URI of the encoder."""
    evaluations: dict[str, str]
    """URI of the evaluation by each transfer's name."""
    metrics: dict[str, dict[str, float]]
    """All metrics by each transfer's name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ResultsTable:
    """Runs of several conditions with the same transfers and seeds."""

    conditions: tuple[str, ...]
    """Names; the first is the baseline of the others."""
    transfers: Mapping[str, FinetuneConfig]
    """Transfer tasks by name."""
    seeds: tuple[int, ...]
    """Seeds that each condition has a run with."""
    runs: tuple[StudyRun, ...]
    """One a condition and seed, in any order; there may be more."""
    baselines: Mapping[str, str] = field(default_factory=dict)
    """Baselines of the conditions that aren't compared with the first."""

    def baseline(self, condition: str) -> str:
        """Return the condition to compare with; the condition itself if it is a baseline."""
        return self.baselines.get(condition, self.conditions[0])

    def metric(self, transfer: str) -> Metric:
        """Return the metric of a transfer."""
        return get_task(self.transfers[transfer].task).metric

    def is_frozen(self, transfer: str) -> bool:
        """Return whether the transfer keeps the encoder frozen."""
        return bool(self.transfers[transfer].model.to_json().get("freeze_encoder"))

    def values(self, condition: str, transfer: str) -> list[float]:
        """Return a condition's metric for each seed, in the metric's unit and the seeds' order."""
        name = self.metric(transfer).name
        by_seed = {
            run.seed: run.metrics[transfer][name] for run in self.runs if run.condition == condition
        }
        return [by_seed[seed] for seed in self.seeds]

    def difference(self, condition: str, baseline: str, transfer: str) -> PairedDifference:
        """Return the improvement of a condition over another, paired by seed."""
        metric = self.metric(transfer)
        values = self.values(condition, transfer)
        references = self.values(baseline, transfer)
        improvements = [metric.improvement(a, b) for a, b in zip(values, references, strict=True)]
        return paired_difference(improvements, references)


def sort_by_task(transfers: Mapping[str, FinetuneConfig]) -> dict[str, FinetuneConfig]:
    """Return the transfers, dense tasks first."""
    order = {name: number for number, name in enumerate(_TASKS)}
    return dict(sorted(transfers.items(), key=lambda t: (order.get(t[1].task, len(order)), t[0])))


def collect_evaluations(evaluations: Mapping[str, Sequence[str]]) -> ResultsTable:
    """Build a table from any evaluations (URIs by condition), the baseline first.

    A transfer is a task, with a frozen or a trained encoder; the seed is that of the fine-tuning.
    Only transfers and seeds of all conditions are kept.

    Raises:
        ConfigError: the conditions have no transfer and seed in common, or a condition has two
            evaluations of one transfer and seed.
        ArtifactError, NotFoundError: an evaluation or its model doesn't exist.
    """
    by_condition: dict[str, dict[tuple[int, str], tuple[str, CheckpointMetadata]]] = {}
    transfers: dict[str, FinetuneConfig] = {}
    for condition, uris in evaluations.items():
        own = by_condition.setdefault(condition, {})
        for uri in uris:
            metadata = read_metadata(read_evaluation(uri).model.uri)
            config = FinetuneConfig.from_stored(metadata.recipe, metadata.uri)
            is_frozen = config.model.to_json().get("freeze_encoder")
            name = f"{config.task}, frozen" if is_frozen else config.task
            if (config.train.seed, name) in own:
                raise ConfigError(
                    f"{condition!r} has two evaluations of {name} with seed {config.train.seed}",
                    expected="one of each transfer and seed",
                    action="give each under a condition of its own",
                )
            transfers.setdefault(name, config)
            own[config.train.seed, name] = (uri, metadata)
    names = [
        n for n in transfers if all(any(n == t for _, t in own) for own in by_condition.values())
    ]
    seeds = sorted(
        set.intersection(
            *(
                {s for s, _ in own if all((s, n) in own for n in names)}
                for own in by_condition.values()
            )
        )
    )
    if not names or not seeds:
        raise ConfigError(
            "no task was evaluated with the same seed under every condition",
            expected="for each condition evaluations of the same tasks with the same train.seed",
            action="fine-tune what is missing",
        )
    return ResultsTable(
        conditions=tuple(by_condition),
        transfers=sort_by_task({name: transfers[name] for name in names}),
        seeds=tuple(seeds),
        runs=tuple(
            _run(condition, seed, {name: own[seed, name] for name in names})
            for condition, own in by_condition.items()
            for seed in seeds
        ),
    )


def _run(
    condition: str, seed: int, evaluations: Mapping[str, tuple[str, CheckpointMetadata]]
) -> StudyRun:
    parents = [p for _, metadata in evaluations.values() for p in metadata.parents]
    encoders = {p.uri for p in parents if p.role == "encoder"}
    return StudyRun(
        condition=condition,
        seed=seed,
        encoder=", ".join(sorted(encoders)),
        evaluations={name: uri for name, (uri, _) in evaluations.items()},
        metrics={
            name: dict(read_evaluation(uri).metrics) for name, (uri, _) in evaluations.items()
        },
    )
