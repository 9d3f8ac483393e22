"""What a study of captions compares, on which data, how often."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Literal

from clipmill.config import Config
from clipmill.data.recaption import RecaptionConfig
from clipmill.data.scenes.source import ScenesSourceConfig
from clipmill.data.shards import ShardConfig
from clipmill.errors import ConfigError
from clipmill.pretrain.clip import PretrainConfig
from clipmill.pretrain.coca import CaptionerConfig
from clipmill.pretrain.mae import MaePretrainConfig
from clipmill.pretrain.supervised import SupervisedConfig
from clipmill.study.scene_captions import SCENE_CAPTIONS
from clipmill.tasks.finetune import FinetuneConfig

COCA = "coca"
"""The layer that the study's own captioner writes."""

TableName = Literal["sources", "objectives", "scaling", "dose"]


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
    """``coca``, or one of SCENE_CAPTIONS, for all but real captions."""
    dose: float | None = None
    """Share of wrong captions, percent, where it belongs to a dose-response."""
    fraction: float = 1.0
    """Share of the pictures that are learnt from; a smaller share is inside any larger one."""
    budget: float = 1.0
    """Seen samples, as a share of what the encoder's own config says."""

    def __post_init__(self) -> None:
        """Refuse a layer that isn't made, and shares out of range (ConfigError)."""
        _check(
            f"condition {self.name!r} takes the layer {self.layer!r}",
            self.layer,
            {"", *SCENE_CAPTIONS, COCA} if self.captions == "real" else {*SCENE_CAPTIONS, COCA},
            "conditions.layer",
        )
        for share in (self.fraction, self.budget):
            if not 0 < share <= 1:
                raise ConfigError(
                    f"condition {self.name!r} has a share of {share}",
                    expected="more than 0, at most 1",
                    action="correct conditions.fraction or conditions.budget",
                )


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyConfig(Config):
    """Every condition, pretrained and judged by every task once a seed."""

    scenes: ScenesSourceConfig
    """The world: pictures, captions, labels."""
    shards: ShardConfig
    """How they are sharded."""
    captioner: CaptionerConfig
    """The captioner, trained on other pictures."""
    recaption: RecaptionConfig
    """How it captions."""
    clips: dict[str, PretrainConfig]
    """Encoders that learn from captions, by name; view and seed are the condition's."""
    maes: dict[str, MaePretrainConfig] = field(default_factory=dict)
    """Encoders that learn from pictures alone."""
    supervised: dict[str, SupervisedConfig] = field(default_factory=dict)
    """Encoders that learn from the labels of pictures with one object each."""
    scratch: dict[str, str] = field(default_factory=dict)
    """Encoders that learn nothing before their task, as ``timm:MODEL``."""
    transfers: dict[str, FinetuneConfig]
    """What an encoder is judged by, by name; seeds are the study's."""
    conditions: tuple[ConditionConfig, ...]
    """What is compared."""
    attention: tuple[str, ...] = ()
    """Conditions, of ViTs, whose heads are looked at, with the first seed."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of weights and order, in pretraining and fine-tuning; the data are the same."""

    def __post_init__(self) -> None:
        """Refuse names that stand twice or for nothing, and nothing to compare (ConfigError)."""
        unlabelled = {t.task for t in self.transfers.values()} - set(self.scenes.tasks)
        if unlabelled:
            raise ConfigError(
                f"no labels are drawn for {', '.join(sorted(unlabelled))}",
                expected=f"tasks among scenes.tasks: {', '.join(self.scenes.tasks)}",
                action="add the task to scenes.tasks",
            )
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
        for name in self.attention:
            _check(f"attention names {name!r}", name, known, "attention")
        for condition in self.conditions:
            problem = f"condition {condition.name!r} is held against {condition.over!r}"
            _check(problem, condition.over, {"", *known}, "conditions.over")
        encoders = {*self.clips, *self.maes, *self.supervised, *self.scratch}
        for condition in self.conditions:
            _check(
                f"condition {condition.name!r} takes the encoder {condition.encoder!r}",
                condition.encoder,
                encoders,
                "conditions.encoder",
            )

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
