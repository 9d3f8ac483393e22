"""What TorchX's pods lack for our clusters: security, the pool, the store, time to stop."""

from typing import Any

from clipmill.cluster.job import TrainingJobConfig
from clipmill.cluster.names import CONTAINER_SECURITY, POD_SECURITY, STORE_SECRET
from clipmill.cluster.pools import PoolConfig


def pod_overlay(job: TrainingJobConfig, pool: PoolConfig) -> dict[str, Any]:
    """Fields to merge into the pod that TorchX's ``kubernetes`` scheduler makes of a node."""
    from torchx.specs.overlays import JOIN

    container = {
        # Containers are named by replica, but all have the job's image.
        "image": job.image,
        "securityContext": CONTAINER_SECURITY,
        "envFrom": [{"secretRef": {"name": STORE_SECRET, "optional": True}}],
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108  # the pod's own
    }
    return {
        "spec": {
            "automountServiceAccountToken": False,
            "nodeSelector": dict(pool.node_selector),
            "securityContext": POD_SECURITY,
            "terminationGracePeriodSeconds": job.grace_seconds,
            "tolerations": [dict(toleration) for toleration in pool.tolerations],
            "volumes": [{"name": "tmp", "emptyDir": {}}],
            JOIN("containers", on="image"): [container],
        }
    }
