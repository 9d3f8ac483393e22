"""What TorchX's pods lack for our clusters: security, the pool, the store, time to stop."""

from typing import Any

from clipmill.cluster.job import TrainingJobConfig
from clipmill.cluster.names import CONTAINER_SECURITY, POD_SECURITY, STORE_SECRET
from clipmill.cluster.pools import PoolConfig

_SHARED_MEMORY = "dshm"
"""TorchX's name of the volume at ``/dev/shm``."""


def pod_overlay(job: TrainingJobConfig, pool: PoolConfig) -> dict[str, Any]:
    """Fields to merge into the pod that TorchX's ``kubernetes`` scheduler makes of a node."""
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
