"""Submission, status, logs and cancelation of training jobs on any scheduler."""

import json
import logging
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from clipmill.cluster.api import ClusterApi
from clipmill.cluster.constants import STORE_SECRET
from clipmill.cluster.pools import Installation, default_installation, load_installation
from clipmill.cluster.training_job import (
    ROLE,
    TrainingJobConfig,
    check_batch,
    parse_nodes,
    training_app,
)
from clipmill.config import Config
from clipmill.engine.config import TrainConfig
from clipmill.errors import ClusterError, ConfigError, NotFoundError, StorageError, suggestion
from clipmill.recipes.registry import get_recipe

if TYPE_CHECKING:
    from torchx.runner import Runner
    from torchx.specs import AppDef, AppStatus

SchedulerName = Literal["local_cwd", "kubernetes", "kubeflow_trainer"]
"""Local processes, a Volcano job, a TrainJob."""
SCHEDULERS: tuple[SchedulerName, ...] = ("local_cwd", "kubernetes", "kubeflow_trainer")
_LOG = logging.getLogger(__name__)
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
    job: TrainingJobConfig,
    scheduler: str,
    *,
    namespace: str = "default",
    config: Config | None = None,
    torchx: "Runner",
    api: ClusterApi | None = None,
) -> str:
    """Submit the job, and return its handle, ``SCHEDULER://clipmill/ID``.

    ``config`` is that of the command's recipe: its batch must divide over the nodes.

    Raises:
        ConfigError: there is no such pool, or the batch can't be divided.
        ClusterError: there is no such scheduler or installation, or the cluster refuses the job.
    """
    _check_scheduler(scheduler)
    if scheduler == "local_cwd":
        installation = default_installation()
    else:
        api = api or ClusterApi()
        installation = load_installation(namespace, api=api)
        _check_secret(namespace, api)
    app, options = _request(job, scheduler, namespace, installation, config)
    return str(torchx.run(app, scheduler, options))


def run_to_end(
    name: str,
    command: Sequence[str],
    pool: str,
    nodes: str,
    queue: str = "",
    namespace: str = "default",
    *,
    start_timeout_seconds: int = 1800,
    torchx: "Runner | None" = None,
    api: ClusterApi | None = None,
    poll_interval_seconds: float = 30.0,
) -> None:
    """Submit a TrainJob of a ``clipmill`` command with a recipe, and return when it has succeeded.

    Raises:
        ConfigError: a value of the job or of the recipe is out of range.
        NotFoundError: there is no such dataset.
        ClusterError: it failed, couldn't run for the time that it may, is gone, or the cluster
            can't be reached.
    """
    if torchx is None:
        with torchx_runner() as instance:
            run_to_end(
                name,
                command,
                pool,
                nodes,
                queue,
                namespace,
                start_timeout_seconds=start_timeout_seconds,
                torchx=instance,
            )
        return
    min_nodes, max_nodes = parse_nodes(nodes)
    job = TrainingJobConfig(
        name=name,
        command=tuple(command),
        pool=pool,
        min_nodes=min_nodes,
        max_nodes=max_nodes,
        queue=queue,
        start_timeout_seconds=start_timeout_seconds,
    )
    config = get_recipe(_values(command, "--recipe")[-1], Config, _values(command, "--set"))
    handle = submit(
        job, "kubeflow_trainer", namespace=namespace, config=config, torchx=torchx, api=api
    )
    wait(
        handle,
        start_timeout_seconds=start_timeout_seconds,
        torchx=torchx,
        poll_interval_seconds=poll_interval_seconds,
    )


def wait(
    handle: str,
    *,
    start_timeout_seconds: float,
    torchx: "Runner",
    poll_interval_seconds: float = 30.0,
) -> None:
    """Return when the job has succeeded; cancel it if it can't run for too long.

    Time in a queue doesn't count.

    Raises:
        ClusterError: it failed, couldn't run for ``start_timeout_seconds``, or is gone.
    """
    pending_since = time.monotonic()
    while not (app_status := status(handle, torchx=torchx)).is_terminal():
        now = time.monotonic()
        if app_status.state.name != "PENDING":
            pending_since = now
        elif now - pending_since > start_timeout_seconds:
            cancel(handle, torchx=torchx)
            raise ClusterError(
                f"{handle} couldn't run for {start_timeout_seconds:.0f} s and was cancelled: "
                f"{app_status.msg}",
                expected="nodes that start",
                action="fix what the message names, or raise start_timeout_seconds",
            )
        time.sleep(poll_interval_seconds)
    if app_status.state.name != "SUCCEEDED":
        raise ClusterError(
            f"{handle} ended as {app_status.state.name}: {app_status.msg}",
            expected="SUCCEEDED",
            action=f"read `clipmill cluster logs {handle}`; a new job resumes from its checkpoint",
        )


def dry_run(
    job: TrainingJobConfig,
    scheduler: str,
    *,
    namespace: str,
    config: Config | None = None,
    torchx: "Runner",
) -> str:
    """Return the request that would be submitted, as text; without a cluster for default pools."""
    _check_scheduler(scheduler)
    installation = default_installation()
    if scheduler != "local_cwd":
        with suppress(ClusterError):
            installation = load_installation(namespace, api=ClusterApi())
    app, options = _request(job, scheduler, namespace, installation, config)
    if scheduler == "kubernetes":
        options["validate_spec"] = False  # by a cluster
    return str(torchx.dryrun(app, scheduler, options).request)


def list_jobs(scheduler: str, *, namespace: str, torchx: "Runner") -> list[tuple[str, str]]:
    """Return the handles and the states of a scheduler's jobs in a namespace."""
    _check_scheduler(scheduler)
    options = {} if scheduler == "local_cwd" else {"namespace": namespace}
    return [(app.app_handle, app.state.name) for app in torchx.list(scheduler, options)]


def check_dataset(uri: str) -> None:
    """Refuse a dataset that no pod could read.

    Raises:
        ConfigError: it is a local folder.
        NotFoundError: there is no such dataset.
    """
    from clipmill.data.dataset import Dataset

    if "://" not in uri or uri.startswith("file:"):
        raise ConfigError(
            f"the dataset {uri} is a folder of this machine",
            expected="a URI that pods can read: s3://BUCKET/...",
            action="copy it to the object store, or pass --scheduler local_cwd",
        )
    try:
        Dataset.open(uri)
    except NotFoundError:
        raise
    except StorageError as error:
        # The store, or its credentials, may be the cluster's own.
        _LOG.warning("the dataset can't be checked from this machine: %s", error.what)


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
            action="list the jobs with `clipmill cluster list -n NAMESPACE`",
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


def _check_secret(namespace: str, api: ClusterApi) -> None:
    if api.has_secret(namespace, STORE_SECRET) is False:
        raise ClusterError(
            f"the namespace {namespace} has no secret {STORE_SECRET}",
            expected="the object store's credentials",
            action=f"create it: kubectl -n {namespace} create secret generic {STORE_SECRET} "
            "--from-literal=AWS_ACCESS_KEY_ID=... --from-literal=AWS_SECRET_ACCESS_KEY=...",
        )


def _values(command: Sequence[str], option: str) -> list[str]:
    return [value for name, value in pairwise(command) if name == option]


def _request(
    job: TrainingJobConfig,
    scheduler: str,
    namespace: str,
    installation: Installation,
    config: Config | None,
) -> tuple["AppDef", dict[str, Any]]:
    """Return the AppDef and the scheduler's options."""
    pool = installation.pool(job.pool)
    train = getattr(config, "train", None)
    if isinstance(train, TrainConfig):
        check_batch(job, pool, train)
    image = installation.image("train")
    app = training_app(
        job,
        pool,
        image,
        is_local=scheduler == "local_cwd",
        pod_security=installation.pod_security,
    )
    if scheduler == "kubeflow_trainer":
        settings = {"job": json.dumps(job.to_json()), "pool": json.dumps(pool.to_json())}
        return app, {"namespace": namespace, **settings}
    if scheduler == "kubernetes":
        return app, {
            "namespace": namespace,
            "queue": job.queue or "default",
            "service_account": job.service_account,
            "priority_class": job.priority_class or None,
            # The pool says what a job may use, not what a machine has.
            "reserved_millicpu": 0,
            "reserved_memmb": 0,
        }
    return app, {}
