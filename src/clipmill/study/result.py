"""What a study found, as it lies in the store."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from typing import Any, TypeVar, get_args

from clipmill.errors import ArtifactError, ConfigError
from clipmill.lineage import read_artifact_file
from clipmill.storage import join
from clipmill.study.config import ConditionConfig, EffortConfig, StudyConfig, TableName
from clipmill.study.results_table import Findings, StudyRun, by_task
from clipmill.study.scene_captions import Truth

RESULT = "study.json"
_FORMAT = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionQuality:
    """How good one kind of caption is, over all pictures."""

    truth: Truth | None
    """None where nobody knows what is there."""
    clip_score: float | None
    """Mean cosine of picture and caption by the judge's CLIP, times 100; None without a judge."""
    num_words: float
    """Mean length, words."""
    num_different: int
    """Different captions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionSample:
    """A picture and all that is said of it."""

    image_base64: str
    """Its file, in base64."""
    captions: dict[str, str]
    """By kind, ``real`` and layers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """Of one encoder, FLOPs."""

    pretraining: float
    """Forward and backward passes of all seen samples."""
    captioning: float
    """Writing a caption of each picture once, where the study's captioner wrote them."""

    @property
    def total(self) -> float:
        """Both."""
        return self.pretraining + self.captioning


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyPart:
    """What one command made of a study: all of it, unless parts were joined."""

    command: str
    """The command, of the last start; empty where a library call made it."""
    digest: str
    """Of its config."""
    environment: dict[str, str]
    """Versions and machine."""
    seconds: float
    """Of all starts, by the clock; what other studies had made before took none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyResult:
    """Every run of a study."""

    uri: str
    """Where it lies; where its parts lie, if they were joined."""
    config: StudyConfig
    """What was asked."""
    runs: tuple[StudyRun, ...]
    """Seed by seed, condition by condition."""
    num_pairs: int
    """Pictures to pretrain on."""
    quality: dict[str, CaptionQuality]
    """Of ``real`` captions and of each layer's."""
    samples: tuple[CaptionSample, ...]
    """A few pictures with every kind of caption."""
    attention: dict[str, dict[str, Any]]
    """By condition, as :func:`clipmill.report.attention.attention_json` has it."""
    costs: dict[str, Cost]
    """Of each condition that learns from captions."""
    parts: tuple[StudyPart, ...]
    """How it was made."""
    retold: tuple[str, ...] = ()
    """Kinds of captions that some of the joined parts have in other words than ``quality`` tells:
    a captioner that each trained itself, on processors that round differently."""

    @property
    def judged(self) -> Findings:
        """What the study is about: the caption sources, or else all."""
        return self.findings("sources" if self.config.table("sources") else None)

    def findings(self, table: TableName | None = None) -> Findings:
        """The runs of a table's conditions; or of all, by what every table asks for."""
        config = self.config
        # A teacher may be a condition of no table.
        conditions = [c for c in config.conditions if (table in c.tables if table else c.tables)]
        tables = {t for c in conditions for t in c.tables} if table is None else {table}
        return Findings(
            conditions=tuple(c.name for c in conditions),
            transfers=by_task(
                {
                    name: transfer
                    for name, transfer in config.transfers.items()
                    if all(name in config.transfers_of(t) for t in tables)
                }
            ),
            seeds=tuple(s for s in config.seeds if all(s in config.seeds_of(t) for t in tables)),
            runs=self.runs,
            over={c.name: c.over for c in conditions if c.over},
        )

    def to_json(self) -> dict[str, Any]:
        """What ``study.json`` holds."""
        return {
            "format": _FORMAT,
            "kind": "study",
            "digest": self.config.digest,
            "config": self.config.to_json(),
            "runs": [asdict(run) for run in self.runs],
            "num_pairs": self.num_pairs,
            "quality": {name: asdict(found) for name, found in self.quality.items()},
            "samples": [asdict(sample) for sample in self.samples],
            "attention": self.attention,
            "costs": {name: asdict(cost) for name, cost in self.costs.items()},
            "parts": [asdict(part) for part in self.parts],
            "parents": [],
        }


def read_study(uri: str) -> StudyResult:
    """The result at ``uri``.

    Raises:
        NotFoundError: nothing lies there.
        ArtifactError: what lies there was written by another version of clipmill.
    """
    value = read_artifact_file(uri, RESULT, "clipmill study captions")
    if value["format"] != _FORMAT:
        raise ArtifactError(
            f"{join(uri, RESULT)} is of format {value['format']}",
            expected=f"format {_FORMAT}",
            action="remove it and run the study's command again, which keeps what is made",
        )
    return StudyResult(
        uri=uri,
        config=StudyConfig.from_json(value["config"]),
        runs=tuple(StudyRun(**run) for run in value["runs"]),
        num_pairs=value["num_pairs"],
        quality={name: _quality(found) for name, found in value["quality"].items()},
        samples=tuple(CaptionSample(**sample) for sample in value["samples"]),
        attention=value["attention"],
        costs={name: Cost(**cost) for name, cost in value["costs"].items()},
        parts=tuple(StudyPart(**part) for part in value["parts"]),
    )


def _quality(value: dict[str, Any]) -> CaptionQuality:
    truth = value["truth"]
    return CaptionQuality(**(value | {"truth": Truth(**truth) if truth else None}))


T = TypeVar("T")


def join_studies(parts: Sequence[StudyResult]) -> StudyResult:
    """One study of the runs of all: each table with the seeds and transfers that it has whole.

    Of what two made, such as a condition that two tables share, the first one's counts.

    Raises:
        ConfigError: they mean different things by one name, or have nothing whole in common.
    """
    if len(parts) == 1:
        return parts[0]
    configs = [part.config for part in parts]
    runs: dict[tuple[str, int], StudyRun] = {}
    for run in (run for part in parts for run in part.runs):
        own = runs.setdefault((run.condition, run.seed), run)
        runs[run.condition, run.seed] = replace(
            own,
            evaluations=run.evaluations | own.evaluations,
            metrics=run.metrics | own.metrics,
        )
    conditions = _conditions(configs)
    tables = [t for t in get_args(TableName) if any(t in c.tables for c in conditions)]
    efforts = {table: _effort(table, conditions, configs, runs) for table in tables}
    for name in ("drawn", "given", "teaching"):
        for config in configs:
            _same(name, getattr(config, name), getattr(configs[0], name))
    joined = replace(
        configs[0],
        clips=_union("clips", [c.clips for c in configs]),
        maes=_union("maes", [c.maes for c in configs]),
        supervised=_union("supervised", [c.supervised for c in configs]),
        scratch=_union("scratch", [c.scratch for c in configs]),
        transfers=_union("transfers", [c.transfers for c in configs]),
        conditions=conditions,
        judge=_named("judge", [c.judge for c in configs]),
        teacher=_named("teacher", [c.teacher for c in configs]),
        attention=tuple(dict.fromkeys(name for c in configs for name in c.attention)),
        seeds=tuple(sorted({seed for effort in efforts.values() for seed in effort.seeds})),
        efforts=efforts,
    )
    # The first seed's encoders are the judge, and those whose heads are looked at.
    by_seed = sorted(parts, key=lambda part: part.config.seeds[0])
    quality = _first(p.quality for p in sorted(by_seed, key=lambda p: not p.config.judge))
    return replace(
        parts[0],
        uri=", ".join(part.uri for part in parts),
        config=joined,
        runs=tuple(
            runs[c.name, seed]
            for seed in joined.seeds
            for c in conditions
            if joined.judged_by(c, seed)
        ),
        quality=quality,
        samples=_samples(parts),
        attention=_first(part.attention for part in by_seed),
        costs=_first(part.costs for part in parts),
        parts=tuple(made for part in parts for made in part.parts),
        retold=tuple(
            name
            for name, told in quality.items()
            if any(_words(p.quality.get(name, told)) != _words(told) for p in parts)
        ),
    )


def _words(quality: CaptionQuality) -> CaptionQuality:
    """What is known of captions by themselves, without the judge's opinion."""
    return replace(quality, clip_score=None)


def _conditions(configs: Sequence[StudyConfig]) -> tuple[ConditionConfig, ...]:
    """All conditions, each in all its tables, in an order that is every study's."""
    found: dict[str, ConditionConfig] = {}
    for condition in (c for config in configs for c in config.conditions):
        own = found.setdefault(condition.name, condition)
        tables = tuple(t for t in get_args(TableName) if t in {*own.tables, *condition.tables})
        whole = replace(own, tables=tables)
        _same(f"condition {condition.name!r}", whole, replace(condition, tables=tables))
        found[condition.name] = whole
    order: TopologicalSorter[str] = TopologicalSorter(dict.fromkeys(found, ()))
    for config in configs:
        for before, after in pairwise(config.conditions):
            order.add(after.name, before.name)
    try:
        return tuple(found[name] for name in order.static_order())
    except CycleError as error:
        raise _differ("the order of conditions") from error


def _effort(
    table: TableName,
    conditions: Sequence[ConditionConfig],
    configs: Sequence[StudyConfig],
    runs: Mapping[tuple[str, int], StudyRun],
) -> EffortConfig:
    """The transfers that all studies with a table ask for, the seeds that have them all."""
    own = [config for config in configs if config.table(table)]
    transfers = [
        name
        for name in own[0].transfers_of(table)
        if all(name in c.transfers_of(table) for c in own)
    ]
    names = [c.name for c in conditions if table in c.tables]
    seeds = [
        seed
        for seed in sorted({seed for _, seed in runs})
        if all((n, seed) in runs and runs[n, seed].metrics.keys() >= set(transfers) for n in names)
    ]
    if not transfers or not seeds:
        raise ConfigError(
            f"no seed has all of the table {table!r}",
            expected="studies that between them have its conditions by the same transfers",
            action=f"run what is missing (`--table {table}`), or leave out what has some of it",
        )
    return EffortConfig(seeds=tuple(seeds), transfers=tuple(transfers))


def _samples(parts: Sequence[StudyResult]) -> tuple[CaptionSample, ...]:
    captions: dict[str, dict[str, str]] = {}
    for sample in (sample for part in parts for sample in part.samples):
        own = captions.get(sample.image_base64, {})
        captions[sample.image_base64] = sample.captions | own
    return tuple(
        CaptionSample(image_base64=image, captions=told) for image, told in captions.items()
    )


def _first(found: Iterable[Mapping[str, T]]) -> dict[str, T]:
    """All entries; the first of each name."""
    joined: dict[str, T] = {}
    for mapping in found:
        for name, value in mapping.items():
            joined.setdefault(name, value)
    return joined


def _named(what: str, names: Sequence[str]) -> str:
    """The one name that any has; empty where none has one."""
    found = next(filter(None, names), "")
    for name in filter(None, names):
        _same(what, name, found)
    return found


def _union(name: str, found: Sequence[Mapping[str, T]]) -> dict[str, T]:
    """All entries, of which those of one name are the same."""
    joined = _first(found)
    for mapping in found:
        for key, value in mapping.items():
            _same(f"{name}.{key}", joined[key], value)
    return joined


def _same(name: str, one: object, other: object) -> None:
    if one != other:
        raise _differ(name)


def _differ(name: str) -> ConfigError:
    return ConfigError(
        f"the studies differ in {name}",
        expected="parts of one study: the same world, encoders, conditions and transfers",
        action="compare single evaluations instead, as CONDITION=URI",
    )
