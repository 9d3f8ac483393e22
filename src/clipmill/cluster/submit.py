"""Submission, status, logs and cancelation of training jobs on any scheduler."""

import json
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from clipmill.cluster.pools import get_pool, load_pools
from clipmill.cluster.training_job import ROLE, TrainingJobConfig, parse_nodes, training_app
from clipmill.errors import ClusterError, suggestion

if TYPE_CHECKING:
    from torchx.runner import Runner
    from torchx.specs import AppStatus

SchedulerName = Literal["local_cwd", "kubernetes", "kubeflow_trainer"]
"""Local processes, a Volcano job, a TrainJob."""
SCHEDULERS: tuple[SchedulerName, ...] = ("local_cwd", "kubernetes", "kubeflow_trainer")
_HANDLE = re.compile(rf"({'|'.join(SCHEDULERS)})://[^/]*/[^/]+")


@contextmanager
def torchx_runner() -> Iterator["Runner"]:
    """Yield a TorchX runner with clipmill's schedulers."""
    from torchx.runner import Runner
    from torchx.schedulers import get_scheduler_factories

    from clipmill.cluster import trainer_scheduler

    factories = {
        **get_scheduler_factories(),
        trainer_scheduler.NAME: trainer_scheduler.create_scheduler,
    }
    with Runner("clipmill", {name: factories[name] for name in SCHEDULERS}) as instance:
        yield instance


def submit(
    job: TrainingJobConfig, scheduler: str, *, namespace: str = "default", torchx: "Runner"
) -> str:
    """Submit the job, and return its handle, ``SCHEDULER://clipmill/ID``.

    Raises:
        ConfigError: there is no such pool.
        ClusterError: there is no such scheduler, or the cluster refuses the job.
    """
    app = training_app(job, get_pool(job.pool, load_pools()))
    _check_scheduler(scheduler)
    return str(torchx.run(app, scheduler, _options(job, scheduler, namespace)))


def run_to_end(
    name: str,
    command: Sequence[str],
    pool: str,
    nodes: str,
    queue: str = "",
    namespace: str = "default",
    *,
    torchx: "Runner | None" = None,
    poll_interval_seconds: float = 30.0,
) -> None:
    """Submit a TrainJob of the ``clipmill`` command, and return when it has succeeded.

    Raises:
        ConfigError: a value of the job is out of range.
        ClusterError: it failed, is gone, or the cluster can't be reached.
    """
    if torchx is None:
        with torchx_runner() as instance:
            run_to_end(name, command, pool, nodes, queue, namespace, torchx=instance)
        return
    min_nodes, max_nodes = parse_nodes(nodes)
    job = TrainingJobConfig(
        name=name,
        command=tuple(command),
        pool=pool,
        min_nodes=min_nodes,
        max_nodes=max_nodes,
        queue=queue,
    )
    handle = submit(job, "kubeflow_trainer", namespace=namespace, torchx=torchx)
    while not (app_status := status(handle, torchx=torchx)).is_terminal():
        time.sleep(poll_interval_seconds)
    if app_status.state.name != "SUCCEEDED":
        raise ClusterError(
            f"{handle} ended as {app_status.state.name}: {app_status.msg}",
            expected="SUCCEEDED",
            action=f"read `clipmill cluster logs {handle}`; a new job resumes from its checkpoint",
        )


def dry_run(job: TrainingJobConfig, scheduler: str, *, namespace: str, torchx: "Runner") -> str:
    """Return the request that would be submitted, as text."""
    app = training_app(job, get_pool(job.pool, load_pools()))
    _check_scheduler(scheduler)
    options = _options(job, scheduler, namespace)
    if scheduler == "kubernetes":
        options["validate_spec"] = False  # by a cluster
    return str(torchx.dryrun(app, scheduler, options).request)


def status(handle: str, *, torchx: "Runner") -> "AppStatus":
    """Return the status of a job; ClusterError where there is none."""
    if not _HANDLE.fullmatch(handle):
        raise ClusterError(
            f"{handle!r} isn't the handle of a job",
            expected=f"SCHEDULER://clipmill/ID, with SCHEDULER one of {', '.join(SCHEDULERS)}",
            action="pass the handle that `clipmill cluster submit` printed",
        )
    app_status = torchx.status(handle)
    if app_status is None:
        raise ClusterError(
            f"there is no job {handle}",
            expected="the handle of a job that was neither cancelled nor cleaned up",
            action="list the jobs with `kubectl get trainjobs` or `kubectl get vcjob`",
        )
    return app_status


def logs(handle: str, node: int, *, follow: bool, torchx: "Runner") -> Iterator[str]:
    """Yield the log lines of a node."""
    status(handle, torchx=torchx)
    yield from torchx.log_lines(handle, ROLE, node, should_tail=follow)


def cancel(handle: str, *, torchx: "Runner") -> None:
    """Stop a job; a submission of the same command resumes from its checkpoint."""
    status(handle, torchx=torchx)
    torchx.cancel(handle)


def _check_scheduler(scheduler: str) -> None:
    if scheduler not in SCHEDULERS:
        raise ClusterError(
            f"{scheduler!r} is no scheduler",
            expected=f"one of {', '.join(SCHEDULERS)}",
            action=suggestion(scheduler, SCHEDULERS, otherwise="choose one with --scheduler"),
        )


def _options(job: TrainingJobConfig, scheduler: str, namespace: str) -> dict[str, Any]:
    if scheduler == "kubeflow_trainer":
        return {"namespace": namespace, "job": json.dumps(job.to_json())}
    if scheduler == "kubernetes":
        return {
            "namespace": namespace,
            "queue": job.queue or "default",
            "service_account": job.service_account,
            "priority_class": job.priority_class or None,
            # The pool says what a job may use, not what a machine has.
            "reserved_millicpu": 0,
            "reserved_memmb": 0,
        }
    return {}
