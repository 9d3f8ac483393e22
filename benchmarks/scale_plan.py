"""Project the cost of a dataset of any size: objects, requests and hours, from measured rates."""

import math
from dataclasses import dataclass
from typing import Final

from clipmill.config import Config
from clipmill.data.shards.finalize import BYTES_SPILLED_PER_SAMPLE
from clipmill.data.shards.plan import SPLITS_PER_FILE

# What storage/s3.py does with a large file: parts of this size, and two requests around them.
_PART_BYTES: Final = 16 << 20
# A shard's entry in dataset.json, and a sample's part in its sidecar, in bytes as written.
_LISTED_BYTES: Final = 175
_SIDECAR_BYTES: Final = 75


@dataclass(frozen=True, kw_only=True, slots=True)
class ScaleRates(Config):
    """What was measured on one machine (``benchmarks/scale.py``)."""

    plan_seconds: float
    """Wall time of planning, an item."""
    shard_cpu_seconds: float
    """CPU time of making shards, an item: reading, checking, hashing, writing."""
    finish_seconds: float
    """Wall time of finding doubles and listing, an item."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScalePlan:
    """What one dataset takes."""

    num_shards: int
    """Tars; each has a sidecar beside it."""
    num_objects: int
    """Objects in the store: tars, sidecars, the plan, dataset.json."""
    dataset_bytes: int
    """Bytes of the tars."""
    manifest_bytes: int
    """Bytes of dataset.json."""
    sidecar_bytes: int
    """Bytes of all sidecars."""
    num_puts: int
    """Requests that write, parts of large objects counted singly."""
    num_gets: int
    """Requests that read or ask whether something is there."""
    plan_hours: float
    """One process."""
    shard_core_hours: float
    """All workers together."""
    shard_hours: float
    """Wall time of the workers."""
    finish_hours: float
    """One process."""
    finish_scratch_bytes: int
    """Temporary disk of the process that finishes."""
    finish_memory_bytes: int
    """Its memory, but for the interpreter's own."""


def scale_plan(
    rates: ScaleRates,
    *,
    num_pairs: int,
    bytes_per_pair: int,
    samples_per_shard: int,
    num_cores: int,
) -> ScalePlan:
    """Reckon from measured rates; whatever doesn't depend on them follows from the format."""
    num_shards = math.ceil(num_pairs / samples_per_shard)
    num_plan_files = math.ceil(num_shards / SPLITS_PER_FILE) + 2
    tar_bytes = bytes_per_pair * samples_per_shard
    num_parts = math.ceil(tar_bytes / _PART_BYTES)
    puts_per_tar = num_parts + 2 if num_parts > 1 else 1
    core_hours = num_pairs * rates.shard_cpu_seconds / 3600
    return ScalePlan(
        num_shards=num_shards,
        num_objects=2 * num_shards + num_plan_files + 1,
        dataset_bytes=num_pairs * bytes_per_pair,
        manifest_bytes=num_shards * _LISTED_BYTES,
        sidecar_bytes=num_pairs * _SIDECAR_BYTES,
        num_puts=num_shards * (puts_per_tar + 1) + num_plan_files + 1,
        # A worker asks whether each shard is there; finishing reads each sidecar.
        num_gets=2 * num_shards + num_plan_files,
        plan_hours=num_pairs * rates.plan_seconds / 3600,
        shard_core_hours=core_hours,
        shard_hours=core_hours / num_cores,
        finish_hours=num_pairs * rates.finish_seconds / 3600,
        finish_scratch_bytes=num_pairs * BYTES_SPILLED_PER_SAMPLE,
        # A byte a sample says whether it's a double; the rest is one part of the scratch.
        finish_memory_bytes=num_pairs + num_shards * _LISTED_BYTES,
    )
