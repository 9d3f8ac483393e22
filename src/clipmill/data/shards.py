"""From a source to a dataset of shards: resumable, and equal bytes for equal inputs.

Shard ``i`` holds a range of the source's items that the plan fixes, so it can be made by any
process, at any time, twice over; the store is all that workers share. What a worker finds made
already it passes over.
"""

import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from clipmill.data.dataset import MANIFEST, Dataset
from clipmill.data.ordered_map import default_threads
from clipmill.data.shard_finish import finish_shards
from clipmill.data.shard_making import is_whole, make_shard
from clipmill.data.shard_plan import (
    ShardConfig,
    ShardPlan,
    dataset_uri,
    parse_worker,
    plan_shards,
    read_plan,
    worker_range,
    write_plan,
)
from clipmill.data.sources import open_source
from clipmill.storage import Parent, exists, join

__all__ = [
    "ShardConfig",
    "ShardPlan",
    "finish_shards",
    "parse_worker",
    "plan_shards",
    "read_plan",
    "shard",
    "shard_range",
    "worker_range",
]


def shard(
    config: ShardConfig,
    source: str,
    store: str,
    *,
    source_parents: tuple[Parent, ...] = (),
    progress: Callable[[int, int], None] | None = None,
    num_threads: int = 0,
) -> str:
    """Make the dataset of ``source`` under the folder ``store``, and return its URI.

    ``source`` is a source spec (see ``sources``). ``source_parents`` replace the plain reference
    to it in the lineage. ``progress`` is called with the number of items done and of all.
    ``num_threads`` check images at once (0: one a CPU, up to the few that help). What an earlier
    run has finished is kept. Raises SourceError if nothing in the source can be used.
    """
    opened = open_source(source)
    digest = opened.digest(config.identity)
    uri = dataset_uri(config, digest, store)
    if exists(join(uri, MANIFEST)) and set(opened.layers) <= Dataset.open(uri).layers.keys():
        return uri
    with tempfile.TemporaryDirectory(prefix="clipmill-plan-") as place:
        plan = write_plan(config, opened, digest, uri, place)
        shard_range(plan, 0, plan.num_shards, progress=progress, num_threads=num_threads)
        finish_shards(plan, source_parents=source_parents)
    return uri


def shard_range(
    plan: ShardPlan,
    start: int,
    stop: int,
    *,
    progress: Callable[[int, int], None] | None = None,
    num_threads: int = 0,
) -> None:
    """Make shards ``start`` to ``stop`` (exclusive), passing over those that are whole.

    Raises SourceError where the source isn't readable as it was planned, StorageError.
    """
    if exists(join(plan.uri, MANIFEST)):
        return  # a late worker: all shards were whole
    source = open_source(plan.source)
    read, listing = plan.config.admission.read, plan.read_listing
    num_threads = num_threads or default_threads()
    total = sum(split.num_items for split in plan.splits(start, stop))
    done = 0
    with ThreadPoolExecutor(num_threads) as pool:
        for index, split in enumerate(plan.splits(start, stop), start):
            if not is_whole(plan, index):
                entries = source.entries(split, listing)
                make_shard(plan, index, entries, read, pool, num_threads)
            done += split.num_items
            if progress:
                progress(done, total)
