"""Configuration of a caption-quality study: conditions, data, encoders, transfer tasks, seeds."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, get_args

from clipmill.config import Config
from clipmill.data.captioners import CaptionersConfig
from clipmill.data.shards.plan import ShardConfig
from clipmill.errors import ConfigError
from clipmill.pretrain.config import (
    CocaTrainConfig,
    MaePretrainConfig,
    PretrainConfig,
    SupervisedConfig,
    TeacherConfig,
)
from clipmill.scenes.source import ScenesSourceConfig
from clipmill.study.scene_captions import SCENE_CAPTIONS
from clipmill.tasks.finetune import FinetuneConfig

COCA = "coca"
"""Name of the layer that the study's own captioner writes."""

TableName = Literal["sources", "objectives", "mobile", "scaling", "dose"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ConditionConfig(Config):
    """One way to train an encoder."""

    RENAMED_FIELDS: ClassVar[Mapping[str, str]] = {
        "over": "baseline",
        "dose": "caption_noise",
        "budget": "compute_budget",
    }

    name: str
    """Name in the tables."""
    tables: tuple[TableName, ...] = ("sources",)
    """Tables that compare it, with their first condition or with ``baseline``."""
    baseline: str = ""
    """Condition to compare with, where that isn't the table's first; itself for a baseline of
    others."""
    encoder: str = "clip"
    """Name of one of the study's encoders; MAE and supervised ones need no captions."""
    captions: Literal["real", "synthetic", "both"] = "real"
    """Caption source."""
    layer: str = ""
    """Name of the layer of synthetic captions; empty without."""
    caption_noise: float | None = None
    """Share of wrong captions, percent, for conditions of the noise table."""
    fraction: float = 1.0
    """Fraction of the pairs to train on; a smaller fraction is a subset of any larger one."""
    compute_budget: float = 1.0
    """Seen samples, as a fraction of the encoder config's."""

    def __post_init__(self) -> None:
        """Validate the fractions (ConfigError)."""
        for fraction in (self.fraction, self.compute_budget):
            if not 0 < fraction <= 1:
                raise ConfigError(
                    f"condition {self.name!r} has a fraction of {fraction}",
                    expected="more than 0, at most 1",
                    action="correct conditions.fraction or conditions.compute_budget",
                )


@dataclass(frozen=True, kw_only=True, slots=True)
class SyntheticDataConfig(Config):
    """Procedural scenes, whose content is known exactly."""

    scenes: ScenesSourceConfig
    """Images, captions and labels."""
    shards: ShardConfig
    """Sharding of the pairs."""
    captioner: CocaTrainConfig
    """Training of the captioner, on other images; its layer is named ``coca``."""
    recaption: CaptionersConfig
    """Captioning settings."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UserDataConfig(Config):
    """Existing image-text pairs and labeled data."""

    dataset: str = ""
    """URI of the sharded pairs."""
    layers: dict[str, str] = field(default_factory=dict)
    """Caption layers of the dataset, by the names that conditions use."""
    labels: dict[str, str] = field(default_factory=dict)
    """URI of the data to fine-tune and evaluate on, by task, in the task's layout."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TableBudget(Config):
    """Seeds and transfers of a table, where they are fewer than the study's."""

    seeds: tuple[int, ...] = ()
    """Some of the study's seeds, including its first; empty for all."""
    transfers: tuple[str, ...] = ()
    """Names of transfer tasks; empty for all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyConfig(Config):
    """Conditions to pretrain, and transfer tasks to evaluate each by, once a seed."""

    RENAMED_FIELDS: ClassVar[Mapping[str, str]] = {
        "drawn": "synthetic_data",
        "given": "user_data",
        "clips": "clip_runs",
        "maes": "mae_runs",
        "scratch": "from_scratch",
        "judge": "scoring_clip",
        "teaching": "distillation",
        "efforts": "table_budgets",
    }

    synthetic_data: SyntheticDataConfig | None = None
    """Data, if it is generated."""
    user_data: UserDataConfig | None = None
    """Data, if it exists already."""
    clip_runs: dict[str, PretrainConfig]
    """CLIP pretraining by name; view and seed are the condition's."""
    mae_runs: dict[str, MaePretrainConfig] = field(default_factory=dict)
    """MAE pretraining by name, on images alone."""
    supervised: dict[str, SupervisedConfig] = field(default_factory=dict)
    """Supervised pretraining by name, on images with one object each."""
    from_scratch: dict[str, str] = field(default_factory=dict)
    """Encoders without pretraining, as ``random:timm/NAME``, by name."""
    transfers: dict[str, FinetuneConfig]
    """Transfer tasks that evaluate an encoder, by name; seeds are the study's."""
    conditions: tuple[ConditionConfig, ...]
    """Conditions to compare."""
    scoring_clip: str = ""
    """Condition whose CLIP, with the first seed, scores captions; empty for no score."""
    teacher: str = ""
    """Condition whose CLIP, with the first seed, is the teacher of distilled ones."""
    distillation: TeacherConfig = TeacherConfig()
    """Teacher embeddings; ``teacher``, where set, replaces the models."""
    attention: tuple[str, ...] = ()
    """Conditions with ViTs whose attention is measured, with the first seed."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of weights and order, in pretraining and fine-tuning; the data are the same."""
    table_budgets: dict[str, TableBudget] = field(default_factory=dict)
    """Fewer seeds and transfers, by table."""

    def __post_init__(self) -> None:
        """Refuse duplicate and unknown names, and missing conditions (ConfigError)."""
        self._check_data()
        for name, values in (
            ("conditions", [c.name for c in self.conditions]),
            ("seeds", list(map(str, self.seeds))),
            ("transfers", list(self.transfers)),
            ("encoders", [*self._encoders()]),
        ):
            if not values or len(set(values)) < len(values):
                raise ConfigError(
                    f"{name} was {values}",
                    expected="at least one, each once",
                    action=f"correct {name}",
                )
        known = {c.name for c in self.conditions}
        for field_name, names in (
            ("attention", self.attention),
            ("scoring_clip", (self.scoring_clip,)),
            ("teacher", (self.teacher,)),
        ):
            for name in names:
                _check(f"{field_name} names {name!r}", name, {"", *known}, field_name)
        for condition in self.conditions:
            problem = f"condition {condition.name!r} is compared with {condition.baseline!r}"
            _check(problem, condition.baseline, {"", *known}, "conditions.baseline")
        self._check_table_budgets()
        encoders = {*self._encoders()}
        for condition in self.conditions:
            _check(
                f"condition {condition.name!r} takes the encoder {condition.encoder!r}",
                condition.encoder,
                encoders,
                "conditions.encoder",
            )

    def _check_data(self) -> None:
        if (self.synthetic_data is None) == (self.user_data is None):
            raise ConfigError(
                "a study has one source of data",
                expected="either synthetic_data or user_data, and the other null",
                action="start from a recipe of studies",
            )
        if self.synthetic_data is None:
            return
        tasks = self.synthetic_data.scenes.tasks
        unlabeled = {t.task for t in self.transfers.values()} - set(tasks)
        if unlabeled:
            raise ConfigError(
                f"no labels are generated for {', '.join(sorted(unlabeled))}",
                expected=f"tasks among synthetic_data.scenes.tasks: {', '.join(tasks)}",
                action="add the task to synthetic_data.scenes.tasks",
            )
        for condition in self.conditions:
            _check(
                f"condition {condition.name!r} takes the layer {condition.layer!r}",
                condition.layer,
                {*SCENE_CAPTIONS, COCA, *([""] if condition.captions == "real" else [])},
                "conditions.layer",
            )

    def _check_table_budgets(self) -> None:
        for table, budget in self.table_budgets.items():
            problem = f"table_budgets names the table {table!r}"
            _check(problem, table, get_args(TableName), "table_budgets")
            for name in budget.transfers:
                path = f"table_budgets.{table}.transfers"
                _check(f"{path} names {name!r}", name, self.transfers, path)
            if budget.seeds and not {self.seeds[0]} <= set(budget.seeds) <= set(self.seeds):
                raise ConfigError(
                    f"table_budgets.{table}.seeds was {budget.seeds}",
                    expected=f"some of {self.seeds}, {self.seeds[0]} among them",
                    action="correct it, or leave it out for all",
                )

    def seeds_of(self, table: TableName) -> tuple[int, ...]:
        """Return the seeds of a table, in the study's order."""
        own = self.table_budgets.get(table, TableBudget()).seeds
        return tuple(seed for seed in self.seeds if seed in (own or self.seeds))

    def transfers_of(self, table: TableName) -> dict[str, FinetuneConfig]:
        """Return the transfer tasks of a table, by name."""
        own = self.table_budgets.get(table, TableBudget()).transfers
        return {name: t for name, t in self.transfers.items() if name in (own or self.transfers)}

    def transfers_for(self, condition: ConditionConfig, seed: int) -> dict[str, FinetuneConfig]:
        """Return the transfer tasks that any table needs of a condition with a seed, by name."""
        tables = [table for table in condition.tables if seed in self.seeds_of(table)]
        names = {name for table in tables for name in self.transfers_of(table)}
        return {name: t for name, t in self.transfers.items() if name in names}

    def subset(self, tables: Collection[str] = (), seeds: Collection[int] = ()) -> "StudyConfig":
        """Return the part of the study with these tables and seeds, all where none is named.

        The whole study reuses its artifacts. The teacher stays, in no table.

        Raises:
            ConfigError: a table or seed isn't the study's, no table has these seeds, or a condition
                is distilled from the first seed's teacher, which isn't among them.
        """
        own = {table for condition in self.conditions for table in condition.tables}
        for table in tables:
            _check(f"the study has no table {table!r}", table, own, "the table's name")
        for seed in seeds:
            _check(f"the study has no seed {seed}", f"{seed}", [*map(str, self.seeds)], "the seed")
        selected = {
            table: tuple(s for s in self.seeds_of(table) if not seeds or s in seeds)
            for table in get_args(TableName)
            if table in (tables or own)
        }
        selected = {table: kept for table, kept in selected.items() if kept}
        if not selected:
            raise ConfigError(
                f"no selected table has the seeds {', '.join(map(str, seeds))}",
                expected="seeds of a table; table_budgets may give it fewer than the study",
                action="name others, or give the table more: --set 'table_budgets.TABLE.seeds=[]'",
            )
        reduced = (
            replace(c, tables=tuple(t for t in c.tables if t in selected)) for c in self.conditions
        )
        kept = tuple(c for c in reduced if c.tables or c.name == self.teacher)
        has_first = not seeds or self.seeds[0] in seeds
        students = [c.name for c in kept if c.tables and self.uses_teacher(c)]
        if self.teacher and students and not has_first:
            raise ConfigError(
                f"condition {students[0]!r} learns from {self.teacher!r} of seed {self.seeds[0]}",
                expected="that seed among those that are named",
                action=f"name it too, or leave out {', '.join(students)} by naming tables",
            )
        evaluated = {c.name for c in kept if c.tables}
        return replace(
            self,
            conditions=kept,
            scoring_clip=self.scoring_clip if self.scoring_clip in evaluated else "",
            attention=tuple(name for name in self.attention if name in evaluated and has_first),
            seeds=tuple(s for s in self.seeds if not seeds or s in seeds),
            table_budgets={
                table: replace(budget, seeds=selected[table]) if seeds else budget
                for table, budget in self.table_budgets.items()
                if table in selected
            },
        )

    def uses_teacher(self, condition: ConditionConfig) -> bool:
        """Return whether the condition is distilled from the study's teacher, not a named layer."""
        clip = self.clip_runs.get(condition.encoder)
        return clip is not None and clip.distillation is not None and not clip.distillation.layer

    def condition(self, name: str) -> ConditionConfig:
        """Return the condition of this name."""
        return next(c for c in self.conditions if c.name == name)

    def conditions_of(self, table: TableName) -> list[ConditionConfig]:
        """Return the conditions of a table, the baseline first."""
        return [c for c in self.conditions if table in c.tables]

    def _encoders(self) -> Iterator[str]:
        for runs in (self.clip_runs, self.mae_runs, self.supervised, self.from_scratch):
            yield from runs


def _check(problem: str, value: str, known: Collection[str], field_name: str) -> None:
    if value not in known:
        raise ConfigError(
            problem,
            expected=f"one of {', '.join(sorted(filter(None, known)))}",
            action=f"correct {field_name}",
        )
