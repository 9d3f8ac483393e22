"""A TorchX scheduler for Kubeflow Trainer 2.3: an AppDef becomes a TrainJob."""

import json
import logging
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from torchx.schedulers.api import (
    DescribeAppResponse,
    ListAppResponse,
    Scheduler,
    Stream,
    StructuredOpts,
    filter_regex,
)
from torchx.schedulers.ids import make_unique
from torchx.specs import (
    AppDef,
    AppDryRunInfo,
    AppState,
    CfgVal,
    ReplicaStatus,
    Role,
    RoleStatus,
    is_terminal,
    runopts,
)

from clipmill.cluster.api import TRAIN_JOB, WORKLOAD, ClusterApi
from clipmill.cluster.constants import DOMAIN, PRIORITY_LABEL, QUEUE_LABEL
from clipmill.cluster.pod_status import (
    Resource,
    created,
    is_ended,
    is_ready,
    is_started,
    newest,
    newest_warning,
    pod_problem,
    summarize_problems,
)
from clipmill.cluster.pools import PoolConfig, container_resources
from clipmill.cluster.training_job import ROLE, TrainingJobConfig, processes_per_node
from clipmill.errors import ClusterError

NAME = "kubeflow_trainer"
"""TorchX's name of this scheduler."""
RUNTIME_PREFIX = "clipmill-"
"""Prefix of the chart's TrainingRuntimes, before a pool's name."""
RANK0_VARIABLE = "PET_MASTER_ADDR"
"""Trainer's variable of the first node's address. With another one every node is a master."""
MIN_NODES_ANNOTATION = f"{DOMAIN}/min-nodes"
"""Annotation of a TrainJob with the fewest nodes with which it runs."""
_MANAGED = "app.kubernetes.io/managed-by=torchx"
_JOB_SET = "jobset.sigs.k8s.io/jobset-name"
_JOB_UID = "kueue.x-k8s.io/job-uid"
_INDEX = "batch.kubernetes.io/job-completion-index"
_LOG = logging.getLogger(__name__)


@dataclass
class TrainerOptions(StructuredOpts):  # type: ignore[misc]  # TorchX has no types
    """Options of a submission in addition to the AppDef."""

    job: str
    """JSON of the TrainingJobConfig."""

    pool: str
    """JSON of its PoolConfig."""

    namespace: str = "default"
    """Namespace of the TrainJob."""


@dataclass
class TrainJobRequest:
    """The TrainJob to create."""

    resource: dict[str, Any]
    """Body of the request."""

    def __str__(self) -> str:
        return json.dumps(self.resource, indent=2)


class TrainerScheduler(Scheduler[TrainerOptions]):  # type: ignore[misc]  # as above
    """Submits, describes, follows and cancels TrainJobs; an app's id is ``namespace:name``."""

    def __init__(
        self,
        session_name: str,
        api: ClusterApi | None = None,
        *,
        poll_interval_seconds: float = 5.0,
    ) -> None:
        super().__init__(NAME, session_name)
        self._api = api
        self._poll_interval_seconds = poll_interval_seconds

    @property
    def api(self) -> ClusterApi:
        """The cluster, connected when it is first used."""
        if self._api is None:
            self._api = ClusterApi()
        return self._api

    def schedule(self, dryrun_info: AppDryRunInfo[TrainJobRequest, TrainerOptions]) -> str:
        """Create the TrainJob, and return its id."""
        resource = dryrun_info.request.resource
        namespace, name = resource["metadata"]["namespace"], resource["metadata"]["name"]
        self.api.create(TRAIN_JOB, namespace, resource)
        return f"{namespace}:{name}"

    def _submit_dryrun(
        self, app: AppDef, cfg: TrainerOptions
    ) -> AppDryRunInfo[TrainJobRequest, TrainerOptions]:
        job = TrainingJobConfig.from_json(json.loads(cfg.job))
        pool = PoolConfig.from_json(json.loads(cfg.pool))
        name = make_unique(app.name).lower().replace("_", "-")
        resource = train_job(app, job, pool, name=name, namespace=cfg.namespace)
        return AppDryRunInfo(TrainJobRequest(resource), str)

    def _validate(self, app: AppDef, scheduler: str, cfg: TrainerOptions) -> None:
        """Do nothing: the pool states a node's resources."""

    def _run_opts(self) -> runopts:
        return TrainerOptions.as_runopts()

    def describe(self, app_id: str) -> DescribeAppResponse | None:
        """Return the state of a TrainJob and of its nodes; None where there is none."""
        namespace, name = parse_app_id(app_id)
        resource = self.api.get(TRAIN_JOB, namespace, name)
        if resource is None:
            return None
        pods = newest_per_node(self.api.pods(namespace, f"{_JOB_SET}={name}"))
        state, message = job_state(resource, pods)
        if state == AppState.PENDING and not message:
            message = self._missing_pods(namespace, name, pods)
        elif state == AppState.PENDING and any(map(is_ended, pods)):
            refusal = self._refused_pods(namespace, name, pods)
            message = "; ".join(filter(None, (message, refusal)))
        elif state == AppState.SUBMITTED:
            message = self._queued(namespace, resource) or message
        trainer = resource["spec"].get("trainer", {})
        role = Role(
            name=ROLE, image=trainer.get("image", ""), num_replicas=trainer.get("numNodes", 1)
        )
        replicas = [
            ReplicaStatus(id=i, state=state, role=ROLE, hostname=f"{name}-{ROLE}-0-{i}.{name}")
            for i in range(role.num_replicas)
        ]
        return DescribeAppResponse(
            app_id=app_id,
            state=state,
            msg=message,
            roles=[role],
            roles_statuses=[RoleStatus(ROLE, replicas)],
        )

    def exists(self, app_id: str) -> bool:
        """Return whether there is such a TrainJob, without asking for its pods."""
        return self.api.get(TRAIN_JOB, *parse_app_id(app_id)) is not None

    def list(self, cfg: Mapping[str, CfgVal] | None = None) -> list[ListAppResponse]:
        """Return the TrainJobs of this scheduler in one namespace."""
        namespace = str((cfg or {}).get("namespace") or "default")
        resources = self.api.find(TRAIN_JOB, namespace, _MANAGED)
        by_job: dict[str, list[Resource]] = {}
        for pod in self.api.pods(namespace, _MANAGED) if resources else []:
            by_job.setdefault(pod["metadata"]["labels"].get(_JOB_SET, ""), []).append(pod)
        names = [resource["metadata"]["name"] for resource in resources]
        return [
            ListAppResponse(
                app_id=f"{namespace}:{name}",
                state=job_state(resource, newest_per_node(by_job.get(name, [])))[0],
            )
            for name, resource in zip(names, resources, strict=True)
        ]

    def _missing_pods(self, namespace: str, name: str, pods: Sequence[Resource]) -> str:
        """Return why there are no pods or why they don't start, from the newest warning."""
        # Trainer reports at the TrainJob, JobSet and the Job controller at what they make.
        subjects = [pod["metadata"]["name"] for pod in pods] or [name, f"{name}-{ROLE}-0"]
        events = [
            event for subject in subjects[:2] for event in self.api.warnings(namespace, subject)
        ]
        waiting = (
            "its pods start" if pods else "no pods yet; Kubeflow Trainer and JobSet create them"
        )
        return newest_warning(events) or waiting

    def _refused_pods(self, namespace: str, name: str, pods: Sequence[Resource]) -> str:
        """Return why nodes that ended aren't replaced; empty where nothing refuses their pods."""
        events = self.api.warnings(namespace, f"{name}-{ROLE}-0")
        return newest_warning(events, since=max(map(created, pods)))

    def _queued(self, namespace: str, resource: Resource) -> str:
        """Return why Kueue hasn't admitted the job; empty where its Workload can't be read."""
        selector = f"{_JOB_UID}={resource['metadata'].get('uid', '')}"
        with suppress(ClusterError):
            for workload in self.api.find(WORKLOAD, namespace, selector):
                conditions = (workload.get("status") or {}).get("conditions", [])
                for condition in conditions:
                    if condition["type"] == "QuotaReserved" and condition["status"] == "False":
                        return (
                            f"in the queue {workload['spec']['queueName']}: {condition['message']}"
                        )
        return ""

    def _cancel_existing(self, app_id: str) -> None:
        """Delete the TrainJob: its processes get SIGTERM, and their time to save a checkpoint."""
        namespace, name = parse_app_id(app_id)
        self.api.delete(TRAIN_JOB, namespace, name)

    def log_iter(
        self,
        app_id: str,
        role_name: str,
        k: int = 0,
        regex: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        should_tail: bool = False,
        streams: Stream | None = None,
    ) -> Iterable[str]:
        """Return lines of node ``k``, with their ends; Kubernetes keeps both streams as one."""
        if since or until or streams not in {None, Stream.COMBINED}:
            raise NotImplementedError("a pod's log has no part, and both streams in one")
        lines = (
            self._follow(app_id, role_name, k) if should_tail else self._log(app_id, role_name, k)
        )
        ended = (f"{line}\n" for line in lines)
        return filter_regex(regex, ended) if regex else ended

    def _newest_pod(self, app_id: str, role_name: str, k: int) -> Resource | None:
        namespace, name = parse_app_id(app_id)
        selector = (
            f"{_JOB_SET}={name},jobset.sigs.k8s.io/replicatedjob-name={role_name},{_INDEX}={k}"
        )
        return newest(self.api.pods(namespace, selector))

    def _log(self, app_id: str, role_name: str, k: int) -> Iterator[str]:
        pod = self._newest_pod(app_id, role_name, k)
        if pod is None or not is_started(pod):
            description = self.describe(app_id)
            reason = (pod and pod_problem(pod)) or (description.msg if description else "")
            raise ClusterError(
                f"node {k} of {app_id} has no log yet{': ' if reason else ''}{reason}",
                expected="a node that has started",
                action="wait for it with --follow, or fix what keeps it from starting",
            )
        namespace, _ = parse_app_id(app_id)
        yield from self.api.log(namespace, pod["metadata"]["name"], role_name)

    def _follow(self, app_id: str, role_name: str, k: int) -> Iterator[str]:
        """Yield the lines of node ``k`` and of the pods that replace it, until the job ends."""
        namespace, _ = parse_app_id(app_id)
        num_printed: dict[str, int] = {}
        reported = ""
        while True:
            description = self.describe(app_id)
            is_last = description is None or is_terminal(description.state)
            pod = self._newest_pod(app_id, role_name, k)
            if pod is not None and is_started(pod):
                name = pod["metadata"]["name"]
                # A connection that breaks is opened again, and begins with the first line.
                lines = self.api.log(namespace, name, role_name, follow=not is_last)
                for number, line in enumerate(lines):
                    if number >= num_printed.get(name, 0):
                        yield line
                        num_printed[name] = number + 1
            if description is None or is_last:
                return
            if description.msg and description.msg != reported:
                reported = description.msg
                _LOG.warning("%s: %s", description.state.name, reported)
            time.sleep(self._poll_interval_seconds)


def parse_app_id(app_id: str) -> tuple[str, str]:
    """Return namespace and name; ClusterError for other forms than ``namespace:name``."""
    if not re.fullmatch(r"[^:]+:[^:]+", app_id):
        raise ClusterError(
            f"{app_id!r} is no job's id",
            expected="NAMESPACE:NAME",
            action="pass the handle that `clipmill cluster submit` printed",
        )
    namespace, _, name = app_id.partition(":")
    return namespace, name


def newest_per_node(pods: Iterable[Resource]) -> list[Resource]:
    """Return the newest pod of each node; replaced ones are kept by Kubernetes for their logs."""
    by_index: dict[str, list[Resource]] = {}
    for pod in pods:
        by_index.setdefault(pod["metadata"]["labels"].get(_INDEX, ""), []).append(pod)
    return [last for group in by_index.values() if (last := newest(group)) is not None]


def job_state(resource: Resource, pods: Sequence[Resource]) -> tuple[AppState, str]:
    """Return a TrainJob's state as TorchX names it, and the reason where it doesn't run.

    ``pods`` are the newest ones of its nodes. A job that waits in a queue is SUBMITTED.
    """
    status = resource.get("status") or {}
    true = {c["type"]: c for c in status.get("conditions", []) if c["status"] == "True"}
    problem = summarize_problems(pods)
    if "Failed" in true:
        message = str(true["Failed"].get("message", ""))
        return AppState.FAILED, "; ".join(filter(None, (problem, message)))
    if "Complete" in true:
        return AppState.SUCCEEDED, str(true["Complete"].get("message", ""))
    if "Suspended" in true:
        return AppState.SUBMITTED, str(true["Suspended"].get("message", ""))
    annotations = resource["metadata"].get("annotations") or {}
    min_nodes = int(annotations.get(MIN_NODES_ANNOTATION, resource["spec"]["trainer"]["numNodes"]))
    is_running = sum(map(is_ready, pods)) >= min_nodes
    return AppState.RUNNING if is_running else AppState.PENDING, problem


def create_scheduler(session_name: str, **options: object) -> TrainerScheduler:
    """Return the scheduler; TorchX calls it."""
    api = options.get("api")
    return TrainerScheduler(session_name, api if isinstance(api, ClusterApi) else None)


def train_job(
    app: AppDef, job: TrainingJobConfig, pool: PoolConfig, *, name: str, namespace: str
) -> dict[str, Any]:
    """Return the TrainJob that runs the AppDef on the pool's runtime, under ``name``."""
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
            "annotations": {MIN_NODES_ANNOTATION: str(job.min_nodes)},
        },
        "spec": {
            **({"activeDeadlineSeconds": job.deadline_seconds} if job.deadline_seconds else {}),
            "runtimeRef": {
                "apiGroup": "trainer.kubeflow.org",
                "kind": "TrainingRuntime",
                "name": f"{RUNTIME_PREFIX}{job.pool}",
            },
            "trainer": {
                # Without an image of its own the runtime's is used.
                **({"image": job.image} if job.image else {}),
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
