"""Result of a study in the store, and the merging of partial results."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from typing import Any, TypeVar, get_args

from clipmill.errors import ArtifactError, ConfigError
from clipmill.lineage import read_artifact_file
from clipmill.storage import join
from clipmill.study.config import ConditionConfig, StudyConfig, TableBudget, TableName
from clipmill.study.scene_captions import CaptionAccuracy
from clipmill.study.tables import ResultsTable, StudyRun, sort_by_task

RESULT = "study.json"


_FORMAT = 2


T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionQuality:
    """Quality of one kind of caption, over all images."""

    truth: CaptionAccuracy | None
    """Accuracy against the scenes; None where they aren't known."""
    clip_score: float | None
    """Mean cosine of image and caption by the scoring CLIP, times 100; None without one."""
    num_words: float
    """Mean length, words."""
    num_different: int
    """Number of distinct captions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionSample:
    """An image with its captions."""

    image_base64: str
    """Image file, in base64."""
    captions: dict[str, str]
    """By kind: ``real`` and layers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """Compute cost of an encoder, FLOPs."""

    pretraining: float
    """Forward and backward passes of all seen samples."""
    captioning: float
    """Captioning each image once, where the study's captioner wrote the captions."""

    @property
    def total(self) -> float:
        """Sum of both."""
        return self.pretraining + self.captioning


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyPart:
    """One command's part of a study: all of it, unless parts were merged."""

    command: str
    """Command of the last start; empty for a library call."""
    digest: str
    """Digest of its config."""
    environment: dict[str, str]
    """Versions and machine."""
    seconds: float
    """Wall time of all starts; reused artifacts count nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyResult:
    """All runs of a study, with its captions and costs."""

    uri: str
    """Address of the study, or of its parts if they were merged."""
    config: StudyConfig
    """The study's configuration."""
    runs: tuple[StudyRun, ...]
    """By seed, then by condition."""
    num_pairs: int
    """Pairs to pretrain on."""
    quality: dict[str, CaptionQuality]
    """Quality of ``real`` captions and of each layer's."""
    samples: tuple[CaptionSample, ...]
    """A few images with every kind of caption."""
    attention: dict[str, dict[str, Any]]
    """By condition, as :func:`clipmill.report.attention.attention_json` has it."""
    costs: dict[str, Cost]
    """Cost of each condition that trains a CLIP."""
    parts: tuple[StudyPart, ...]
    """Commands that ran the study."""
    varying_captions: tuple[str, ...] = ()
    """Kinds of captions that differ between merged parts: each trained its own captioner, on
    processors that round differently. ``quality`` describes the first part's."""

    @property
    def headline_table(self) -> ResultsTable:
        """Table of the caption sources, or of all conditions in a study without it."""
        return self.table("sources" if self.config.conditions_of("sources") else None)

    def table(self, table: TableName | None = None) -> ResultsTable:
        """Return a table, or one of all conditions with the transfers and seeds of all tables."""
        config = self.config
        # A teacher may be a condition of no table.
        conditions = [c for c in config.conditions if (table in c.tables if table else c.tables)]
        tables = {t for c in conditions for t in c.tables} if table is None else {table}
        return ResultsTable(
            conditions=tuple(c.name for c in conditions),
            transfers=sort_by_task(
                {
                    name: transfer
                    for name, transfer in config.transfers.items()
                    if all(name in config.transfers_of(t) for t in tables)
                }
            ),
            seeds=tuple(s for s in config.seeds if all(s in config.seeds_of(t) for t in tables)),
            runs=self.runs,
            baselines={c.name: c.baseline for c in conditions if c.baseline},
        )

    def to_json(self) -> dict[str, Any]:
        """Return the content of ``study.json``."""
        return {
            "format": _FORMAT,
            "kind": "study",
            "digest": self.config.digest,
            "config": self.config.to_json(),
            "runs": [asdict(run) for run in self.runs],
            "num_pairs": self.num_pairs,
            "quality": {name: asdict(quality) for name, quality in self.quality.items()},
            "samples": [asdict(sample) for sample in self.samples],
            "attention": self.attention,
            "costs": {name: asdict(cost) for name, cost in self.costs.items()},
            "parts": [asdict(part) for part in self.parts],
            "parents": [],
        }


def read_study(uri: str) -> StudyResult:
    """Read the result at ``uri``.

    Raises:
        NotFoundError: there is none.
        ArtifactError: it was written by another version of clipmill.
    """
    value = read_artifact_file(uri, RESULT, "clipmill study captions")
    if value["format"] != _FORMAT:
        raise ArtifactError(
            f"{join(uri, RESULT)} is of format {value['format']}",
            expected=f"format {_FORMAT}",
            action="remove it and run the study's command again, which reuses its artifacts",
        )
    return StudyResult(
        uri=uri,
        config=StudyConfig.from_stored(value["config"], join(uri, RESULT)),
        runs=tuple(StudyRun(**run) for run in value["runs"]),
        num_pairs=value["num_pairs"],
        quality={name: _quality(quality) for name, quality in value["quality"].items()},
        samples=tuple(CaptionSample(**sample) for sample in value["samples"]),
        attention=value["attention"],
        costs={name: Cost(**cost) for name, cost in value["costs"].items()},
        parts=tuple(StudyPart(**part) for part in value["parts"]),
    )


def merge_studies(parts: Sequence[StudyResult]) -> StudyResult:
    """Merge parts of a study that were run separately.

    Each table keeps the seeds and transfers that are complete. Of a run in two parts, such as a
    condition that two tables share, the first part's counts.

    Raises:
        ConfigError: a name means different things in two parts, or no table is complete.
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
    budgets = {table: _common_budget(table, conditions, configs, runs) for table in tables}
    for name in ("synthetic_data", "user_data", "distillation"):
        for config in configs:
            _same(name, getattr(config, name), getattr(configs[0], name))
    merged = replace(
        configs[0],
        clip_runs=_union("clip_runs", [c.clip_runs for c in configs]),
        mae_runs=_union("mae_runs", [c.mae_runs for c in configs]),
        supervised=_union("supervised", [c.supervised for c in configs]),
        from_scratch=_union("from_scratch", [c.from_scratch for c in configs]),
        transfers=_union("transfers", [c.transfers for c in configs]),
        conditions=conditions,
        scoring_clip=_common_name("scoring_clip", [c.scoring_clip for c in configs]),
        teacher=_common_name("teacher", [c.teacher for c in configs]),
        attention=tuple(dict.fromkeys(name for c in configs for name in c.attention)),
        seeds=tuple(sorted({seed for budget in budgets.values() for seed in budget.seeds})),
        table_budgets=budgets,
    )
    # The first seed's encoders score captions, and are those whose attention is measured.
    by_seed = sorted(parts, key=lambda part: part.config.seeds[0])
    quality = _first(p.quality for p in sorted(by_seed, key=lambda p: not p.config.scoring_clip))
    return replace(
        parts[0],
        uri=", ".join(part.uri for part in parts),
        config=merged,
        runs=tuple(
            runs[c.name, seed]
            for seed in merged.seeds
            for c in conditions
            if merged.transfers_for(c, seed)
        ),
        quality=quality,
        samples=_samples(parts),
        attention=_first(part.attention for part in by_seed),
        costs=_first(part.costs for part in parts),
        parts=tuple(own for part in parts for own in part.parts),
        varying_captions=tuple(
            name
            for name, first in quality.items()
            if any(_text_quality(p.quality.get(name, first)) != _text_quality(first) for p in parts)
        ),
    )


def _text_quality(quality: CaptionQuality) -> CaptionQuality:
    """Return the quality without the score of the scoring CLIP."""
    return replace(quality, clip_score=None)


def _conditions(configs: Sequence[StudyConfig]) -> tuple[ConditionConfig, ...]:
    """Return all conditions, each in all its tables, in an order consistent with every part."""
    merged: dict[str, ConditionConfig] = {}
    for condition in (c for config in configs for c in config.conditions):
        own = merged.setdefault(condition.name, condition)
        tables = tuple(t for t in get_args(TableName) if t in {*own.tables, *condition.tables})
        combined = replace(own, tables=tables)
        _same(f"condition {condition.name!r}", combined, replace(condition, tables=tables))
        merged[condition.name] = combined
    order: TopologicalSorter[str] = TopologicalSorter(dict.fromkeys(merged, ()))
    for config in configs:
        for before, after in pairwise(config.conditions):
            order.add(after.name, before.name)
    try:
        return tuple(merged[name] for name in order.static_order())
    except CycleError as error:
        raise _mismatch_error("the order of conditions") from error


def _common_budget(
    table: TableName,
    conditions: Sequence[ConditionConfig],
    configs: Sequence[StudyConfig],
    runs: Mapping[tuple[str, int], StudyRun],
) -> TableBudget:
    """Return the transfers that all parts with a table have, and the seeds that have them all."""
    own = [config for config in configs if config.conditions_of(table)]
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
            expected="parts that together have its conditions with the same transfers",
            action=f"run what is missing (`--table {table}`), or leave out the incomplete parts",
        )
    return TableBudget(seeds=tuple(seeds), transfers=tuple(transfers))


def _samples(parts: Sequence[StudyResult]) -> tuple[CaptionSample, ...]:
    captions: dict[str, dict[str, str]] = {}
    for sample in (sample for part in parts for sample in part.samples):
        own = captions.get(sample.image_base64, {})
        captions[sample.image_base64] = sample.captions | own
    return tuple(
        CaptionSample(image_base64=image, captions=texts) for image, texts in captions.items()
    )


def _quality(value: dict[str, Any]) -> CaptionQuality:
    accuracy = value["truth"]
    return CaptionQuality(**(value | {"truth": CaptionAccuracy(**accuracy) if accuracy else None}))


def _first(mappings: Iterable[Mapping[str, T]]) -> dict[str, T]:
    """Merge mappings, keeping the first entry of each name."""
    merged: dict[str, T] = {}
    for mapping in mappings:
        for name, value in mapping.items():
            merged.setdefault(name, value)
    return merged


def _common_name(what: str, names: Sequence[str]) -> str:
    """Return the single name that isn't empty; empty where all are."""
    first = next(filter(None, names), "")
    for name in filter(None, names):
        _same(what, name, first)
    return first


def _union(name: str, mappings: Sequence[Mapping[str, T]]) -> dict[str, T]:
    """Merge mappings whose entries of one name are equal."""
    merged = _first(mappings)
    for mapping in mappings:
        for key, value in mapping.items():
            _same(f"{name}.{key}", merged[key], value)
    return merged


def _same(name: str, one: object, other: object) -> None:
    if one != other:
        raise _mismatch_error(name)


def _mismatch_error(name: str) -> ConfigError:
    return ConfigError(
        f"the studies differ in {name}",
        expected="parts of one study: the same data, encoders, conditions and transfers",
        action="compare single evaluations instead, as CONDITION=URI",
    )
