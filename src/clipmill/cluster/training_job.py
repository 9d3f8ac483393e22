"""A training job, and the TorchX AppDef in which every scheduler runs it.

It starts ``torchrun`` on each node, which starts ``clipmill`` once per GPU. The AppDef is the same
locally, on Volcano and as a TrainJob; only the variable that names the first node differs, which
TorchX fills in.
"""

import re
import shlex
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from clipmill.cluster.constants import (
    CONTAINER_SECURITY,
    METRICS_PORT,
    POD_SECURITY,
    STORE_SECRET,
    TRAIN_IMAGE,
)
from clipmill.cluster.pools import PoolConfig, fabric_environment, network_devices
from clipmill.config import Config
from clipmill.errors import ConfigError

if TYPE_CHECKING:
    from torchx.specs import AppDef

STOP_SECONDS = 10
"""Time of a pod's grace period that is left after that of the processes, seconds."""
ROLE = "node"
"""Name of the only role. Kubeflow Trainer applies a TrainJob's spec to the job and the container
of this name, so it can't be another."""
_PORT = 29500
_SHARED_MEMORY = "dshm"
"""TorchX's name of the volume at ``/dev/shm``."""
_NAME = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingJobConfig(Config):
    """A ``clipmill`` command on the nodes of a pool."""

    name: str
    """Name of the job: lower case, digits and hyphens, 40 characters at maximum."""
    command: tuple[str, ...]
    """Arguments of ``clipmill``, such as ``("pretrain", "clip", DATASET, "--store", STORE)``."""
    pool: str = "gpu"
    """Name of the pool."""
    min_nodes: int = 1
    """Fewest nodes with which the job continues."""
    max_nodes: int = 1
    """Nodes that the job requests."""
    processes_per_node: int = 0
    """Processes of a node; 0 for one per GPU, or one where there is none."""
    max_restarts: int = 3
    """Restarts of the processes before the job fails."""
    grace_seconds: int = 120
    """Time between SIGTERM and SIGKILL, in which a checkpoint is written, seconds."""
    image: str = TRAIN_IMAGE
    """Image of the nodes."""
    environment: dict[str, str] = field(default_factory=dict)
    """Further variables of the processes."""
    queue: str = ""
    """Kueue's local queue, or Volcano's queue; empty for none."""
    priority_class: str = ""
    """Name of Kueue's WorkloadPriorityClass, or Volcano's PriorityClass; empty for none."""
    topology: str = ""
    """Node label of which all nodes should have the same value, such as a rack's; or empty."""
    service_account: str = "clipmill-train"
    """Service account of the pods."""

    def __post_init__(self) -> None:
        """Refuse values out of range (ConfigError)."""
        if not _NAME.fullmatch(self.name):
            raise ConfigError(
                f"{self.name!r} can't name a job",
                expected="at maximum 40 of a-z, 0-9 and '-', a letter first and no '-' last",
                action="choose another name, such as clip-vit-b16",
            )
        if not 1 <= self.min_nodes <= self.max_nodes:
            raise ConfigError(
                f"nodes were {self.min_nodes}:{self.max_nodes}",
                expected="MIN:MAX with 1 <= MIN <= MAX",
                action="ask for at minimum one node",
            )
        if self.grace_seconds <= STOP_SECONDS:
            raise ConfigError(
                f"grace_seconds was {self.grace_seconds}",
                expected=f"more than {STOP_SECONDS}",
                action=f"set grace_seconds to more than {STOP_SECONDS}, such as 120",
            )
        if not self.command:
            raise ConfigError(
                "the job has no command",
                expected="arguments of clipmill, such as pretrain DATASET --store URI",
                action="add the command after --",
            )


def parse_nodes(text: str) -> tuple[int, int]:
    """Return ``N`` or ``MIN:MAX`` as two numbers; ConfigError for anything else."""
    minimum, _, maximum = text.partition(":")
    try:
        return int(minimum), int(maximum or minimum)
    except ValueError:
        raise ConfigError(
            f"nodes were {text!r}", expected="N, or MIN:MAX", action="give numbers of nodes"
        ) from None


def processes_per_node(job: TrainingJobConfig, pool: PoolConfig) -> int:
    """Return the number of processes that ``torchrun`` starts on each node."""
    return job.processes_per_node or max(pool.gpus, 1)


def training_app(job: TrainingJobConfig, pool: PoolConfig) -> "AppDef":
    """Return the job's AppDef, for any scheduler."""
    from torchx.specs import AppDef, Resource, Role
    from torchx.specs.overlays import set_overlay

    role = Role(
        name=ROLE,
        image=job.image,
        entrypoint="bash",
        args=["-c", _script(job, pool)],
        env=_environment(job, pool),
        num_replicas=job.max_nodes,
        min_replicas=job.min_nodes if job.min_nodes < job.max_nodes else None,
        resource=Resource(
            cpu=pool.num_cores,
            gpu=pool.gpus,
            memMB=pool.memory_gibibytes * 2**30 // 10**6,
            devices=network_devices(pool),
        ),
        port_map={"metrics": METRICS_PORT},
    )
    # Only Volcano's scheduler reads this; Kubeflow's runtimes of the chart say the same.
    set_overlay(role, "kubernetes", "V1Pod", _pod_patch(job, pool))
    return AppDef(name=job.name, roles=[role])


def _script(job: TrainingJobConfig, pool: PoolConfig) -> str:
    """Return the nodes' shell line; ``$$`` is a dollar that TorchX leaves for the shell."""
    is_single = job.max_nodes == 1
    # The name of the variable with the first node's address is TorchX's macro.
    first = "localhost:0" if is_single else "$${${rank0_env}:=localhost}" + f":{_PORT}"
    nodes = "1" if is_single else f"{job.min_nodes}:{job.max_nodes}"
    command = shlex.join(job.command).replace("$", "$$")
    # exec, so that SIGTERM reaches torchrun, which hands it on to the processes.
    return (
        f"exec python -m torch.distributed.run --nnodes={nodes}"
        f" --nproc-per-node={processes_per_node(job, pool)} --rdzv-endpoint={first}"
        f" --no-python clipmill {command}"
    )


def _environment(job: TrainingJobConfig, pool: PoolConfig) -> dict[str, str]:
    """Return torchrun's PET_* variables; those of nodes and ranks are Kubeflow's own."""
    return {
        "PET_RDZV_BACKEND": "c10d",
        "PET_RDZV_ID": job.name,
        "PET_MAX_RESTARTS": str(job.max_restarts),
        "PET_SHUTDOWN_TIMEOUT": str(job.grace_seconds - STOP_SECONDS),
        "OMP_NUM_THREADS": str(max(int(pool.num_cores / processes_per_node(job, pool)), 1)),
        **fabric_environment(pool),
        **job.environment,
    }


def _pod_patch(job: TrainingJobConfig, pool: PoolConfig) -> dict[str, Any]:
    """Return fields to merge into the pod that TorchX's ``kubernetes`` scheduler makes of a node.

    TorchX's pods lack security settings, the pool, the store's secret, and time to stop.
    """
    from torchx.specs.overlays import JOIN

    container = {
        # Containers are named by replica, but all have the job's image.
        "image": job.image,
        "securityContext": CONTAINER_SECURITY,
        "envFrom": [{"secretRef": {"name": STORE_SECRET, "optional": True}}],
        # TorchX's own mount again: a list inside a joined item takes the other's place.
        "volumeMounts": [
            {"name": _SHARED_MEMORY, "mountPath": "/dev/shm"},  # noqa: S108  # the pod's own
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108  # as above
        ],
    }
    shared = {"medium": "Memory", "sizeLimit": f"{pool.shared_memory_gibibytes}Gi"}
    return {
        "spec": {
            "automountServiceAccountToken": False,
            "nodeSelector": dict(pool.node_selector),
            "securityContext": POD_SECURITY,
            "terminationGracePeriodSeconds": job.grace_seconds,
            "tolerations": [dict(toleration) for toleration in pool.tolerations],
            JOIN("volumes", on="name"): [
                {"name": _SHARED_MEMORY, "emptyDir": shared},
                {"name": "tmp", "emptyDir": {}},
            ],
            JOIN("containers", on="image"): [container],
        }
    }
