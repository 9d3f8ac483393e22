"""Training jobs from submission to end, on whichever scheduler."""

import json
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from clipmill.cluster.pools import load_pools, get_pool
from clipmill.cluster.training_job import ROLE, TrainingJobConfig, parse_nodes, training_app
from clipmill.errors import ClusterError, suggestion

if TYPE_CHECKING:
    from torchx.runner import Runner
    from torchx.specs import AppStatus

SchedulerName = Literal["local_cwd", "kubernetes", "kubeflow_trainer"]
"""Processes here, a Volcano job, a TrainJob."""
SCHEDULERS: tuple[SchedulerName, ...] = ("local_cwd", "kubernetes", "kubeflow_trainer")
_HANDLE = re.compile(rf"({'|'.join(SCHEDULERS)})://[^/]*/[^/]+")


@contextmanager
def runner() -> Iterator["Runner"]:
    """TorchX with our schedulers."""
    from torchx.runner import Runner
    from torchx.schedulers import get_scheduler_factories

    from clipmill.cluster import trainer_scheduler

    factories = {
        **get_scheduler_factories(),
        trainer_scheduler.NAME: trainer_scheduler.create_scheduler,
    }
    with Runner("clipmill", {name: factories[name] for name in SCHEDULERS}) as made:
        yield made


def submit(
    job: TrainingJobConfig, scheduler: str, *, namespace: str = "default", torchx: "Runner"
) -> str:
    """Submit the job; its handle, ``SCHEDULER://clipmill/ID``.

    Raises:
        ConfigError: there is no such pool.
        ClusterError: there is no such scheduler, or the cluster refuses the job.
    """
    app = training_app(job, get_pool(job.pool, load_pools()))
    _check(scheduler)
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
    poll_seconds: float = 30.0,
) -> None:
    """Submit a TrainJob of the ``clipmill`` command, and return when it has succeeded.

    Raises:
        ConfigError: the job makes no sense.
        ClusterError: it failed, is gone, or the cluster can't be reached.
    """
    if torchx is None:
        with runner() as made:
            run_to_end(name, command, pool, nodes, queue, namespace, torchx=made)
        return
    least, most = parse_nodes(nodes)
    job = TrainingJobConfig(
        name=name,
        command=tuple(command),
        pool=pool,
        min_nodes=least,
        max_nodes=most,
        queue=queue,
    )
    handle = submit(job, "kubeflow_trainer", namespace=namespace, torchx=torchx)
    while not (found := status(handle, torchx=torchx)).is_terminal():
        time.sleep(poll_seconds)
    if found.state.name != "SUCCEEDED":
        raise ClusterError(
            f"{handle} ended as {found.state.name}: {found.msg}",
            expected="SUCCEEDED",
            action=f"read `clipmill cluster logs {handle}`; a new one goes on from its checkpoint",
        )


def describe(job: TrainingJobConfig, scheduler: str, *, namespace: str, torchx: "Runner") -> str:
    """What would be submitted, as text."""
    app = training_app(job, get_pool(job.pool, load_pools()))
    _check(scheduler)
    options = _options(job, scheduler, namespace)
    if scheduler == "kubernetes":
        options["validate_spec"] = False  # by a cluster
    return str(torchx.dryrun(app, scheduler, options).request)


def status(handle: str, *, torchx: "Runner") -> "AppStatus":
    """State of a job; ClusterError where there is none."""
    if not _HANDLE.fullmatch(handle):
        raise ClusterError(
            f"{handle!r} isn't the handle of a job",
            expected=f"SCHEDULER://clipmill/ID, with SCHEDULER one of {', '.join(SCHEDULERS)}",
            action="give what `clipmill cluster submit` printed",
        )
    found = torchx.status(handle)
    if found is None:
        raise ClusterError(
            f"there is no job {handle}",
            expected="the handle of a job that was neither cancelled nor cleaned up",
            action="look at what runs with `kubectl get trainjobs` or `kubectl get vcjob`",
        )
    return found


def logs(handle: str, node: int, *, follow: bool, torchx: "Runner") -> Iterator[str]:
    """Lines of a node."""
    status(handle, torchx=torchx)
    yield from torchx.log_lines(handle, ROLE, node, should_tail=follow)


def cancel(handle: str, *, torchx: "Runner") -> None:
    """Stop a job; a submission of the same command goes on from its checkpoint."""
    status(handle, torchx=torchx)
    torchx.cancel(handle)


def _check(scheduler: str) -> None:
    if scheduler not in SCHEDULERS:
        raise ClusterError(
            f"{scheduler!r} is no scheduler",
            expected=f"one of {', '.join(SCHEDULERS)}",
            action=suggestion(scheduler, SCHEDULERS, otherwise="choose one with --on"),
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
