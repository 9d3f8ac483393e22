"""Names that more than one kind of resource uses: labels, images, the store's secret."""

from typing import Final

from clipmill.registry import REGISTRY_VARIABLE, TOKEN_VARIABLE
from clipmill.tracking import TRACKING_VARIABLE
from clipmill.version import clipmill_version

DOMAIN: Final = "clipmill.io"
"""Prefix of our labels and annotations."""

VERSION: Final = clipmill_version()
"""Tag of the images, and version of the chart."""

DATA_IMAGE: Final = f"clipmill/data:{VERSION}"
"""Image of the data plane: sharding, captioning, scoring, selecting."""
TRAIN_IMAGE: Final = f"clipmill/train:{VERSION}"
"""Image that pretrains, fine-tunes and evaluates; it can do all that the data image can."""
SERVE_IMAGE: Final = f"clipmill/serve:{VERSION}"
"""Image of an endpoint."""

STORE_SECRET: Final = "clipmill-store"  # noqa: S105  # a resource's name
"""Secret with the store's AWS_* variables."""
STORE_VARIABLES: Final = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_ENDPOINT_URL",
    "AWS_REGION",
)
"""Keys of that secret, which are the variables that clipmill reads."""

TRACKING_SECRET: Final = "clipmill-tracking"  # noqa: S105  # as above
"""Optional secret that names the experiment tracker and the registry."""
TRACKING_VARIABLES: Final = (
    TRACKING_VARIABLE,
    "MLFLOW_EXPERIMENT_NAME",
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "WANDB_API_KEY",
    REGISTRY_VARIABLE,
    TOKEN_VARIABLE,
)
"""Keys that it may have."""

QUEUE_LABEL: Final = "kueue.x-k8s.io/queue-name"
PRIORITY_LABEL: Final = "kueue.x-k8s.io/priority-class"
TRACK_LABEL: Final = f"{DOMAIN}/track"
"""``stable`` or ``canary``: which of an endpoint's models a pod serves."""
POOL_LABEL: Final = f"{DOMAIN}/pool"
"""Node label that stands for a pool until the chart puts the pool's own in its place."""
METRICS_LABEL: Final = f"{DOMAIN}/metrics"
"""Label of pods that can't have the chart's labels, such as tasks of pipelines, for monitors."""

METRICS_PORT: Final = 9090
"""Port of a job's ``/metrics``."""
HTTP_PORT: Final = 8080
"""Port of an endpoint's REST routes and ``/metrics``."""
GRPC_PORT: Final = 8081
"""Port of an endpoint's Open Inference Protocol by gRPC."""

NON_ROOT: Final = 10001
"""User and group of every container."""

CONTAINER_SECURITY: Final = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
}
"""Kubernetes' restricted Pod Security standard, of a container, and a read-only root."""
POD_SECURITY: Final = {
    "runAsNonRoot": True,
    "runAsUser": NON_ROOT,
    "runAsGroup": NON_ROOT,
    "fsGroup": NON_ROOT,
    "seccompProfile": {"type": "RuntimeDefault"},
}
"""The same of a pod."""
