"""What a study of captions compares, on which data, how often."""

from dataclasses import dataclass
from typing import Literal

from clipmill.config import Config
from clipmill.data.recaption import RecaptionConfig
from clipmill.data.scenes.source import ScenesSourceConfig
from clipmill.data.shards import ShardConfig
from clipmill.errors import ConfigError
from clipmill.pretrain.clip import PretrainConfig
from clipmill.pretrain.coca import CaptionerConfig
from clipmill.study.scene_captions import SCENE_CAPTIONS
from clipmill.tasks.finetune import FinetuneConfig

COCA = "coca"
"""The layer that the study's own captioner writes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ConditionConfig(Config):
    """One choice of captions for the same pictures."""

    name: str
    """What tables call it."""
    captions: Literal["real", "synthetic", "both"] = "real"
    """Which captions are learnt from."""
    layer: str = ""
    """``coca``, or one of SCENE_CAPTIONS, for all but real captions."""
    dose: float | None = None
    """Share of wrong captions, percent, where it belongs to a dose-response."""

    def __post_init__(self) -> None:
        """Refuse a layer that isn't made (ConfigError)."""
        known = {"", *SCENE_CAPTIONS, COCA} if self.captions == "real" else {*SCENE_CAPTIONS, COCA}
        if self.layer not in known:
            raise ConfigError(
                f"condition {self.name!r} takes the layer {self.layer!r}",
                expected=f"one of {', '.join(sorted(known - {''}))}",
                action="correct conditions.layer",
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyConfig(Config):
    """Every condition, pretrained and fine-tuned once a seed."""

    scenes: ScenesSourceConfig
    """The world: pictures, captions, labels."""
    shards: ShardConfig
    """How they are sharded."""
    captioner: CaptionerConfig
    """The captioner, trained on other pictures."""
    recaption: RecaptionConfig
    """How it captions."""
    pretrain: PretrainConfig
    """The encoder's run; its view and seed are the condition's."""
    finetunes: tuple[FinetuneConfig, ...]
    """One a task; the seeds are the study's."""
    conditions: tuple[ConditionConfig, ...]
    """The first is what the others are compared with."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of weights and order, in pretraining and fine-tuning; the data are the same."""

    def __post_init__(self) -> None:
        """Refuse names that stand twice, and nothing to compare (ConfigError)."""
        unlabelled = {finetune.task for finetune in self.finetunes} - set(self.scenes.tasks)
        if unlabelled:
            raise ConfigError(
                f"no labels are drawn for {', '.join(sorted(unlabelled))}",
                expected=f"tasks among scenes.tasks: {', '.join(self.scenes.tasks)}",
                action="add the task to scenes.tasks",
            )
        for field, names in (
            ("conditions", [c.name for c in self.conditions]),
            ("seeds", list(map(str, self.seeds))),
            ("finetunes", [f.task for f in self.finetunes]),
        ):
            if not names or len(set(names)) < len(names):
                raise ConfigError(
                    f"{field} was {names}",
                    expected="at least one, each once",
                    action=f"correct {field}",
                )
