"""What an encoder costs, in arithmetic: that of pretraining it, and of the captions it learnt from.

FLOPs are counted rather than seconds measured, so that a busy machine changes nothing.
"""

import itertools
from dataclasses import replace

from clipmill.data.captioners import CaptionInput, open_captioner
from clipmill.data.dataset import Dataset, cache_folder
from clipmill.data.reader import every_pair
from clipmill.data.view import View
from clipmill.images import decode_rgb
from clipmill.pretrain.clip import PretrainConfig, clip_batches, clip_objective
from clipmill.study.config import COCA, StudyConfig
from clipmill.study.encoders import clip_config, trained
from clipmill.study.result import Cost
from clipmill.study.world import World

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
    from clipmill.engine.distributed import Ranks
    from clipmill.engine.flops import forward_flops

    size = min(_NUM_COUNTED, config.train.batch_size)
    few = replace(
        config,
        load=replace(config.load, num_workers=0),
        train=replace(config.train, batch_size=size, micro_batches=1),
    )
    batch = next(clip_batches(few, View(dataset, few.view), Ranks(), 0))
    return 3 * forward_flops(clip_objective(few, Ranks()), batch) / size


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
            every_pair(Dataset.open(world.dataset), cache_folder()), _NUM_COUNTED
        )
    ]
    _, captioner = open_captioner(world.captioner, config.drawn.recaption)
    with FlopCounterMode(display=False) as counter:
        list(captioner.caption(inputs))
    captioner.close()
    return float(counter.get_total_flops()) / len(inputs)
