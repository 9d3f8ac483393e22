"""How many pods, hours, requests and euros a stage over a whole dataset takes.

Plain arithmetic from rates that someone has measured on the hardware in question.
"""

import math
from dataclasses import dataclass

from clipmill.config import Config
from clipmill.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class StageLoad(Config):
    """A stage on the hardware that it shall run on; all numbers are above zero."""

    name: str
    """Name of the stage."""
    samples_per_second: float
    """What one pod does."""
    bytes_per_sample: float = 50_000.0
    """What is read from the store for a sample, bytes: a JPEG of a web dataset."""
    requests_per_shard: int = 4
    """Requests to the store for a shard: read it, look whether it is done, write, put in place."""
    pod_hour_price: float = 0.0
    """Price of a pod's hour; 0 where it doesn't matter."""

    def __post_init__(self) -> None:
        """Refuse rates out of range (ConfigError)."""
        if not self.samples_per_second > 0:
            raise ConfigError(
                f"samples_per_second of {self.name} was {self.samples_per_second}",
                expected="above 0, as measured for one pod",
                action="measure it with benchmarks/, or on one pod",
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class StageDemand:
    """What the stage takes."""

    pods: int
    """Pods at once."""
    hours: float
    """From beginning to end."""
    requests_per_second: float
    """On the store, by all pods."""
    bytes_per_second: float
    """From the store, by all pods."""
    price: float
    """Of all pods' hours."""


def demand(
    load: StageLoad,
    *,
    num_pairs: int,
    samples_per_shard: int,
    hours: float,
    efficiency: float = 0.8,
) -> StageDemand:
    """Pods to be done within ``hours``, and what they then do to the store.

    ``efficiency`` is the share of the time in which pods work: starts, retries and lost spot nodes
    take the rest.
    """
    pod_seconds = num_pairs / load.samples_per_second / efficiency
    num_shards = math.ceil(num_pairs / samples_per_shard)
    pods = min(max(math.ceil(pod_seconds / (hours * 3600)), 1), num_shards)
    seconds = pod_seconds / pods
    return StageDemand(
        pods=pods,
        hours=seconds / 3600,
        requests_per_second=num_shards * load.requests_per_shard / seconds,
        bytes_per_second=num_pairs * load.bytes_per_sample / seconds,
        price=pod_seconds / 3600 * load.pod_hour_price,
    )
