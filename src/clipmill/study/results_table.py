"""Evaluations of several conditions over seeds: what every table is made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from clipmill.errors import ConfigError
from clipmill.models.checkpoint import CheckpointMetadata, read_metadata
from clipmill.study.statistics import Gain, paired_gain
from clipmill.tasks.base import Metric
from clipmill.tasks.evaluation import read_evaluation
from clipmill.tasks.finetune import FinetuneConfig
from clipmill.tasks.registry import get_task

_TASKS = ("segmentation", "depth", "detection", "classification")


def by_task(transfers: Mapping[str, FinetuneConfig]) -> dict[str, FinetuneConfig]:
    """The same, dense tasks first."""
    known = {name: number for number, name in enumerate(_TASKS)}
    return dict(sorted(transfers.items(), key=lambda t: (known.get(t[1].task, len(known)), t[0])))


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyRun:
    """One condition with one seed."""

    condition: str
    """Its name."""
    seed: int
    """Of weights and order."""
    encoder: str
    """URI of what was pretrained."""
    evaluations: dict[str, str]
    """URI of the evaluation by each transfer's name."""
    metrics: dict[str, dict[str, float]]
    """All metrics, likewise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Findings:
    """Runs, and what they have in common."""

    conditions: tuple[str, ...]
    """Names; the first is what the others are held against."""
    transfers: Mapping[str, FinetuneConfig]
    """What encoders were judged by, by name."""
    seeds: tuple[int, ...]
    """Each condition has a run with each of them."""
    runs: tuple[StudyRun, ...]
    """One a condition and seed, in any order; there may be more."""
    over: Mapping[str, str] = field(default_factory=dict)
    """What a condition is held against, where it isn't the first one."""

    def reference(self, condition: str) -> str:
        """What the condition is held against; itself, if others are held against it alone."""
        return self.over.get(condition, self.conditions[0])

    def metric(self, transfer: str) -> Metric:
        """The figure that a transfer is judged by."""
        return get_task(self.transfers[transfer].task).metric

    def is_frozen(self, transfer: str) -> bool:
        """Whether the encoder stayed as it was."""
        return bool(self.transfers[transfer].model.to_json().get("freeze_encoder"))

    def figures(self, condition: str, transfer: str) -> list[float]:
        """A condition's figure for each seed, in its metric's unit and the order of the seeds."""
        name = self.metric(transfer).name
        found = {
            run.seed: run.metrics[transfer][name] for run in self.runs if run.condition == condition
        }
        return [found[seed] for seed in self.seeds]

    def gain(self, condition: str, over: str, transfer: str) -> Gain:
        """How much better a condition is than another, paired by seed."""
        metric = self.metric(transfer)
        own, theirs = self.figures(condition, transfer), self.figures(over, transfer)
        return paired_gain(
            [metric.improvement(a, b) for a, b in zip(own, theirs, strict=True)], theirs
        )


def gather(evaluations: Mapping[str, Sequence[str]]) -> Findings:
    """Findings from anybody's evaluations (URIs by condition), the condition to hold against first.

    A transfer is a task, its encoder frozen or not; the seed is that of the fine-tuning. Only
    transfers and seeds that all conditions have are kept.

    Raises:
        ConfigError: nothing is common to all conditions, or a condition has two evaluations of one
            transfer and seed.
        ArtifactError, NotFoundError: an evaluation or its model isn't there.
    """
    found: dict[str, dict[tuple[int, str], tuple[str, CheckpointMetadata]]] = {}
    transfers: dict[str, FinetuneConfig] = {}
    for condition, uris in evaluations.items():
        own = found.setdefault(condition, {})
        for uri in uris:
            metadata = read_metadata(read_evaluation(uri).model.uri)
            config = FinetuneConfig.from_json(metadata.recipe)
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
    names = [n for n in transfers if all(any(n == t for _, t in own) for own in found.values())]
    seeds = sorted(
        set.intersection(
            *({s for s, _ in own if all((s, n) in own for n in names)} for own in found.values())
        )
    )
    if not names or not seeds:
        raise ConfigError(
            "no task was judged with the same seed under every condition",
            expected="for each condition evaluations of the same tasks with the same train.seed",
            action="fine-tune what is missing",
        )
    return Findings(
        conditions=tuple(found),
        transfers=by_task({name: transfers[name] for name in names}),
        seeds=tuple(seeds),
        runs=tuple(
            _run(condition, seed, {name: own[seed, name] for name in names})
            for condition, own in found.items()
            for seed in seeds
        ),
    )


def _run(
    condition: str, seed: int, judged: Mapping[str, tuple[str, CheckpointMetadata]]
) -> StudyRun:
    cards = [metadata for _, metadata in judged.values()]
    encoders = {p.uri for metadata in cards for p in metadata.parents if p.role == "encoder"}
    return StudyRun(
        condition=condition,
        seed=seed,
        encoder=", ".join(sorted(encoders)),
        evaluations={name: uri for name, (uri, _) in judged.items()},
        metrics={name: dict(read_evaluation(uri).metrics) for name, (uri, _) in judged.items()},
    )
