"""Data workflows: one stage over all shards of a dataset, as an Argo Workflow built with Hera.

A pod owns a range of shards. It writes each output atomically, and skips those that exist: a retry,
a lost spot node and two pods on one range are harmless, and nothing but the store remembers what is
done. The pods need no right but Argo's own (``workflowtaskresults``), and no artifact repository.
"""

import base64
import gzip
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from clipmill.cluster.api import WORKFLOW, ClusterApi
from clipmill.cluster.constants import (
    CONTAINER_SECURITY,
    DOMAIN,
    METRICS_PORT,
    STORE_SECRET,
    TRACKING_SECRET,
)
from clipmill.cluster.pools import (
    Installation,
    PoolConfig,
    container_resources,
    load_installation,
)
from clipmill.config import Config
from clipmill.errors import EXIT_USER_ERROR, ClusterError, ConfigError
from clipmill.stage_records import METRICS_VARIABLE

if TYPE_CHECKING:
    from hera.workflows import Container

PLANNED = "{{inputs.parameters.planned}}"
"""Argo's expression for the plan's output, the URI of the planned dataset."""
_PLAN, _PROCESS, _FINALIZE = "plan", "process-range", "finalize"
"""Steps of a workflow."""
_PLANNED = "planned"
_PLANNED_STAGES = ("shard", "predict")
_WEEK_SECONDS = 7 * 24 * 3600
_ENDED = ("Succeeded", "Failed", "Error")
_MAX_NODES = 7000
"""Most entries of a workflow's ``status.nodes``: one per part, and one per attempt at it.

Argo stops a workflow whose object exceeds 1 MiB. An entry takes about 105 bytes there once Argo has
compressed them, and 45 more in the versions that list the finished ones separately.
"""
_MAX_REASON = 200
"""Longest text of a reason in a workflow's status, characters."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataWorkflowConfig(Config):
    """A stage over all shards of a dataset."""

    stage: Literal["shard", "recaption", "score", "predict"]
    """Name of the stage."""
    subject: str
    """URI of the dataset; for ``shard``, the source of the plan, and for ``predict`` the model."""
    arguments: tuple[str, ...] = ()
    """Further arguments of the stage's command, such as ``("--captioner", URI)``."""
    pool: str = "cpu"
    """Name of the pool."""
    shards_per_pod: int = 32
    """Fewest shards that a pod owns, as it takes seconds to start; more for large datasets, whose
    workflow would otherwise exceed Argo's limit of 1 MiB."""
    num_workers: int = 64
    """Pods of ``shard`` and ``predict``, whose number of shards isn't known before the plan."""
    parallelism: int = 64
    """Most pods at once."""
    retries: int = 5
    """Retries of a range; spot nodes may be preempted."""
    namespace: str = "default"
    """Namespace of the workflow."""
    service_account: str = "clipmill-data"
    """Service account of the pods."""
    image: str = ""
    """Image of the pods; empty for the installed one."""

    def __post_init__(self) -> None:
        """Refuse values out of range (ConfigError)."""
        for name, least in (
            ("shards_per_pod", 1),
            ("num_workers", 1),
            ("parallelism", 1),
            ("retries", 0),
        ):
            if getattr(self, name) < least:
                raise ConfigError(
                    f"{name} was {getattr(self, name)}",
                    expected=f"at least {least}",
                    action=f"set {name} to {least} or more",
                )
        if self.max_parts < 1:
            raise ConfigError(
                f"retries was {self.retries}",
                expected=f"at most {_MAX_NODES - 2}",
                action="set retries to a small number, such as 5",
            )
        if self.num_workers > self.max_parts:
            raise ConfigError(
                f"num_workers was {self.num_workers} with {self.retries} retries",
                expected=f"at most {self.max_parts}, since Argo limits a workflow to 1 MiB",
                action=f"set num_workers to {self.max_parts} or less, or retries to less",
            )

    @property
    def max_parts(self) -> int:
        """Most parts that a workflow can have, each attempted ``retries`` + 1 times."""
        return _MAX_NODES // (self.retries + 2)


def ranges(num_shards: int, shards_per_pod: int) -> list[tuple[int, int]]:
    """Return each pod's first shard, and the one to stop before."""
    return [
        (start, min(start + shards_per_pod, num_shards))
        for start in range(0, num_shards, shards_per_pod)
    ]


def num_shards(config: DataWorkflowConfig) -> int:
    """Return the number of the dataset's shards; 0 for stages whose plan decides it.

    Raises:
        NotFoundError: there is no such dataset.
    """
    if config.stage in _PLANNED_STAGES:
        return 0
    from clipmill.data.dataset import Dataset

    return len(Dataset.open(config.subject).shards)


def part_arguments(config: DataWorkflowConfig, num_shards: int) -> list[list[str]]:
    """Return the arguments that give each pod its part."""
    if config.stage in _PLANNED_STAGES:
        return [["--worker", f"{i}/{config.num_workers}"] for i in range(config.num_workers)]
    shards_per_pod = max(config.shards_per_pod, math.ceil(num_shards / config.max_parts))
    return [
        ["--start", str(start), "--stop", str(stop)]
        for start, stop in ranges(num_shards, shards_per_pod)
    ]


def stage_commands(config: DataWorkflowConfig) -> tuple[list[str], list[str], list[str]]:
    """Return the commands before the parts (or none), of each part, and after the parts.

    Each is arguments of ``clipmill``; ``PLANNED`` in them is replaced by the first one's output.
    """
    if config.stage == "shard":
        return (
            ["data", "plan", config.subject, *config.arguments],
            ["data", "shard", "--plan", PLANNED],
            ["data", "finalize", PLANNED],
        )
    if config.stage == "predict":
        planned = ["predict", "--plan", PLANNED]
        plan = ["predict", config.subject, *config.arguments, "--plan-only"]
        return plan, planned, planned
    full = ["data", config.stage, config.subject, *config.arguments]
    # Without a range the command finds all shards' files and lists them in the layer.
    return [], full, full


def data_workflow(
    config: DataWorkflowConfig, num_shards: int, installation: Installation
) -> dict[str, Any]:
    """Return the Workflow; ``num_shards`` is 0 for stages whose plan decides it."""
    config = replace(config, image=config.image or installation.image("data"))
    pool = installation.pool(config.pool)
    before, part, after = stage_commands(config)
    split = part_arguments(config, num_shards)
    names = [flag.removeprefix("--") for flag in split[0][::2]] if split else []
    items = [dict(zip(names, values[1::2], strict=True)) for values in split]
    containers = [_container(_PLAN, config, pool, before)] if before else []
    containers += [
        _container(_PROCESS, config, pool, part, inputs=names),
        _container(_FINALIZE, config, pool, after),
    ]
    return _workflow(config, pool, installation.pod_security, containers, items)


def submit_data_workflow(config: DataWorkflowConfig, num_shards: int, *, api: ClusterApi) -> str:
    """Submit the workflow with the namespace's pools and image, and return its name."""
    manifest = data_workflow(config, num_shards, load_installation(config.namespace, api=api))
    workflow = api.create(WORKFLOW, config.namespace, manifest)
    return str(workflow["metadata"]["name"])


def run_data_workflow(
    stage: str,
    dataset: str,
    arguments: Sequence[str],
    *,
    pool: str,
    namespace: str,
    api: ClusterApi | None = None,
    poll_interval_seconds: float = 30.0,
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
    name = submit_data_workflow(config, count, api=api)
    wait_for_workflow(namespace, name, api=api, poll_interval_seconds=poll_interval_seconds)


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkflowStatus:
    """Progress of a data workflow."""

    phase: str
    """Argo's phase, ``Pending`` before its controller has seen the workflow."""
    total: int
    """Pods that have to succeed, fixed from the start; retries don't add to it."""
    done: int
    """Pods that succeeded."""
    failed: int
    """Ranges that failed for good, their retries included."""
    reasons: dict[str, int]
    """Number of failed attempts and of waiting pods by reason, most frequent first."""

    @property
    def left(self) -> int:
        """Pods that haven't ended."""
        return self.total - self.done - self.failed

    def __str__(self) -> str:
        """Return the counts in one line, and a line for each reason."""
        counts = f"{self.done} of {self.total} pods done, {self.failed} failed, {self.left} left"
        reasons = [f"  {count} x {reason}" for reason, count in self.reasons.items()]
        return "\n".join([f"{self.phase}: {counts}", *reasons])


def workflow_status(namespace: str, name: str, *, api: ClusterApi) -> WorkflowStatus:
    """Return a workflow's progress; ClusterError where there is no such workflow."""
    workflow = api.get(WORKFLOW, namespace, name)
    if workflow is None:
        raise ClusterError(
            f"there is no workflow {namespace}/{name}",
            expected="the name of one that was submitted within a week",
            action="see `kubectl get workflows`",
        )
    status = workflow.get("status") or {}
    nodes = _nodes(status)
    reasons = Counter(
        f"{node.get('templateName')} {node['phase'].lower()}: {_first_line(node['message'])}"
        for node in nodes
        if node["type"] == "Pod"
        and node.get("phase") in ("Pending", "Failed", "Error")
        and node.get("message")
    )
    phase = status.get("phase", "Pending")
    if not reasons and phase != "Succeeded" and status.get("message"):
        reasons[_first_line(status["message"])] += 1
    return WorkflowStatus(
        phase=phase,
        total=_num_pods(workflow),
        done=int(status.get("progress", "0/0").partition("/")[0]),
        failed=sum(
            node["type"] == "Retry" and node.get("phase") in ("Failed", "Error") for node in nodes
        ),
        reasons=dict(reasons.most_common()),
    )


def wait_for_workflow(
    namespace: str,
    name: str,
    *,
    api: ClusterApi,
    poll_interval_seconds: float = 30.0,
    report: Callable[[int, int, str], None] | None = None,
) -> None:
    """Return when the workflow has succeeded.

    Raises:
        ClusterError: it failed, or is gone.
    """
    while True:
        status = workflow_status(namespace, name, api=api)
        if report is not None:
            report(status.done, status.total, "pods")
        if status.phase == "Succeeded":
            return
        if status.phase in _ENDED:
            raise ClusterError(
                f"workflow {namespace}/{name} ended as {status}",
                expected="Succeeded",
                action="read its failed pods' logs; a new submission resumes where it ended",
            )
        time.sleep(poll_interval_seconds)


def suspend_workflow(namespace: str, name: str, *, api: ClusterApi, suspended: bool = True) -> None:
    """Suspend a workflow, or resume it; running pods finish their range."""
    workflow_status(namespace, name, api=api)
    api.patch(WORKFLOW, namespace, name, {"spec": {"suspend": suspended}})


def _nodes(status: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the entries of a workflow's status; none where Argo keeps them in a database."""
    packed = base64.b64decode(status.get("compressedNodes") or "")
    # Argo's default; other algorithms are an option of its controller.
    if packed.startswith(b"\x1f\x8b"):
        nodes: dict[str, dict[str, Any]] = json.loads(gzip.decompress(packed))
        return list(nodes.values())
    return list((status.get("nodes") or {}).values())


def _num_pods(workflow: Mapping[str, Any]) -> int:
    """Return the number of pods of a workflow without its retries."""
    (graph,) = [t["dag"] for t in workflow["spec"]["templates"] if "dag" in t]
    return sum(len(task.get("withItems", [None])) for task in graph["tasks"])


def _first_line(message: str) -> str:
    return message.partition("\n")[0][:_MAX_REASON]


def _container(
    name: str,
    config: DataWorkflowConfig,
    pool: PoolConfig,
    command: Sequence[str],
    inputs: Sequence[str] = (),
) -> "Container":
    """Return a container of a ``clipmill`` command; ``inputs`` are parameters and its options."""
    from hera.workflows import Container, Parameter, RetryStrategy
    from hera.workflows import models as m

    planned = PLANNED in command
    parameters = [*inputs, *([_PLANNED] if planned else [])]
    options = [t for i in inputs for t in (f"--{i}", f"{{{{inputs.parameters.{i}}}}}")]
    return Container(
        name=name,
        image=config.image,
        command=["clipmill"],
        args=[*command, *options],
        inputs=[Parameter(name=p) for p in parameters],
        env=[m.EnvVar(name=METRICS_VARIABLE, value=f"0.0.0.0:{METRICS_PORT}")],
        ports=[m.ContainerPort(name="metrics", container_port=METRICS_PORT)],
        env_from=[
            m.EnvFromSource(secret_ref=m.SecretEnvSource(name=secret, optional=True))
            for secret in (STORE_SECRET, TRACKING_SECRET)
        ],
        resources=m.ResourceRequirements(**container_resources(pool)),
        security_context=m.SecurityContext.model_validate(CONTAINER_SECURITY),
        volume_mounts=[m.VolumeMount(name="tmp", mount_path="/tmp")],  # noqa: S108  # the pod's own
        # Where the controller's artifact repository archives logs, a workflow can't decline, and
        # pods wait for the repository's secret. A location that is none prevents both.
        archive_location=m.ArtifactLocation(archive_logs=False, raw=m.RawArtifact(data="none")),
        retry_strategy=RetryStrategy(
            limit=config.retries,
            retry_policy="Always",
            expression=f"asInt(lastRetry.exitCode) != {EXIT_USER_ERROR}",
            # No anti-affinity: Argo's is a hard rule, which a pool of one node can't meet.
            backoff=m.Backoff(duration="30s", factor=2, cap="10m"),
        ),
    )


def _workflow(
    config: DataWorkflowConfig,
    pool: PoolConfig,
    pod_security: Mapping[str, Any],
    containers: Sequence["Container"],
    items: Sequence[dict[str, str]],
) -> dict[str, Any]:
    """Return the Workflow: all steps one after the other, ``process-range`` once for each item."""
    from hera.workflows import DAG, Parameter, Task, Workflow
    from hera.workflows import models as m

    by_name = {c.name: c for c in containers}
    planned = [Parameter(name=_PLANNED, value=f"{{{{tasks.{_PLAN}.outputs.result}}}}")]
    planned = planned if _PLAN in by_name else []
    each = [Parameter(name=n, value=f"{{{{item.{n}}}}}") for n in (items[0] if items else {})]
    with DAG(name="stage") as graph:
        tasks = [Task(name=_PLAN, template=_PLAN)] if planned else []
        tasks.append(
            Task(
                name=_PROCESS,
                template=_PROCESS,
                arguments=[*each, *planned],
                with_items=list(items),
            )
        )
        tasks.append(Task(name=_FINALIZE, template=_FINALIZE, arguments=planned))
        for first, second in pairwise(tasks):
            first >> second
    labels = {"app.kubernetes.io/name": "clipmill", f"{DOMAIN}/stage": config.stage}
    manifest: dict[str, Any] = Workflow(
        generate_name=f"clipmill-{config.stage}-",
        namespace=config.namespace,
        labels=labels,
        pod_metadata=m.Metadata(labels=labels | {"app.kubernetes.io/component": "data"}),
        entrypoint="stage",
        templates=[*containers, graph],
        parallelism=config.parallelism,
        service_account_name=config.service_account,
        node_selector=dict(pool.node_selector) or None,
        tolerations=[m.Toleration.model_validate(t) for t in pool.tolerations] or None,
        security_context=m.PodSecurityContext.model_validate(pod_security),
        volumes=[m.Volume(name="tmp", empty_dir=m.EmptyDirVolumeSource())],
        pod_gc=m.PodGC(strategy="OnPodSuccess"),
        ttl_strategy=m.TTLStrategy(seconds_after_completion=_WEEK_SECONDS),
    ).to_dict()
    return manifest
