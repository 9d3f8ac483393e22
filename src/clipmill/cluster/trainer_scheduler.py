"""A TorchX scheduler for Kubeflow Trainer 2.3: an AppDef becomes a TrainJob."""

import json
import re
from collections.abc import Iterable, Mapping
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
    runopts,
)

from clipmill.cluster.api import TRAIN_JOB, ClusterApi
from clipmill.cluster.constants import DOMAIN, PRIORITY_LABEL, QUEUE_LABEL
from clipmill.cluster.pools import PoolConfig, container_resources, get_pool, load_pools
from clipmill.cluster.training_job import ROLE, TrainingJobConfig, processes_per_node
from clipmill.errors import ClusterError

NAME = "kubeflow_trainer"
"""TorchX's name of this scheduler."""
RUNTIME_PREFIX = "clipmill-"
"""Prefix of the chart's ClusterTrainingRuntimes, before a pool's name."""
RANK0_VARIABLE = "PET_MASTER_ADDR"
"""Trainer's variable of the first node's address. With another one every node is a master."""
_MANAGED = "app.kubernetes.io/managed-by=torchx"


@dataclass
class TrainerOptions(StructuredOpts):  # type: ignore[misc]  # TorchX has no types
    """Options of a submission in addition to the AppDef."""

    job: str
    """JSON of the TrainingJobConfig."""

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

    def __init__(self, session_name: str, api: ClusterApi | None = None) -> None:
        super().__init__(NAME, session_name)
        self._api = api

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
        pool = get_pool(job.pool, load_pools())
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
        state, message = job_state(resource)
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

    def list(self, cfg: Mapping[str, CfgVal] | None = None) -> list[ListAppResponse]:
        """Return the TrainJobs of this scheduler in one namespace."""
        namespace = str((cfg or {}).get("namespace") or "default")
        return [
            ListAppResponse(
                app_id=f"{namespace}:{resource['metadata']['name']}", state=job_state(resource)[0]
            )
            for resource in self.api.find(TRAIN_JOB, namespace, _MANAGED)
        ]

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
        namespace, name = parse_app_id(app_id)
        selector = (
            f"jobset.sigs.k8s.io/jobset-name={name},"
            f"jobset.sigs.k8s.io/replicatedjob-name={role_name},"
            f"batch.kubernetes.io/job-completion-index={k}"
        )
        pods = self.api.pods(namespace, selector)
        if not pods:
            raise ClusterError(
                f"node {k} of {app_id} has no pod",
                expected="a job that was started",
                action="look at its state; a queue may hold it back",
            )
        newest = max(pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")))
        lines = self.api.log(namespace, newest["metadata"]["name"], role_name, follow=should_tail)
        ended = (f"{line}\n" for line in lines)
        return filter_regex(regex, ended) if regex else ended


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


def job_state(resource: Mapping[str, Any]) -> tuple[AppState, str]:
    """Return a TrainJob's state as TorchX names it, and its condition's message."""
    status = resource.get("status") or {}
    true = {c["type"]: c for c in status.get("conditions", []) if c["status"] == "True"}
    for kind, state in (
        ("Failed", AppState.FAILED),
        ("Complete", AppState.SUCCEEDED),
        ("Suspended", AppState.PENDING),
    ):
        if kind in true:
            return state, str(true[kind].get("message", ""))
    running = sum(int(j.get("active", 0)) for j in status.get("jobsStatus", []))
    return (AppState.RUNNING, "") if running else (AppState.PENDING, "")


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
