"""The data plane: one stage over all shards of a dataset, as an Argo Workflow made by Hera.

A pod owns a range of shards; it writes each output whole or not at all, and finds what is there
already. So a retry, a lost spot node and two pods on one range are harmless.
"""

from dataclasses import dataclass
from typing import Any, Literal

from clipmill.cluster.names import DATA_IMAGE
from clipmill.cluster.pools import load_pools, pool_named
from clipmill.config import Config
from clipmill.errors import ConfigError

PLANNED = "{{inputs.parameters.planned}}"
"""Argo's name of what the plan printed: the URI of the planned dataset."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataWorkflowConfig(Config):
    """A stage, fanned out."""

    stage: Literal["shard", "recaption", "score"]
    """Which stage."""
    subject: str
    """URI of the dataset; for ``shard``, what the plan of the dataset is made of."""
    arguments: tuple[str, ...] = ()
    """Further arguments of the stage's command, such as ``("--captioner", URI)``."""
    pool: str = "cpu"
    """Name of the pool."""
    shards_per_pod: int = 32
    """Shards that a pod owns; a pod's start takes seconds, so not too few."""
    num_workers: int = 64
    """Pods that ``shard`` is cut into: the number of shards isn't known before its plan."""
    parallelism: int = 64
    """Most pods at once."""
    retries: int = 10
    """How often a range is tried again; spot nodes come and go."""
    namespace: str = "default"
    """Namespace of the workflow."""
    service_account: str = "clipmill-data"
    """Service account of the pods."""
    image: str = DATA_IMAGE
    """Image of the pods."""

    def __post_init__(self) -> None:
        """Refuse values out of range (ConfigError)."""
        for name in ("shards_per_pod", "num_workers", "parallelism"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"{name} was {getattr(self, name)}",
                    expected="at least 1",
                    action=f"give {name} such a value",
                )


def ranges(num_shards: int, shards_per_pod: int) -> list[tuple[int, int]]:
    """First shard and the one to stop before, of each pod."""
    return [
        (start, min(start + shards_per_pod, num_shards))
        for start in range(0, num_shards, shards_per_pod)
    ]


def num_shards(config: DataWorkflowConfig) -> int:
    """Shards of the dataset that the stage is about; 0 for ``shard``, whose plan decides it.

    Raises:
        NotFoundError: there is no such dataset.
    """
    if config.stage == "shard":
        return 0
    from clipmill.data.dataset import Dataset

    return len(Dataset.open(config.subject).shards)


def parts(config: DataWorkflowConfig, num_shards: int) -> list[list[str]]:
    """The arguments by which each pod knows its part."""
    if config.stage == "shard":
        return [["--worker", f"{i}/{config.num_workers}"] for i in range(config.num_workers)]
    return [
        ["--start", str(start), "--stop", str(stop)]
        for start, stop in ranges(num_shards, config.shards_per_pod)
    ]


def commands(config: DataWorkflowConfig) -> tuple[list[str], list[str], list[str]]:
    """What comes before the parts (or nothing), what each part begins with, and what comes after.

    Each is arguments of ``clipmill``; ``PLANNED`` in them stands for what the first one printed.
    """
    if config.stage == "shard":
        return (
            ["data", "plan", config.subject, *config.arguments],
            ["data", "shard", "--plan", PLANNED],
            ["data", "finish", PLANNED],
        )
    whole = ["data", config.stage, config.subject, *config.arguments]
    # Without a range the command finds all shards' files and lists them in the layer.
    return [], whole, whole


def data_workflow(config: DataWorkflowConfig, num_shards: int) -> dict[str, Any]:
    """The Workflow; ``shard`` ignores ``num_shards``, which its plan decides."""
    from clipmill.cluster import workflow_templates as templates

    pool = pool_named(config.pool, load_pools())
    before, part, after = commands(config)
    split = parts(config, num_shards)
    names = [flag.removeprefix("--") for flag in split[0][::2]] if split else []
    items = [dict(zip(names, values[1::2], strict=True)) for values in split]
    made = [templates.container("plan", config, pool, before)] if before else []
    made += [
        templates.container("part", config, pool, part, inputs=names),
        templates.container("finish", config, pool, after),
    ]
    return templates.workflow(config, pool, made, items)
