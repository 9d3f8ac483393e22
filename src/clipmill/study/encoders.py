"""Train a condition's encoder, and count its compute cost.

FLOPs are counted rather than seconds measured, so that other load on the machine has no effect.
"""

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
from clipmill.study.data import StudyData, run_on_rank_zero
from clipmill.study.result import Cost

PretrainingT = TypeVar("PretrainingT", PretrainConfig, MaePretrainConfig, SupervisedConfig)

_NUM_COUNTED = 64
"""Samples whose FLOPs are counted."""


def train_encoder(
    config: StudyConfig, condition: ConditionConfig, seed: int, data: StudyData
) -> str:
    """Train the condition's encoder with this seed unless it exists; return its URI."""
    uri = _train(config, condition, seed, data)
    return run_on_rank_zero(lambda: uri)  # rank 0 saves it


def clip_config(config: StudyConfig, condition: ConditionConfig, data: StudyData) -> PretrainConfig:
    """Return the pretraining config of the condition's CLIP, apart from its seed and budget."""
    layer = data.layers[condition.layer] if condition.captions != "real" else ""
    view = ViewConfig(captions=condition.captions, layer=layer, subset_fraction=condition.fraction)
    clip = replace(config.clip_runs[condition.encoder], view=view)
    if clip.distillation is None or clip.distillation.layer:
        return clip
    return replace(clip, distillation=replace(clip.distillation, layer=data.teacher_layer))


def with_seed_and_budget(
    config: PretrainingT, condition: ConditionConfig, seed: int
) -> PretrainingT:
    """Return the config with this seed, and its steps scaled by the condition's budget."""
    train: TrainConfig = config.train
    steps = max(1, round(train.steps * condition.compute_budget))
    warmup = min(train.schedule.warmup_steps, steps // 5)
    schedule = replace(train.schedule, warmup_steps=warmup)
    return replace(config, train=replace(train, seed=seed, steps=steps, schedule=schedule))


def clip_costs(config: StudyConfig, data: StudyData) -> dict[str, Cost]:
    """Count the FLOPs of each condition that trains a CLIP, by its name."""
    caption_flops = _captioning_flops(config, data)
    dataset = Dataset.open(data.dataset)
    costs: dict[str, Cost] = {}
    flops_per_sample: dict[tuple[str, str, str], float] = {}
    for condition in config.conditions:
        if condition.encoder not in config.clip_runs:
            continue
        clip = clip_config(config, condition, data)
        clip = with_seed_and_budget(clip, condition, config.seeds[0])
        kind = (condition.encoder, condition.captions, condition.layer)
        if kind not in flops_per_sample:
            flops_per_sample[kind] = _flops_per_sample(clip, dataset)
        num_captions = dataset.num_samples * condition.fraction if condition.layer == COCA else 0.0
        costs[condition.name] = Cost(
            pretraining=flops_per_sample[kind] * clip.train.num_seen_samples,
            captioning=caption_flops * num_captions,
        )
    return costs


def _train(config: StudyConfig, condition: ConditionConfig, seed: int, data: StudyData) -> str:
    name = condition.encoder
    if name in config.from_scratch:
        return config.from_scratch[name]
    if name in config.mae_runs:
        mae = replace(config.mae_runs[name], fraction=condition.fraction)
        mae = with_seed_and_budget(mae, condition, seed)
        return pretrain_mae(mae, data.dataset, data.store, report=no_progress)
    if name in config.supervised:
        supervised = with_seed_and_budget(config.supervised[name], condition, seed)
        labels = data.labels["classification"]
        return pretrain_supervised(supervised, labels, data.store, report=no_progress)
    clip = with_seed_and_budget(clip_config(config, condition, data), condition, seed)
    return pretrain_clip(clip, data.dataset, data.store, report=no_progress)


def _flops_per_sample(config: PretrainConfig, dataset: Dataset) -> float:
    """Count a forward and a backward pass, over a small batch."""
    from clipmill.engine.distributed import DistributedContext
    from clipmill.engine.metrics import forward_flops

    size = min(_NUM_COUNTED, config.train.batch_size)
    small = replace(
        config,
        dataloader=replace(config.dataloader, num_workers=0),
        train=replace(config.train, batch_size=size, grad_accum_steps=1),
    )
    batch = next(clip_dataloader(small, View(dataset, small.view), 0, DistributedContext()))
    return 3 * forward_flops(clip_objective(small, None, DistributedContext()), batch) / size


def _captioning_flops(config: StudyConfig, data: StudyData) -> float:
    """Count captioning an image; 0 where the study has no captioner of its own."""
    if config.synthetic_data is None or not data.captioner:
        return 0.0
    from torch.utils.flop_counter import FlopCounterMode

    samples = itertools.islice(
        iter_samples(Dataset.open(data.dataset), cache_folder()), _NUM_COUNTED
    )
    inputs = [
        CaptionInput(
            uid=shard.uid(row), caption=shard.caption(row), image=decode_rgb(shard.image(row))
        )
        for shard, row in samples
    ]
    _, captioner = open_captioner(data.captioner, config.synthetic_data.recaption)
    with FlopCounterMode(display=False) as counter:
        list(captioner.caption(inputs))
    captioner.close()
    return float(counter.get_total_flops()) / len(inputs)
