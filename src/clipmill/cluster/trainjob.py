"""A training job as a TrainJob of Kubeflow Trainer 2.3."""

from typing import TYPE_CHECKING, Any

from clipmill.cluster.app import ROLE, processes_per_node
from clipmill.cluster.job import TrainingJobConfig
from clipmill.cluster.names import DOMAIN, PRIORITY_LABEL, QUEUE_LABEL
from clipmill.cluster.pools import PoolConfig, container_resources

if TYPE_CHECKING:
    from torchx.specs import AppDef

RUNTIME_PREFIX = "clipmill-"
"""The chart makes a ClusterTrainingRuntime of each pool: this, and the pool's name."""
RANK0_VARIABLE = "PET_MASTER_ADDR"
"""Where Trainer puts the first node's address. Another one makes every node its own master."""


def train_job(
    app: "AppDef", job: TrainingJobConfig, pool: PoolConfig, *, name: str, namespace: str
) -> dict[str, Any]:
    """The TrainJob that runs the AppDef on the pool's runtime, under ``name``."""
    from torchx.specs import macros

    values = macros.Values(img_root="", app_id=name, replica_id="0", rank0_env=RANK0_VARIABLE)
    role = values.apply(app.roles[0])
    labels = {
        "app.kubernetes.io/name": "clipmill",
        "app.kubernetes.io/component": "train",
        "app.kubernetes.io/managed-by": "torchx",
        f"{DOMAIN}/job": app.name,
    }
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": labels | _kueue_labels(job),
        },
        "spec": {
            "runtimeRef": {
                "apiGroup": "trainer.kubeflow.org",
                "kind": "ClusterTrainingRuntime",
                "name": f"{RUNTIME_PREFIX}{job.pool}",
            },
            "trainer": {
                "image": role.image,
                "command": [role.entrypoint],
                "args": role.args,
                "env": [{"name": k, "value": v} for k, v in sorted(role.env.items())],
                "numNodes": role.num_replicas,
                "numProcPerNode": processes_per_node(job, pool),
                "resourcesPerNode": container_resources(pool),
            },
            "runtimePatches": [
                {
                    "manager": f"{DOMAIN}/torchx",
                    "trainingRuntimeSpec": {"template": {"spec": _job_set_patch(job, labels)}},
                }
            ],
        },
    }


def _kueue_labels(job: TrainingJobConfig) -> dict[str, str]:
    # A patch of the runtime has no priorityClassName: the priority is Kueue's to give.
    labels = {QUEUE_LABEL: job.queue, PRIORITY_LABEL: job.priority_class}
    return {label: value for label, value in labels.items() if value}


def _job_set_patch(job: TrainingJobConfig, labels: dict[str, str]) -> dict[str, Any]:
    pod = {
        "serviceAccountName": job.service_account,
        "terminationGracePeriodSeconds": job.grace_seconds,
    }
    metadata: dict[str, Any] = {"labels": labels}
    if job.topology:
        metadata["annotations"] = {"kueue.x-k8s.io/podset-preferred-topology": job.topology}
    template = {"spec": {"template": {"metadata": metadata, "spec": pod}}}
    return {"replicatedJobs": [{"name": ROLE, "template": template}]}
