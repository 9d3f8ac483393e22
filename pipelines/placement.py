"""Where a task runs on a cluster, and what it finds there; on one machine all this is ignored.

Pools are named here by what they are for. The chart puts the node labels, taints and GPUs of its
own table of pools in the place of these, so a cluster's names are never compiled in.
"""

from typing import Literal

from kfp import dsl, kubernetes

from clipmill.cluster.constants import (
    DOMAIN,
    METRICS_LABEL,
    METRICS_PORT,
    POOL_LABEL,
    STORE_SECRET,
    STORE_VARIABLES,
)
from clipmill.cluster.pools import load_pools, get_pool
from clipmill.stage_records import METRICS_VARIABLE

PoolName = Literal["cpu", "gpu"]
"""Pools that the pipelines' tasks choose from."""

_RETRIES = 3


def on_pool(task: dsl.PipelineTask, pool: PoolName, *, cached: bool = True) -> dsl.PipelineTask:
    """Place ``task`` on nodes of the pool, with memory, secret, metrics and retries.

    ``cached=False`` runs it each time: for what reads or changes things that no digest names. All
    others are called with URIs that hold digests, so that equal inputs mean equal outputs.
    """
    nodes = get_pool(pool, load_pools())
    kubernetes.add_node_selector(task, POOL_LABEL, pool)
    kubernetes.add_toleration(task, key=POOL_LABEL, operator="Equal", value=pool)
    # PyTorch's loaders hand batches over through it; a pod's own has 64 MB.
    kubernetes.empty_dir_mount(
        task,
        volume_name="shared-memory",
        mount_path="/dev/shm",  # noqa: S108  # the pod's own
        medium="Memory",
        size_limit=f"{nodes.shared_memory_gibibytes}Gi",
    )
    kubernetes.use_secret_as_env(
        task, STORE_SECRET, {name: name for name in STORE_VARIABLES}, optional=True
    )
    kubernetes.add_pod_label(task, METRICS_LABEL, "pipeline")
    # By way of an annotation, so that tasks on one machine don't all want one port.
    address = f"{DOMAIN}/metrics-address"
    kubernetes.add_pod_annotation(task, address, f"0.0.0.0:{METRICS_PORT}")
    kubernetes.use_field_path_as_env(task, METRICS_VARIABLE, f"metadata.annotations['{address}']")
    kubernetes.set_security_context(task, run_as_non_root=True)
    task.set_cpu_request(str(nodes.cpu)).set_cpu_limit(str(nodes.cpu))
    memory = f"{nodes.memory_gibibytes}Gi"
    task.set_memory_request(memory).set_memory_limit(memory)
    if nodes.gpus:
        task.set_accelerator_type(nodes.gpu_resource).set_accelerator_limit(nodes.gpus)
    task.set_caching_options(enable_caching=cached)
    # A stage's work is idempotent: a second try goes on where the first one ended.
    return task.set_retry(
        _RETRIES, backoff_duration="60s", backoff_factor=2, backoff_max_duration="3600s"
    )
