"""Data workflows: one stage over all shards of a dataset, as an Argo Workflow built with Hera.

A pod owns a range of shards. It writes each output atomically, and skips those that exist: a retry,
a lost spot node and two pods on one range are harmless.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from clipmill.cluster.api import WORKFLOW, ClusterApi
from clipmill.cluster.constants import (
    CONTAINER_SECURITY,
    DATA_IMAGE,
    DOMAIN,
    METRICS_PORT,
    POD_SECURITY,
    STORE_SECRET,
)
from clipmill.cluster.pools import PoolConfig, container_resources, get_pool, load_pools
from clipmill.config import Config, digest_json
from clipmill.errors import EXIT_USER_ERROR, ClusterError, ConfigError
from clipmill.stage_records import METRICS_VARIABLE

if TYPE_CHECKING:
    from hera.workflows import Container

PLANNED = "{{inputs.parameters.planned}}"
"""Argo's expression for the plan's output, the URI of the planned dataset."""
_PLAN, _PROCESS, _FINALIZE = "plan", "process-range", "finalize"
"""Steps of a workflow."""
_PLANNED = "planned"
_WEEK_SECONDS = 7 * 24 * 3600
_ENDED = ("Succeeded", "Failed", "Error")


@dataclass(frozen=True, kw_only=True, slots=True)
class DataWorkflowConfig(Config):
    """A stage over all shards of a dataset."""

    stage: Literal["shard", "recaption", "score"]
    """Name of the stage."""
    subject: str
    """URI of the dataset; for ``shard``, the source of the plan."""
    arguments: tuple[str, ...] = ()
    """Further arguments of the stage's command, such as ``("--captioner", URI)``."""
    pool: str = "cpu"
    """Name of the pool."""
    shards_per_pod: int = 32
    """Shards that a pod owns; a pod takes seconds to start, so not too few."""
    num_workers: int = 64
    """Pods of ``shard``, for which the number of shards isn't known before the plan."""
    parallelism: int = 64
    """Most pods at once."""
    retries: int = 10
    """Retries of a range; spot nodes may be preempted."""
    namespace: str = "default"
    """Namespace of the workflow."""
    service_account: str = "clipmill-data"
    """Service account of the pods."""
    image: str = DATA_IMAGE
    """Image of the pods."""

    def __post_init__(self) -> None:
        """Refuse values out of range (ConfigError)."""
        for name in ("shards_per_pod", "num_workers", "parallelism"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"{name} was {getattr(self, name)}",
                    expected="at least 1",
                    action=f"set {name} to 1 or more",
                )


def ranges(num_shards: int, shards_per_pod: int) -> list[tuple[int, int]]:
    """Return each pod's first shard, and the one to stop before."""
    return [
        (start, min(start + shards_per_pod, num_shards))
        for start in range(0, num_shards, shards_per_pod)
    ]


def num_shards(config: DataWorkflowConfig) -> int:
    """Return the number of the dataset's shards; 0 for ``shard``, whose plan decides it.

    Raises:
        NotFoundError: there is no such dataset.
    """
    if config.stage == "shard":
        return 0
    from clipmill.data.dataset import Dataset

    return len(Dataset.open(config.subject).shards)


def part_arguments(config: DataWorkflowConfig, num_shards: int) -> list[list[str]]:
    """Return the arguments that give each pod its part."""
    if config.stage == "shard":
        return [["--worker", f"{i}/{config.num_workers}"] for i in range(config.num_workers)]
    return [
        ["--start", str(start), "--stop", str(stop)]
        for start, stop in ranges(num_shards, config.shards_per_pod)
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
    full = ["data", config.stage, config.subject, *config.arguments]
    # Without a range the command finds all shards' files and lists them in the layer.
    return [], full, full


def data_workflow(config: DataWorkflowConfig, num_shards: int) -> dict[str, Any]:
    """Return the Workflow; ``shard`` ignores ``num_shards``, which its plan decides."""
    pool = get_pool(config.pool, load_pools())
    before, part, after = stage_commands(config)
    split = part_arguments(config, num_shards)
    names = [flag.removeprefix("--") for flag in split[0][::2]] if split else []
    items = [dict(zip(names, values[1::2], strict=True)) for values in split]
    containers = [_container(_PLAN, config, pool, before)] if before else []
    containers += [
        _container(_PROCESS, config, pool, part, inputs=names),
        _container(_FINALIZE, config, pool, after),
    ]
    return _workflow(config, pool, containers, items)


def submit_data_workflow(config: DataWorkflowConfig, num_shards: int, *, api: ClusterApi) -> str:
    """Submit the workflow, and return its name."""
    workflow = api.create(WORKFLOW, config.namespace, data_workflow(config, num_shards))
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


def workflow_status(namespace: str, name: str, *, api: ClusterApi) -> tuple[str, str]:
    """Return a workflow's phase and progress (``done/all``); ClusterError where there is none."""
    workflow = api.get(WORKFLOW, namespace, name)
    if workflow is None:
        raise ClusterError(
            f"there is no workflow {namespace}/{name}",
            expected="the name of one that was submitted within a week",
            action="see `kubectl get workflows`",
        )
    status = workflow.get("status") or {}
    return status.get("phase", "Pending"), status.get("progress", "0/0")


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
        phase, progress = workflow_status(namespace, name, api=api)
        done, _, total = progress.partition("/")
        if report is not None:
            report(int(done), int(total or 0), "pods")
        if phase == "Succeeded":
            return
        if phase in _ENDED:
            raise ClusterError(
                f"workflow {namespace}/{name} ended as {phase} after {progress} pods",
                expected="Succeeded",
                action="read its failed pods' logs; a new submission resumes where it ended",
            )
        time.sleep(poll_interval_seconds)


def suspend_workflow(namespace: str, name: str, *, api: ClusterApi, suspended: bool = True) -> None:
    """Suspend a workflow, or resume it; running pods finish their range."""
    workflow_status(namespace, name, api=api)
    api.patch(WORKFLOW, namespace, name, {"spec": {"suspend": suspended}})


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

    planned = any(_PLANNED in text for text in command)
    parameters = [*inputs, *([_PLANNED] if planned else [])]
    options = [t for i in inputs for t in (f"--{i}", f"{{{{inputs.parameters.{i}}}}}")]
    # An empty result: Argo memoizes only templates with outputs.
    done = Parameter(name="done", value_from=m.ValueFrom(path="/tmp/done", default="yes"))  # noqa: S108
    return Container(
        name=name,
        image=config.image,
        command=["clipmill"],
        args=[*command, *options],
        inputs=[Parameter(name=p) for p in parameters],
        outputs=[done] if inputs else None,
        env=[m.EnvVar(name=METRICS_VARIABLE, value=f"0.0.0.0:{METRICS_PORT}")],
        ports=[m.ContainerPort(name="metrics", container_port=METRICS_PORT)],
        env_from=[m.EnvFromSource(secret_ref=m.SecretEnvSource(name=STORE_SECRET, optional=True))],
        resources=m.ResourceRequirements(**container_resources(pool)),
        security_context=m.SecurityContext.model_validate(CONTAINER_SECURITY),
        volume_mounts=[m.VolumeMount(name="tmp", mount_path="/tmp")],  # noqa: S108  # the pod's own
        memoize=_memoize(config, command, parameters) if inputs else None,
        retry_strategy=RetryStrategy(
            limit=config.retries,
            retry_policy="Always",
            expression=f"asInt(lastRetry.exitCode) != {EXIT_USER_ERROR}",
            backoff=m.Backoff(duration="30s", factor=2, cap="10m"),
            affinity=m.RetryAffinity(node_anti_affinity={}),
        ),
    )


def _workflow(
    config: DataWorkflowConfig,
    pool: PoolConfig,
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
        security_context=m.PodSecurityContext.model_validate(POD_SECURITY),
        volumes=[m.Volume(name="tmp", empty_dir=m.EmptyDirVolumeSource())],
        pod_gc=m.PodGC(strategy="OnPodSuccess"),
        ttl_strategy=m.TTLStrategy(seconds_after_completion=_WEEK_SECONDS),
    ).to_dict()
    return manifest


def _memoize(config: DataWorkflowConfig, command: Sequence[str], parameters: Sequence[str]) -> Any:
    """Return a cache key of the work, equal in any workflow: a URI holds its dataset's digest."""
    from hera.workflows import models as m

    what = digest_json([config.stage, config.subject, *config.arguments, *command])[:20]
    hashes = [
        f"{{{{=sprig.trunc(16, sprig.sha256sum(inputs.parameters.{p}))}}}}" for p in parameters
    ]
    cache = m.Cache(config_map=m.LocalObjectReference(name=f"clipmill-cache-{config.stage}"))
    return m.Memoize(key="-".join([what, *hashes]), max_age="720h", cache=cache)
