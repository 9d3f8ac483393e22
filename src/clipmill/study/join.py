"""Studies that several machines or nights shared, as one."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from typing import TypeVar, get_args

from clipmill.errors import ConfigError
from clipmill.study.config import ConditionConfig, EffortConfig, StudyConfig, TableName
from clipmill.study.findings import StudyRun
from clipmill.study.result import CaptionQuality, CaptionSample, StudyResult

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
