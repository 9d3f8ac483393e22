"""How a condition's encoder is made."""

from dataclasses import replace
from typing import TypeVar

from clipmill.data.view import ViewConfig
from clipmill.engine.config import TrainConfig
from clipmill.pretrain.clip import PretrainConfig, pretrain
from clipmill.pretrain.mae import MaePretrainConfig, pretrain_mae
from clipmill.pretrain.supervised import SupervisedConfig, pretrain_supervised
from clipmill.stage_records import silent
from clipmill.study.config import ConditionConfig, StudyConfig
from clipmill.study.ranks import on_first_rank
from clipmill.study.world import World


def make_encoder(config: StudyConfig, condition: ConditionConfig, seed: int, world: World) -> str:
    """URI of the condition's encoder with this seed, which is trained if it isn't there."""
    uri = _made(config, condition, seed, world)
    return on_first_rank(lambda: uri)  # which has saved it


def clip_config(config: StudyConfig, condition: ConditionConfig, world: World) -> PretrainConfig:
    """How the condition's CLIP learns, but for its seed."""
    layer = world.layers[condition.layer] if condition.captions != "real" else ""
    view = ViewConfig(captions=condition.captions, layer=layer, fraction=condition.fraction)
    clip = replace(config.clips[condition.encoder], view=view)
    if clip.distillation is None or clip.distillation.layer:
        return clip
    return replace(clip, distillation=replace(clip.distillation, layer=world.teaching))


def _made(config: StudyConfig, condition: ConditionConfig, seed: int, world: World) -> str:
    name = condition.encoder
    if name in config.scratch:
        return config.scratch[name]
    if name in config.maes:
        mae = replace(config.maes[name], fraction=condition.fraction)
        return pretrain_mae(
            trained(mae, condition, seed), world.dataset, world.store, report=silent
        )
    if name in config.supervised:
        supervised = trained(config.supervised[name], condition, seed)
        return pretrain_supervised(
            supervised, world.labels["classification"], world.store, report=silent
        )
    clip = clip_config(config, condition, world)
    return pretrain(trained(clip, condition, seed), world.dataset, world.store, report=silent)


PretrainingT = TypeVar("PretrainingT", PretrainConfig, MaePretrainConfig, SupervisedConfig)


def trained(config: PretrainingT, condition: ConditionConfig, seed: int) -> PretrainingT:
    """The same with this seed, and as many updates as the condition's budget allows."""
    train: TrainConfig = config.train
    steps = max(1, round(train.steps * condition.budget))
    warmup = min(train.schedule.warmup_steps, steps // 5)
    schedule = replace(train.schedule, warmup_steps=warmup)
    return replace(config, train=replace(train, seed=seed, steps=steps, schedule=schedule))
