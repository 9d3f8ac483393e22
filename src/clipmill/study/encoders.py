"""How a condition's encoder is made."""

import itertools
from dataclasses import replace
from typing import TypeVar

from clipmill.data.captioners import CaptionInput, open_captioner
from clipmill.data.dataset import Dataset, cache_folder
from clipmill.data.loading.view import View, ViewConfig
from clipmill.data.shards.read import iter_samples
from clipmill.engine.config import TrainConfig
from clipmill.images import decode_rgb
from clipmill.pretrain.clip import clip_dataloader, clip_objective, pretrain_clip
from clipmill.pretrain.config import MaePretrainConfig, PretrainConfig, SupervisedConfig
from clipmill.pretrain.mae import pretrain_mae
from clipmill.pretrain.supervised import pretrain_supervised
from clipmill.stage_records import no_progress
from clipmill.study.config import COCA, ConditionConfig, StudyConfig
from clipmill.study.data import World
from clipmill.study.ranks import on_first_rank
from clipmill.study.result import Cost


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
            trained(mae, condition, seed), world.dataset, world.store, report=no_progress
        )
    if name in config.supervised:
        supervised = trained(config.supervised[name], condition, seed)
        return pretrain_supervised(
            supervised, world.labels["classification"], world.store, report=no_progress
        )
    clip = clip_config(config, condition, world)
    return pretrain_clip(
        trained(clip, condition, seed), world.dataset, world.store, report=no_progress
    )


PretrainingT = TypeVar("PretrainingT", PretrainConfig, MaePretrainConfig, SupervisedConfig)


def trained(config: PretrainingT, condition: ConditionConfig, seed: int) -> PretrainingT:
    """The same with this seed, and as many updates as the condition's budget allows."""
    train: TrainConfig = config.train
    steps = max(1, round(train.steps * condition.budget))
    warmup = min(train.schedule.warmup_steps, steps // 5)
    schedule = replace(train.schedule, warmup_steps=warmup)
    return replace(config, train=replace(train, seed=seed, steps=steps, schedule=schedule))


_NUM_COUNTED = 64
"""Samples that are enough to count by."""


def clip_costs(config: StudyConfig, world: World) -> dict[str, Cost]:
    """The cost of each condition's CLIP, by its name; those without captions aren't there."""
    caption = _captioning_flops(config, world)
    dataset = Dataset.open(world.dataset)
    found, counted = {}, {}
    for condition in config.conditions:
        if condition.encoder not in config.clips:
            continue
        clip = trained(clip_config(config, condition, world), condition, config.seeds[0])
        kind = (condition.encoder, condition.captions, condition.layer)
        if kind not in counted:
            counted[kind] = _flops_per_sample(clip, dataset)
        is_captioned = condition.layer == COCA
        found[condition.name] = Cost(
            pretraining=counted[kind] * clip.train.num_seen_samples,
            captioning=caption * dataset.num_samples * condition.fraction if is_captioned else 0.0,
        )
    return found


def _flops_per_sample(config: PretrainConfig, dataset: Dataset) -> float:
    """Of a forward and a backward pass, over a small batch."""
    from clipmill.engine.distributed import DistributedContext
    from clipmill.engine.metrics import forward_flops

    size = min(_NUM_COUNTED, config.train.batch_size)
    few = replace(
        config,
        dataloader=replace(config.dataloader, num_workers=0),
        train=replace(config.train, batch_size=size, grad_accum_steps=1),
    )
    batch = next(clip_dataloader(few, View(dataset, few.view), 0, DistributedContext()))
    return 3 * forward_flops(clip_objective(few, None, DistributedContext()), batch) / size


def _captioning_flops(config: StudyConfig, world: World) -> float:
    """Of captioning a picture; 0 where the study has no captioner of its own."""
    if config.drawn is None or not world.captioner:
        return 0.0
    from torch.utils.flop_counter import FlopCounterMode

    inputs = [
        CaptionInput(
            uid=shard.uid(row), caption=shard.caption(row), image=decode_rgb(shard.image(row))
        )
        for shard, row in itertools.islice(
            iter_samples(Dataset.open(world.dataset), cache_folder()), _NUM_COUNTED
        )
    ]
    _, captioner = open_captioner(world.captioner, config.drawn.recaption)
    with FlopCounterMode(display=False) as counter:
        list(captioner.caption(inputs))
    captioner.close()
    return float(counter.get_total_flops()) / len(inputs)
