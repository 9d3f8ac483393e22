"""Steps that several pipelines share, their inputs, and the placement of tasks on a cluster.

A step is a function that adds its tasks to the pipeline that is being built. Its optional arguments
become inputs of that pipeline, and so are declared once.

Pools are named by their purpose. The chart replaces them by the node labels, taints and GPUs of its
own table of pools, so no cluster's names are compiled in. On one machine placement is ignored.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from clipmill.components.data.load_or_generate_pairs import load_or_generate_pairs
from clipmill.components.data.recaption import recaption
from clipmill.components.data.score import score
from clipmill.components.data.select import select
from clipmill.components.data.shard import shard
from clipmill.components.training.pretrain import pretrain
from clipmill.components.training.train_captioner import train_captioner
from kfp import dsl, kubernetes

from clipmill.cluster.constants import (
    DOMAIN,
    METRICS_LABEL,
    METRICS_PORT,
    POOL_LABEL,
    STORE_SECRET,
    STORE_VARIABLES,
)
from clipmill.cluster.pools import get_pool, load_pools
from clipmill.stage_records import METRICS_VARIABLE

PoolName = Literal["cpu", "gpu"]
"""Pools of the pipelines' tasks."""

_RETRIES = 3

Channel = Any
"""Output of a task, or input of a pipeline: kfp's PipelineChannel."""

Step = Any
"""A function that adds tasks, or a pipeline that is used as a component."""


def on_pool(task: dsl.PipelineTask, pool: PoolName, *, cached: bool = True) -> dsl.PipelineTask:
    """Place ``task`` on nodes of the pool, with memory, secret, metrics and retries; return it.

    ``cached=False`` runs it each time: for tasks that read or change things that no digest names.
    All others take URIs that hold digests, so that equal inputs mean equal outputs.
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
    # As an annotation, which only a cluster has: tasks on one machine would share the port.
    address = f"{DOMAIN}/metrics-address"
    kubernetes.add_pod_annotation(task, address, f"0.0.0.0:{METRICS_PORT}")
    kubernetes.use_field_path_as_env(task, METRICS_VARIABLE, f"metadata.annotations['{address}']")
    kubernetes.set_security_context(task, run_as_non_root=True)
    task.set_cpu_request(nodes.cpu_quantity).set_cpu_limit(nodes.cpu_quantity)
    memory = f"{nodes.memory_gibibytes}Gi"
    task.set_memory_request(memory).set_memory_limit(memory)
    if nodes.gpus:
        task.set_accelerator_type(nodes.gpu_resource).set_accelerator_limit(nodes.gpus)
    task.set_caching_options(enable_caching=cached)
    # A stage's work is idempotent: a retry resumes where the first try ended.
    return task.set_retry(
        _RETRIES, backoff_duration="60s", backoff_factor=2, backoff_max_duration="3600s"
    )


def with_inputs_of(*steps: Step) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that adds the optional inputs of ``steps`` to a pipeline's function.

    The function gets their values as ``**given``, and passes them on with :func:`inputs_for`. It
    wires a step's required inputs itself; these aren't inputs of the pipeline.
    """

    def extend(function: Callable[..., Any]) -> Callable[..., Any]:
        own = inspect.signature(function)
        inputs = {n: p for n, p in own.parameters.items() if p.kind is not p.VAR_KEYWORD}
        taken = dict(inputs)
        for step in steps:
            for name, parameter in _optional(step).items():
                known = inputs.setdefault(name, parameter)
                assert name in taken or known == parameter, f"two steps differ about {name}"
        ordered = sorted(inputs.values(), key=lambda p: p.default is not p.empty)

        @functools.wraps(function)
        def extended(*values: Any) -> Any:
            return function(**dict(zip((p.name for p in ordered), values, strict=True)))

        extended.__signature__ = own.replace(parameters=ordered)  # type: ignore[attr-defined]  # KFP reads it
        return extended

    return extend


def inputs_for(step: Step, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of a pipeline's inputs that ``step`` takes."""
    return {name: given[name] for name in _optional(step) if name in given}


def _optional(step: Step) -> dict[str, inspect.Parameter]:
    function: Any = getattr(step, "pipeline_func", step)
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p for p in parameters if p.default is not p.empty}


class Sharded(NamedTuple):
    """Datasets, and labeled data."""

    dataset: Channel
    """To pretrain on."""
    captioning: Channel
    """With good captions, for a captioner."""
    ade20k: Channel
    """Scenes with class masks."""
    nyu: Channel
    """Scenes with depth."""


class Captioned(NamedTuple):
    """Synthetic captions of a dataset."""

    written: Any
    """The task that writes their layer, and returns its name."""
    captioner: Channel
    """The captioner that wrote them."""


def sharded(
    store: Channel,
    run: Channel,
    pairs: str = "",
    scenes_recipe: str = "scenes-tiny",
    scenes_overrides: list = [],  # noqa: B006  # KFP reads the default, nothing changes it
    shards_recipe: str = "shards-tiny",
) -> Sharded:
    """Shard ``pairs``, or those of generated scenes, and generate scenes for all else."""
    at = {"store": store, "run": run}
    generated = load_or_generate_pairs(
        pairs=pairs, recipe=scenes_recipe, overrides=scenes_overrides, **at
    )
    data = on_pool(generated, "cpu").outputs
    shards = {"recipe": shards_recipe, "overrides": [], **at}
    # What lies at a URI of raw data may have changed since.
    dataset = on_pool(shard(source=data["pairs"], label="pairs", **shards), "cpu", cached=False)
    captioning = on_pool(shard(source=data["captioner_pairs"], label="captioning", **shards), "cpu")
    captioning.set_display_name("shard for captioning")
    outputs = (dataset.outputs["Output"], captioning.outputs["Output"])
    return Sharded(*outputs, ade20k=data["ade20k"], nyu=data["nyu"])


def captioned(
    store: Channel,
    run: Channel,
    dataset: Channel,
    captioning: Channel,
    captioner: str = "",
    captioner_recipe: str = "coca-tiny",
    captioner_overrides: list = [],  # noqa: B006  # as above
    recaption_recipe: str = "recaption-tiny",
    recaption_overrides: list = [],  # noqa: B006  # as above
) -> Captioned:
    """Caption ``dataset``'s images, by ``captioner`` or by one trained on ``captioning``."""
    at = {"store": store, "run": run}
    trained = train_captioner(
        dataset=captioning,
        recipe=captioner_recipe,
        overrides=captioner_overrides,
        captioner=captioner,
        **at,
    )
    chosen = on_pool(trained, "gpu").outputs["Output"]
    written = recaption(
        dataset=dataset,
        captioner=chosen,
        recipe=recaption_recipe,
        overrides=recaption_overrides,
        **at,
    )
    return Captioned(written=on_pool(written, "gpu"), captioner=chosen)


def pretrained(
    store: Channel,
    run: Channel,
    dataset: Channel,
    written: Any,
    score_recipe: str = "score-basic",
    score_overrides: list = [],  # noqa: B006  # as above
    select_recipe: str = "select-tiny",
    select_overrides: list = [],  # noqa: B006  # as above
    captions: str = "both",
    clip_recipe: str = "clip-tiny",
    clip_overrides: list = [],  # noqa: B006  # as above
) -> Any:
    """Score and select ``dataset``'s samples, and pretrain on those; the task that does.

    ``written`` is the task that captioned them: its captions are scored too.
    """
    at = {"store": store, "run": run}
    scored = score(dataset=dataset, recipe=score_recipe, overrides=score_overrides, **at)
    rule = select(
        dataset=dataset,
        layers=on_pool(scored.after(written), "cpu").output,
        recipe=select_recipe,
        overrides=select_overrides,
        **at,
    )
    encoder = pretrain(
        dataset=dataset,
        captions=captions,
        layer=written.output,
        select=on_pool(rule, "cpu").output,
        recipe=clip_recipe,
        overrides=clip_overrides,
        **at,
    )
    return on_pool(encoder, "gpu")
