"""How a condition's encoder is made."""

from dataclasses import dataclass, replace
from typing import TypeVar

from clipmill.data.scenes.source import LABELS
from clipmill.data.view import ViewConfig
from clipmill.engine.config import TrainConfig
from clipmill.pretrain.clip import PretrainConfig, pretrain
from clipmill.pretrain.mae import MaePretrainConfig, pretrain_mae
from clipmill.pretrain.supervised import SupervisedConfig, pretrain_supervised
from clipmill.stages import silent
from clipmill.storage import join
from clipmill.study.config import ConditionConfig, StudyConfig


@dataclass(frozen=True, slots=True)
class World:
    """What all conditions share; picklable."""

    source: str
    """URI of the scenes' tars."""
    dataset: str
    """URI of the pairs, sharded."""
    layers: dict[str, str]
    """Full names of caption layers."""
    store: str
    """Where everything lies."""


def make_encoder(config: StudyConfig, condition: ConditionConfig, seed: int, world: World) -> str:
    """URI of the condition's encoder with this seed, which is trained if it isn't there."""
    name = condition.encoder
    if name in config.scratch:
        return config.scratch[name]
    if name in config.maes:
        mae = replace(config.maes[name], fraction=condition.fraction)
        return pretrain_mae(
            _trained(mae, condition, seed), world.dataset, world.store, report=silent
        )
    if name in config.supervised:
        labelled = join(world.source, LABELS["classification"])
        supervised = _trained(config.supervised[name], condition, seed)
        return pretrain_supervised(supervised, labelled, world.store, report=silent)
    layer = world.layers[condition.layer] if condition.captions != "real" else ""
    view = ViewConfig(captions=condition.captions, layer=layer, fraction=condition.fraction)
    clip = replace(config.clips[name], view=view)
    return pretrain(_trained(clip, condition, seed), world.dataset, world.store, report=silent)


PretrainingT = TypeVar("PretrainingT", PretrainConfig, MaePretrainConfig, SupervisedConfig)


def _trained(config: PretrainingT, condition: ConditionConfig, seed: int) -> PretrainingT:
    """The same with this seed, and as many updates as the condition's budget allows."""
    train: TrainConfig = config.train
    steps = max(1, round(train.steps * condition.budget))
    warmup = min(train.schedule.warmup_steps, steps // 5)
    schedule = replace(train.schedule, warmup_steps=warmup)
    return replace(config, train=replace(train, seed=seed, steps=steps, schedule=schedule))
