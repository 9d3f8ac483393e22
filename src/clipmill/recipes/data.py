"""Sources and shards."""

from dataclasses import replace

from clipmill.data.export import ExportConfig
from clipmill.data.scenes.source import ScenesSourceConfig, TaskName
from clipmill.data.shards import ShardConfig


def scenes_miniature() -> ScenesSourceConfig:
    """Procedural scenes enough for the demo, at 64 px, near enough to tell what stands there.

    Those with labels are larger, as ADE20K's and NYUv2's pictures are.

    Source: ours.
    Command: ``clipmill data scenes --recipe scenes-miniature --store URI``
    """
    return ScenesSourceConfig(
        num_pairs=4096,
        num_captioning=3072,
        num_labelled=512,
        num_test=1024,
        farthest_metres=3.3,
        smallest_metres=0.75,
        labelled_size=128,
        labelled_objects=(1, 4),
    )


def scenes_every_task() -> ScenesSourceConfig:
    """The same with labels for all four tasks.

    Source: ours, derived from :func:`scenes_miniature`.
    Command: ``clipmill data scenes --recipe scenes-every-task --store URI``
    """
    tasks: tuple[TaskName, ...] = ("classification", "detection", "segmentation", "depth")
    return replace(scenes_miniature(), tasks=tasks)


def shards() -> ShardConfig:
    """Shards of a web-sized dataset: a thousand samples each.

    Source: ours.
    """
    return ShardConfig(min_side=16)


def shards_miniature() -> ShardConfig:
    """Small shards, so that the demo has several.

    Source: ours, derived from :func:`shards`.
    """
    return ShardConfig(samples_per_shard=256, min_side=16)


def export() -> ExportConfig:
    """Plain WebDataset tars of a thousand samples, one caption each.

    Source: ours.
    """
    return ExportConfig()
