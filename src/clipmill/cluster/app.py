"""The one TorchX AppDef of a training job, which every scheduler runs.

It starts ``torchrun`` on each node, which starts ``clipmill`` once a GPU. Locally, on Volcano and
as a TrainJob it is the same; only the variable that names the first node differs, and TorchX puts
that one in.
"""

import shlex
from typing import TYPE_CHECKING

from clipmill.cluster.job import STOP_SECONDS, TrainingJobConfig
from clipmill.cluster.names import METRICS_PORT
from clipmill.cluster.overlay import pod_overlay
from clipmill.cluster.pools import PoolConfig, fabric_devices, fabric_environment

if TYPE_CHECKING:
    from torchx.specs import AppDef

ROLE = "node"
"""Name of the one role; Kubeflow's torch runtimes call it that too."""
_PORT = 29500


def processes_per_node(job: TrainingJobConfig, pool: PoolConfig) -> int:
    """How many processes ``torchrun`` starts on each node."""
    return job.processes_per_node or max(pool.gpus, 1)


def training_app(job: TrainingJobConfig, pool: PoolConfig) -> "AppDef":
    """The job as TorchX describes it, for any scheduler."""
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
            cpu=pool.cpu,
            gpu=pool.gpus,
            memMB=pool.memory_gibibytes * 2**30 // 10**6,
            devices=fabric_devices(pool),
        ),
        port_map={"metrics": METRICS_PORT},
    )
    # Only Volcano's scheduler reads this; Kubeflow's runtimes of the chart say the same.
    set_overlay(role, "kubernetes", "V1Pod", pod_overlay(job, pool))
    return AppDef(name=job.name, roles=[role])


def _script(job: TrainingJobConfig, pool: PoolConfig) -> str:
    """The nodes' shell line; ``$$`` is a dollar that TorchX leaves for the shell."""
    one = job.max_nodes == 1
    # The name of the variable with the first node's address is TorchX's macro.
    first = "localhost:0" if one else "$${${rank0_env}:=localhost}" + f":{_PORT}"
    nodes = "1" if one else f"{job.min_nodes}:{job.max_nodes}"
    command = shlex.join(job.command).replace("$", "$$")
    # exec, so that SIGTERM reaches torchrun, which hands it on to the processes.
    return (
        f"exec python -m torch.distributed.run --nnodes={nodes}"
        f" --nproc-per-node={processes_per_node(job, pool)} --rdzv-endpoint={first}"
        f" --no-python clipmill {command}"
    )


def _environment(job: TrainingJobConfig, pool: PoolConfig) -> dict[str, str]:
    """torchrun reads PET_*; those of nodes and ranks are Kubeflow's own, and on the line above."""
    return {
        "PET_RDZV_BACKEND": "c10d",
        "PET_RDZV_ID": job.name,
        "PET_MAX_RESTARTS": str(job.max_restarts),
        "PET_SHUTDOWN_TIMEOUT": str(job.grace_seconds - STOP_SECONDS),
        "OMP_NUM_THREADS": str(max(pool.cpu // processes_per_node(job, pool), 1)),
        **fabric_environment(pool),
        **job.environment,
    }
