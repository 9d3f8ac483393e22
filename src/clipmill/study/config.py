"""What a study of captions compares, on which data, how often."""

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from clipmill.config import Config
from clipmill.data.recaption import RecaptionConfig
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
"""The layer that the study's own captioner writes."""

TableName = Literal["sources", "objectives", "mobile", "scaling", "dose"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ConditionConfig(Config):
    """One way to make an encoder."""

    name: str
    """What tables call it."""
    tables: tuple[TableName, ...] = ("sources",)
    """Where it is compared: with each table's first condition, or with ``over``."""
    over: str = ""
    """The condition that it is held against, where that isn't the table's first; itself for one
    that others are held against."""
    encoder: str = "clip"
    """Which of the study's encoders; MAE and labels need no captions."""
    captions: Literal["real", "synthetic", "both"] = "real"
    """Which captions are learnt from."""
    layer: str = ""
    """Name of the layer that synthetic captions are from; empty where there are none."""
    dose: float | None = None
    """Share of wrong captions, percent, where it belongs to a dose-response."""
    fraction: float = 1.0
    """Share of the pictures that are learnt from; a smaller share is inside any larger one."""
    budget: float = 1.0
    """Seen samples, as a share of what the encoder's own config says."""

    def __post_init__(self) -> None:
        """Refuse shares out of range (ConfigError)."""
        for share in (self.fraction, self.budget):
            if not 0 < share <= 1:
                raise ConfigError(
                    f"condition {self.name!r} has a share of {share}",
                    expected="more than 0, at most 1",
                    action="correct conditions.fraction or conditions.budget",
                )


@dataclass(frozen=True, kw_only=True, slots=True)
class DrawnConfig(Config):
    """A world that is drawn: what is true of each picture is known."""

    scenes: ScenesSourceConfig
    """Pictures, captions, labels."""
    shards: ShardConfig
    """How they are sharded."""
    captioner: CocaTrainConfig
    """The captioner, trained on other pictures; its layer is named ``coca``."""
    recaption: RecaptionConfig
    """How it captions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GivenConfig(Config):
    """A world that is there: a team's own pairs and labels."""

    dataset: str = ""
    """URI of the sharded pairs."""
    layers: dict[str, str] = field(default_factory=dict)
    """Its caption layers, by the names that conditions give them."""
    labels: dict[str, str] = field(default_factory=dict)
    """URI of the data to fine-tune and judge on, by task, in the task's layout."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EffortConfig(Config):
    """What a table is given, where that is less than the whole study."""

    seeds: tuple[int, ...] = ()
    """Some of the study's, its first among them; empty for all."""
    transfers: tuple[str, ...] = ()
    """Names of what its encoders are judged by; empty for all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyConfig(Config):
    """Every condition, pretrained and judged by every task once a seed."""

    drawn: DrawnConfig | None = None
    """The world, if it is drawn."""
    given: GivenConfig | None = None
    """The world, if it isn't."""
    clips: dict[str, PretrainConfig]
    """Encoders that learn from captions, by name; view and seed are the condition's."""
    maes: dict[str, MaePretrainConfig] = field(default_factory=dict)
    """Encoders that learn from pictures alone."""
    supervised: dict[str, SupervisedConfig] = field(default_factory=dict)
    """Encoders that learn from the labels of pictures with one object each."""
    scratch: dict[str, str] = field(default_factory=dict)
    """Encoders that learn nothing before their task, as ``random:timm/NAME``."""
    transfers: dict[str, FinetuneConfig]
    """What an encoder is judged by, by name; seeds are the study's."""
    conditions: tuple[ConditionConfig, ...]
    """What is compared."""
    judge: str = ""
    """Condition whose CLIP, with the first seed, scores captions; empty for no score."""
    teacher: str = ""
    """Condition whose CLIP, with the first seed, teaches those that are distilled."""
    teaching: TeacherConfig = TeacherConfig()
    """How it teaches; with a teacher among the conditions, its models are that one alone."""
    attention: tuple[str, ...] = ()
    """Conditions, of ViTs, whose heads are looked at, with the first seed."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of weights and order, in pretraining and fine-tuning; the data are the same."""
    efforts: dict[str, EffortConfig] = field(default_factory=dict)
    """By table, where it is given less than these seeds and transfers."""

    def __post_init__(self) -> None:
        """Refuse names that stand twice or for nothing, and nothing to compare (ConfigError)."""
        self._check_world()
        for name, found in (
            ("conditions", [c.name for c in self.conditions]),
            ("seeds", list(map(str, self.seeds))),
            ("transfers", list(self.transfers)),
            ("encoders", [*self.clips, *self.maes, *self.supervised, *self.scratch]),
        ):
            if not found or len(set(found)) < len(found):
                raise ConfigError(
                    f"{name} was {found}",
                    expected="at least one, each once",
                    action=f"correct {name}",
                )
        known = {c.name for c in self.conditions}
        for where, names in (
            ("attention", self.attention),
            ("judge", (self.judge,)),
            ("teacher", (self.teacher,)),
        ):
            for name in names:
                _check(f"{where} names {name!r}", name, {"", *known}, where)
        for condition in self.conditions:
            problem = f"condition {condition.name!r} is held against {condition.over!r}"
            _check(problem, condition.over, {"", *known}, "conditions.over")
        self._check_efforts()
        encoders = {*self.clips, *self.maes, *self.supervised, *self.scratch}
        for condition in self.conditions:
            _check(
                f"condition {condition.name!r} takes the encoder {condition.encoder!r}",
                condition.encoder,
                encoders,
                "conditions.encoder",
            )

    def _check_world(self) -> None:
        if (self.drawn is None) == (self.given is None):
            raise ConfigError(
                "a study has one world",
                expected="either drawn or given, and the other null",
                action="start from a recipe of studies",
            )
        if self.drawn is None:
            return
        unlabelled = {t.task for t in self.transfers.values()} - set(self.drawn.scenes.tasks)
        if unlabelled:
            raise ConfigError(
                f"no labels are drawn for {', '.join(sorted(unlabelled))}",
                expected=f"tasks among drawn.scenes.tasks: {', '.join(self.drawn.scenes.tasks)}",
                action="add the task to drawn.scenes.tasks",
            )
        for condition in self.conditions:
            _check(
                f"condition {condition.name!r} takes the layer {condition.layer!r}",
                condition.layer,
                {*SCENE_CAPTIONS, COCA, *([""] if condition.captions == "real" else [])},
                "conditions.layer",
            )

    def _check_efforts(self) -> None:
        for table, effort in self.efforts.items():
            _check(f"efforts names the table {table!r}", table, get_args(TableName), "efforts")
            for name in effort.transfers:
                where = f"efforts.{table}.transfers"
                _check(f"{where} names {name!r}", name, self.transfers, where)
            if effort.seeds and not {self.seeds[0]} <= set(effort.seeds) <= set(self.seeds):
                raise ConfigError(
                    f"efforts.{table}.seeds was {effort.seeds}",
                    expected=f"some of {self.seeds}, {self.seeds[0]} among them",
                    action="correct it, or leave it out for all",
                )

    def seeds_of(self, table: TableName) -> tuple[int, ...]:
        """The seeds that a table's conditions have in it, in the study's order."""
        own = self.efforts.get(table, EffortConfig()).seeds
        return tuple(seed for seed in self.seeds if seed in (own or self.seeds))

    def transfers_of(self, table: TableName) -> dict[str, FinetuneConfig]:
        """What a table's conditions are judged by in it."""
        own = self.efforts.get(table, EffortConfig()).transfers
        return {name: t for name, t in self.transfers.items() if name in (own or self.transfers)}

    def judged_by(self, condition: ConditionConfig, seed: int) -> dict[str, FinetuneConfig]:
        """What some table asks of a condition with a seed; nothing where none does."""
        tables = [table for table in condition.tables if seed in self.seeds_of(table)]
        names = {name for table in tables for name in self.transfers_of(table)}
        return {name: t for name, t in self.transfers.items() if name in names}

    def only(self, tables: Collection[str] = (), seeds: Collection[int] = ()) -> "StudyConfig":
        """The part of these tables and seeds, of all where none is named.

        What it makes, the whole study doesn't make again. The teacher stays, in no table.

        Raises:
            ConfigError: one isn't the study's, no table has these seeds, or a condition learns from
                the first seed's teacher, which isn't among them.
        """
        own = {table for condition in self.conditions for table in condition.tables}
        for table in tables:
            _check(f"the study has no table {table!r}", table, own, "the table's name")
        for seed in seeds:
            _check(f"the study has no seed {seed}", f"{seed}", [*map(str, self.seeds)], "the seed")
        asked = {
            table: tuple(s for s in self.seeds_of(table) if not seeds or s in seeds)
            for table in get_args(TableName)
            if table in (tables or own)
        }
        asked = {table: found for table, found in asked.items() if found}
        if not asked:
            raise ConfigError(
                f"no table that was asked for has the seeds {', '.join(map(str, seeds))}",
                expected="seeds of a table, of which efforts may give it fewer than the study",
                action="name others, or give the table more: --set 'efforts.TABLE.seeds=[]'",
            )
        reduced = (
            replace(c, tables=tuple(t for t in c.tables if t in asked)) for c in self.conditions
        )
        kept = tuple(c for c in reduced if c.tables or c.name == self.teacher)
        has_first = not seeds or self.seeds[0] in seeds
        taught = [c.name for c in kept if c.tables and self.is_taught(c)]
        if self.teacher and taught and not has_first:
            raise ConfigError(
                f"condition {taught[0]!r} learns from {self.teacher!r} of seed {self.seeds[0]}",
                expected="that seed among those that are named",
                action=f"name it too, or leave out {', '.join(taught)} by naming tables",
            )
        judged = {c.name for c in kept if c.tables}
        return replace(
            self,
            conditions=kept,
            judge=self.judge if self.judge in judged else "",
            attention=tuple(name for name in self.attention if name in judged and has_first),
            seeds=tuple(s for s in self.seeds if not seeds or s in seeds),
            efforts={
                table: replace(effort, seeds=asked[table]) if seeds else effort
                for table, effort in self.efforts.items()
                if table in asked
            },
        )

    def is_taught(self, condition: ConditionConfig) -> bool:
        """Whether the condition learns from the study's teacher, rather than a layer it names."""
        clip = self.clips.get(condition.encoder)
        return clip is not None and clip.distillation is not None and not clip.distillation.layer

    def condition(self, name: str) -> ConditionConfig:
        """The condition of this name."""
        return next(c for c in self.conditions if c.name == name)

    def table(self, name: TableName) -> list[ConditionConfig]:
        """The conditions of a table, the one that the others are held against first."""
        return [c for c in self.conditions if name in c.tables]


def _check(problem: str, value: str, known: Collection[str], field_name: str) -> None:
    if value not in known:
        raise ConfigError(
            problem,
            expected=f"one of {', '.join(sorted(filter(None, known)))}",
            action=f"correct {field_name}",
        )
