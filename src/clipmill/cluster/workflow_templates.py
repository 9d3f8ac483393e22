"""Hera's side of a data workflow: its containers, and the order in which they run."""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from clipmill.cluster.names import (
    CONTAINER_SECURITY,
    DOMAIN,
    METRICS_PORT,
    POD_SECURITY,
    STORE_SECRET,
)
from clipmill.cluster.pools import PoolConfig, container_resources
from clipmill.config import digest_json
from clipmill.stage_records import METRICS_VARIABLE

if TYPE_CHECKING:
    from hera.workflows import Container

    from clipmill.cluster.dataplane import DataWorkflowConfig

USER_ERROR_CODE = 2
"""Exit code of ``clipmill`` for what no retry mends."""
_PLANNED = "planned"
_WEEK_SECONDS = 7 * 24 * 3600


def container(
    name: str,
    config: "DataWorkflowConfig",
    pool: PoolConfig,
    command: Sequence[str],
    inputs: Sequence[str] = (),
) -> "Container":
    """A ``clipmill`` command; each of ``inputs`` is a parameter, and an option of its name."""
    from hera.workflows import Container, Parameter, RetryStrategy
    from hera.workflows import models as m

    planned = any(_PLANNED in text for text in command)
    parameters = [*inputs, *([_PLANNED] if planned else [])]
    options = [t for i in inputs for t in (f"--{i}", f"{{{{inputs.parameters.{i}}}}}")]
    # An empty result: Argo memoises only what has outputs.
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
        memoize=_memory(config, command, parameters) if inputs else None,
        retry_strategy=RetryStrategy(
            limit=config.retries,
            retry_policy="Always",
            expression=f"asInt(lastRetry.exitCode) != {USER_ERROR_CODE}",
            backoff=m.Backoff(duration="30s", factor=2, cap="10m"),
            affinity=m.RetryAffinity(node_anti_affinity={}),
        ),
    )


def workflow(
    config: "DataWorkflowConfig",
    pool: PoolConfig,
    containers: Sequence["Container"],
    items: Sequence[dict[str, str]],
) -> dict[str, Any]:
    """All containers one after the other, ``part`` once for each item."""
    from hera.workflows import DAG, Parameter, Task, Workflow
    from hera.workflows import models as m

    by_name = {c.name: c for c in containers}
    planned = [Parameter(name=_PLANNED, value="{{tasks.plan.outputs.result}}")]
    planned = planned if "plan" in by_name else []
    each = [Parameter(name=n, value=f"{{{{item.{n}}}}}") for n in (items[0] if items else {})]
    with DAG(name="all") as graph:
        tasks = [Task(name="plan", template="plan")] if planned else []
        tasks.append(
            Task(name="part", template="part", arguments=[*each, *planned], with_items=list(items))
        )
        tasks.append(Task(name="finish", template="finish", arguments=planned))
        for first, second in pairwise(tasks):
            first >> second
    labels = {"app.kubernetes.io/name": "clipmill", f"{DOMAIN}/stage": config.stage}
    made: dict[str, Any] = Workflow(
        generate_name=f"clipmill-{config.stage}-",
        namespace=config.namespace,
        labels=labels,
        pod_metadata=m.Metadata(labels=labels | {"app.kubernetes.io/component": "data"}),
        entrypoint="all",
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
    return made


def _memory(config: "DataWorkflowConfig", command: Sequence[str], parameters: Sequence[str]) -> Any:
    """Equal work has an equal key in any workflow: a subject's URI holds its digest."""
    from hera.workflows import models as m

    what = digest_json([config.stage, config.subject, *config.arguments, *command])[:20]
    hashes = [
        f"{{{{=sprig.trunc(16, sprig.sha256sum(inputs.parameters.{p}))}}}}" for p in parameters
    ]
    cache = m.Cache(config_map=m.LocalObjectReference(name=f"clipmill-memo-{config.stage}"))
    return m.Memoize(key="-".join([what, *hashes]), max_age="720h", cache=cache)
