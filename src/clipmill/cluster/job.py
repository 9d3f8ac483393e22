"""What a training job is: a ``clipmill`` command on the nodes of a pool."""

import re
from dataclasses import dataclass, field

from clipmill.cluster.names import TRAIN_IMAGE
from clipmill.config import Config
from clipmill.errors import ConfigError

STOP_SECONDS = 10
"""What the pod's grace leaves after that of the processes, seconds."""
_NAME = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingJobConfig(Config):
    """A ``clipmill`` command on the nodes of a pool."""

    name: str
    """Name of the job: lower case, digits and hyphens, 40 characters at most."""
    command: tuple[str, ...]
    """Arguments of ``clipmill``, such as ``("pretrain", DATASET, "--store", STORE)``."""
    pool: str = "gpu"
    """Name of the pool."""
    min_nodes: int = 1
    """Nodes that the job can go on with."""
    max_nodes: int = 1
    """Nodes that the job asks for."""
    processes_per_node: int = 0
    """Processes of a node; 0 for one a GPU, or one where there is none."""
    max_restarts: int = 3
    """How often the processes are started again before the job fails."""
    grace_seconds: int = 120
    """Time between SIGTERM and the end, in which a checkpoint is written, seconds."""
    image: str = TRAIN_IMAGE
    """Image of the nodes."""
    environment: dict[str, str] = field(default_factory=dict)
    """Further variables of the processes."""
    queue: str = ""
    """Kueue's local queue, or Volcano's queue; empty for none."""
    priority_class: str = ""
    """Name of Kueue's WorkloadPriorityClass, or Volcano's PriorityClass; empty for none."""
    topology: str = ""
    """Node label within one value of which the nodes should lie, such as a rack's; or empty."""
    service_account: str = "clipmill-train"
    """Service account of the pods."""

    def __post_init__(self) -> None:
        """Refuse values out of range (ConfigError)."""
        if not _NAME.fullmatch(self.name):
            raise ConfigError(
                f"{self.name!r} can't name a job",
                expected="at most 40 of a-z, 0-9 and '-', a letter first and no '-' last",
                action="give the job such a name",
            )
        if not 1 <= self.min_nodes <= self.max_nodes:
            raise ConfigError(
                f"nodes were {self.min_nodes}:{self.max_nodes}",
                expected="MIN:MAX with 1 <= MIN <= MAX",
                action="ask for at least one node",
            )
        if self.grace_seconds <= STOP_SECONDS:
            raise ConfigError(
                f"grace_seconds was {self.grace_seconds}",
                expected=f"more than {STOP_SECONDS}",
                action="give a checkpoint time to be written",
            )
        if not self.command:
            raise ConfigError(
                "the job has no command",
                expected="arguments of clipmill, such as pretrain DATASET --store URI",
                action="give them after --",
            )


def parse_nodes(text: str) -> tuple[int, int]:
    """``N`` or ``MIN:MAX`` as two numbers; ConfigError for anything else."""
    least, _, most = text.partition(":")
    try:
        return int(least), int(most or least)
    except ValueError:
        raise ConfigError(
            f"nodes were {text!r}", expected="N, or MIN:MAX", action="give numbers of nodes"
        ) from None
