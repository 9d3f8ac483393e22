"""Data workflows from submission to end."""

import time
from collections.abc import Callable, Sequence

from clipmill.cluster.api import WORKFLOW, ClusterApi
from clipmill.cluster.dataplane import DataWorkflowConfig, data_workflow, num_shards
from clipmill.errors import ClusterError

_ENDED = ("Succeeded", "Failed", "Error")


def submit_data(config: DataWorkflowConfig, num_shards: int, *, api: ClusterApi) -> str:
    """Submit the workflow; its name."""
    made = api.create(WORKFLOW, config.namespace, data_workflow(config, num_shards))
    return str(made["metadata"]["name"])


def fan_out(
    stage: str,
    dataset: str,
    arguments: Sequence[str],
    *,
    pool: str,
    namespace: str,
    api: ClusterApi | None = None,
    poll_seconds: float = 30.0,
) -> None:
    """Submit a stage over all shards of a dataset, and return when it is done.

    Raises:
        ArtifactError: there is no such dataset.
        ClusterError: the workflow failed, or the cluster can't be reached.
    """
    fields = {
        "stage": stage,
        "subject": dataset,
        "arguments": list(arguments),
        "pool": pool,
        "namespace": namespace,
    }
    config = DataWorkflowConfig.from_json(fields)
    count = num_shards(config)
    api = api or ClusterApi()
    name = submit_data(config, count, api=api)
    wait_for_data(namespace, name, api=api, poll_seconds=poll_seconds)


def data_phase(namespace: str, name: str, *, api: ClusterApi) -> tuple[str, str]:
    """A workflow's phase and progress (``done/all``); ClusterError where there is none."""
    found = api.get(WORKFLOW, namespace, name)
    if found is None:
        raise ClusterError(
            f"there is no workflow {namespace}/{name}",
            expected="the name of one that was submitted within a week",
            action="see `kubectl get workflows`",
        )
    status = found.get("status") or {}
    return status.get("phase", "Pending"), status.get("progress", "0/0")


def wait_for_data(
    namespace: str,
    name: str,
    *,
    api: ClusterApi,
    poll_seconds: float = 30.0,
    report: Callable[[int, int, str], None] | None = None,
) -> None:
    """Return when the workflow has succeeded.

    Raises:
        ClusterError: it failed, or is gone.
    """
    while True:
        phase, progress = data_phase(namespace, name, api=api)
        done, _, total = progress.partition("/")
        if report is not None:
            report(int(done), int(total or 0), "pods")
        if phase == "Succeeded":
            return
        if phase in _ENDED:
            raise ClusterError(
                f"workflow {namespace}/{name} ended as {phase} after {progress} pods",
                expected="Succeeded",
                action="read its failed pods' logs; a new submission goes on where it ended",
            )
        time.sleep(poll_seconds)


def suspend_data(namespace: str, name: str, *, api: ClusterApi, suspended: bool = True) -> None:
    """Start no further pods of a workflow, or go on; those that run finish their range."""
    data_phase(namespace, name, api=api)
    api.patch(WORKFLOW, namespace, name, {"spec": {"suspend": suspended}})
