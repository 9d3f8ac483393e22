"""Pods, hours, requests and cost of a stage over a dataset, from measured rates."""

import math
from dataclasses import dataclass

from clipmill.config import Config
from clipmill.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class StageProfile(Config):
    """Measured rates of a stage on its hardware; all numbers are above zero."""

    name: str
    """Name of the stage."""
    samples_per_second: float
    """Throughput of one pod."""
    bytes_per_sample: float = 50_000.0
    """Bytes read from the store per sample: a JPEG of a web dataset."""
    requests_per_shard: int = 4
    """Requests to the store per shard: read it, check whether it is done, write, move."""
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
    """Resources that the stage needs."""

    pods: int
    """Pods at once."""
    hours: float
    """Duration."""
    requests_per_second: float
    """On the store, by all pods."""
    bytes_per_second: float
    """From the store, by all pods."""
    price: float
    """Price of all pods' hours."""


def plan_capacity(
    profile: StageProfile,
    *,
    num_pairs: int,
    samples_per_shard: int,
    hours: float,
    efficiency: float = 0.8,
) -> StageDemand:
    """Return the pods that finish within ``hours``, and their load on the store.

    ``efficiency`` is the share of the time in which pods work: starts, retries and lost spot nodes
    take the rest.
    """
    pod_seconds = num_pairs / profile.samples_per_second / efficiency
    num_shards = math.ceil(num_pairs / samples_per_shard)
    pods = min(max(math.ceil(pod_seconds / (hours * 3600)), 1), num_shards)
    seconds = pod_seconds / pods
    return StageDemand(
        pods=pods,
        hours=seconds / 3600,
        requests_per_second=num_shards * profile.requests_per_shard / seconds,
        bytes_per_second=num_pairs * profile.bytes_per_sample / seconds,
        price=pod_seconds / 3600 * profile.pod_hour_price,
    )
