"""A training job, and the TorchX AppDef in which every scheduler runs it.

It starts ``torchrun`` on each node (:mod:`clipmill.engine.elastic`), which starts ``clipmill`` once
per GPU. The AppDef is the same
locally, on Volcano and as a TrainJob; only the variable that names the first node differs, which
TorchX fills in.
"""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from clipmill.cluster.constants import (
    CONTAINER_SECURITY,
    METRICS_PORT,
    POD_SECURITY,
    STORE_SECRET,
    TRACKING_SECRET,
)
from clipmill.cluster.pools import PoolConfig, fabric_environment, network_devices
from clipmill.config import Config
from clipmill.cost import PRICE_VARIABLE
from clipmill.engine.config import TrainConfig
from clipmill.errors import ConfigError
from clipmill.stage_records import METRICS_VARIABLE

if TYPE_CHECKING:
    from torchx.specs import AppDef

STOP_SECONDS = 10
"""Time of a pod's grace period that is left after that of the processes, seconds."""
ROLE = "node"
"""Name of the only role. Kubeflow Trainer applies a TrainJob's spec to the job and the container
of this name, so it can't be another."""
_PORT = 29500
_LAST_CALL_SECONDS = 10
"""Time that MIN nodes wait for another one before they continue, seconds."""
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
    """Restarts of a node's processes before the node fails and is replaced."""
    start_timeout_seconds: int = 1800
    """Longest time that the job may be unable to run, apart from a queue: nodes wait that long for
    one another, and whoever waits for the job cancels it, seconds."""
    deadline_seconds: int = 0
    """Time after which the cluster ends the job, whatever its state, seconds; 0 for none."""
    grace_seconds: int = 120
    """Time between SIGTERM and SIGKILL, in which a checkpoint is written, seconds."""
    image: str = ""
    """Image of the nodes; empty for the installed one."""
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
        for name, least in (("start_timeout_seconds", 1), ("deadline_seconds", 0)):
            if getattr(self, name) < least:
                raise ConfigError(
                    f"{name} was {getattr(self, name)}",
                    expected=f"at least {least}",
                    action=f"set {name} to {least} or more",
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


def check_batch(job: TrainingJobConfig, pool: PoolConfig, train: TrainConfig) -> None:
    """Refuse numbers of nodes over which a batch can't be divided.

    A job of MIN:MAX nodes may continue with any number between.

    Raises:
        ConfigError: one of the numbers leaves a remainder; it names those that don't.
    """
    share = processes_per_node(job, pool) * train.grad_accum_steps
    counts = range(1, max(2 * job.max_nodes, 8) + 1)
    possible = [n for n in counts if train.batch_size % (n * share) == 0]
    wrong = [n for n in range(job.min_nodes, job.max_nodes + 1) if n not in possible]
    if not wrong:
        return
    least, most = job.min_nodes, job.max_nodes
    nodes = str(most) if least == most else f"{least}:{most}"
    fitting = [n for n in possible if n <= most]
    raise ConfigError(
        f"nodes were {nodes}: a batch of {train.batch_size} can't be divided over {wrong[0]} nodes "
        f"of {processes_per_node(job, pool)} processes with grad_accum_steps="
        f"{train.grad_accum_steps}",
        expected=f"{', '.join(map(str, possible)) or 'fewer processes'}, all from MIN to MAX",
        action=f"pass --nodes {fitting[-1]}, or change train.batch_size"
        if fitting
        else "change train.batch_size, train.grad_accum_steps or processes_per_node",
    )


def training_app(
    job: TrainingJobConfig,
    pool: PoolConfig,
    image: str,
    *,
    is_local: bool = False,
    pod_security: Mapping[str, Any] = POD_SECURITY,
) -> "AppDef":
    """Return the job's AppDef, for any scheduler; ``image`` is the one to use if the job has none.

    A local job serves no metrics: several would share the port. ``pod_security`` is the security
    context of Volcano's pods.
    """
    from torchx.specs import AppDef, Resource, Role
    from torchx.specs.overlays import set_overlay

    role = Role(
        name=ROLE,
        image=job.image or image,
        entrypoint="bash",
        args=["-c", _script(job, pool)],
        env=_environment(job, pool, is_local=is_local),
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
    set_overlay(role, "kubernetes", "V1Pod", _pod_patch(job, pool, role.image, pod_security))
    return AppDef(name=job.name, roles=[role])


def _script(job: TrainingJobConfig, pool: PoolConfig) -> str:
    """Return the nodes' shell script; ``$$`` is a dollar that TorchX leaves for the shell.

    The shell is the container's first process, for which the kernel ignores signals without a
    handler: it passes SIGTERM on from its start, while Python takes 10 to 20 s to set a handler.
    """
    is_single = job.max_nodes == 1
    # The name of the variable with the first node's address is TorchX's macro.
    first = "localhost:0" if is_single else "$${${rank0_env}:=localhost}" + f":{_PORT}"
    nodes = "1" if is_single else f"{job.min_nodes}:{job.max_nodes}"
    # A node that joins or leaves is waited for briefly; the start isn't limited by this.
    rendezvous = f"join_timeout={job.start_timeout_seconds},last_call_timeout={_LAST_CALL_SECONDS}"
    command = shlex.join(job.command).replace("$", "$$")
    return (
        "torchrun=; trap 'kill -TERM $$torchrun 2>/dev/null || exit 143' TERM;"
        f" python -m clipmill.engine.elastic --nnodes={nodes}"
        f" --nproc-per-node={processes_per_node(job, pool)} --rdzv-endpoint={first}"
        f" --rdzv-conf={rendezvous} --no-python clipmill {command} & torchrun=$$!;"
        # A trapped signal ends a wait early.
        " wait $$torchrun; code=$$?;"
        " while kill -0 $$torchrun 2>/dev/null; do wait $$torchrun; code=$$?; done; exit $$code"
    )


def _environment(job: TrainingJobConfig, pool: PoolConfig, *, is_local: bool) -> dict[str, str]:
    """Return torchrun's PET_* variables; those of nodes and ranks are Kubeflow's own."""
    metrics = {} if is_local else {METRICS_VARIABLE: f"0.0.0.0:{METRICS_PORT}"}
    return {
        "PET_RDZV_BACKEND": "c10d",
        "PET_RDZV_ID": job.name,
        "PET_MAX_RESTARTS": str(job.max_restarts),
        "PET_SHUTDOWN_TIMEOUT": str(job.grace_seconds - STOP_SECONDS),
        "OMP_NUM_THREADS": str(max(int(pool.num_cores / processes_per_node(job, pool)), 1)),
        # Each round of processes has a store of its own: a shared one stays in the agent that
        # began it, where a node that is replaced doesn't find it.
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        # Stacks of C++ frames for connections that a node closes as it ends.
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        **metrics,
        **fabric_environment(pool),
        **({PRICE_VARIABLE: pool.device_price} if pool.device_price else {}),
        **job.environment,
    }


def _pod_patch(
    job: TrainingJobConfig, pool: PoolConfig, image: str, pod_security: Mapping[str, Any]
) -> dict[str, Any]:
    """Return fields to merge into the pod that TorchX's ``kubernetes`` scheduler makes of a node.

    TorchX's pods lack security settings, the pool, the store's secret, and time to stop.
    """
    from torchx.specs.overlays import JOIN

    container = {
        # Containers are named by replica, but all have the job's image.
        "image": image,
        "securityContext": CONTAINER_SECURITY,
        "envFrom": [
            {"secretRef": {"name": name, "optional": True}}
            for name in (STORE_SECRET, TRACKING_SECRET)
        ],
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
            "securityContext": dict(pod_security),
            "terminationGracePeriodSeconds": job.grace_seconds,
            "tolerations": [dict(toleration) for toleration in pool.tolerations],
            JOIN("volumes", on="name"): [
                {"name": _SHARED_MEMORY, "emptyDir": shared},
                {"name": "tmp", "emptyDir": {}},
            ],
            JOIN("containers", on="image"): [container],
        }
    }
