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
    TRACKING_SECRET,
    TRACKING_VARIABLES,
)
from clipmill.cluster.pools import get_pool, load_pools
from clipmill.cost import PRICE_VARIABLE
from clipmill.engine.kubernetes import POD_VARIABLES
from clipmill.stage_records import METRICS_VARIABLE, RUN_VARIABLE

PoolName = Literal["cpu", "gpu"]
"""Pools of the pipelines' tasks."""

_RETRIES = 3

Channel = Any
"""Output of a task, or input of a pipeline: kfp's PipelineChannel."""

Step = Any
"""A function that adds tasks, or a pipeline that is used as a component."""


def _require_container(task: dsl.PipelineTask) -> None:
    if task.container_spec is None:
        raise ValueError("resources can only be set on a task that is one container")


# For a name in the message, KFP 2.17's own reads the source of every caller, and looks through all
# modules for it, each time: 13 s for these pipelines, two minutes where PyTorch is loaded.
dsl.PipelineTask._ensure_container_spec_exists = _require_container  # noqa: SLF001


def on_pool(
    task: dsl.PipelineTask, pool: PoolName, *, cached: bool = True, is_light: bool = False
) -> dsl.PipelineTask:
    """Place ``task`` on nodes of the pool, with memory, secret, metrics and retries; return it.

    ``cached=False`` runs it each time: for tasks that read or change things that no digest names.
    All others take URIs that hold digests, so that equal inputs mean equal outputs.
    ``is_light`` is for tasks that decide, or submit and wait: they leave the node to those that
    work, and to the endpoints and jobs for which they wait.
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
    for secret, names in ((STORE_SECRET, STORE_VARIABLES), (TRACKING_SECRET, TRACKING_VARIABLES)):
        kubernetes.use_secret_as_env(task, secret, {name: name for name in names}, optional=True)
    if nodes.device_price:
        task.set_env_variable(PRICE_VARIABLE, nodes.device_price)
    kubernetes.add_pod_label(task, METRICS_LABEL, "pipeline")
    # As an annotation, which only a cluster has: tasks on one machine would share the port.
    address = f"{DOMAIN}/metrics-address"
    kubernetes.add_pod_annotation(task, address, f"0.0.0.0:{METRICS_PORT}")
    kubernetes.use_field_path_as_env(task, METRICS_VARIABLE, f"metadata.annotations['{address}']")
    # Its name in Kubernetes, which no two runs share.
    workflow = "metadata.labels['workflows.argoproj.io/workflow']"
    kubernetes.use_field_path_as_env(task, RUN_VARIABLE, workflow)
    for name, path in POD_VARIABLES.items():
        kubernetes.use_field_path_as_env(task, name, path)
    kubernetes.set_security_context(task, run_as_non_root=True)
    if is_light:
        task.set_cpu_request("100m").set_cpu_limit("1")
        task.set_memory_request("512Mi").set_memory_limit("2Gi")
    else:
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


DESCRIPTIONS: Mapping[str, str] = {
    "store": "URI that all artifacts are written under, such as s3://BUCKET/PREFIX.",
    "pairs": "Folder or archive of image-caption pairs; empty to generate scenes.",
    "dataset": "URI of a sharded dataset.",
    "encoder": "Address of an encoder: a URI, or public weights.",
    "captioner": "Address of a captioner; empty to train one on scenes, or in photos for none.",
    "captions": "Captions to train on: real, synthetic, both or selected.",
    "tasks": (
        "Tasks to fine-tune for: a list of objects with recipe, data, min_metric (the value "
        "required for promotion) and, optionally, overrides."
    ),
    "namespace": "Namespace of the endpoints, jobs and workflows; empty to deploy nothing.",
    "runtime": "Serving runtime of the endpoints: cpu or gpu.",
    "prometheus": "URL of the Prometheus that a canary is watched by; empty for none.",
    "pool": "Node pool of the training job.",
    "nodes": "Nodes of the training job: a number, or MIN:MAX to go on when nodes are lost.",
    "queue": "Kueue queue of the training job; empty for none.",
    "start_timeout_seconds": (
        "Longest time that the training job may be unable to run, seconds, apart from a queue."
    ),
    "recaption_pool": "Node pool of the captioning workflow.",
    "scenes_recipe": "Recipe of the generated scenes.",
    "scenes_overrides": "Changes of that recipe, a list of path=value.",
    "shards_recipe": "Recipe of the dataset's shards.",
    "captioner_recipe": "Recipe of the captioner's training.",
    "captioner_overrides": "Changes of that recipe, a list of path=value.",
    "recaption_recipe": "Recipe of the captions.",
    "recaption_overrides": "Changes of that recipe, a list of path=value.",
    "score_recipe": "Recipe of the samples' scores.",
    "score_overrides": "Changes of that recipe, a list of path=value.",
    "select_recipe": "Recipe of the selection by scores.",
    "select_overrides": "Changes of that recipe, a list of path=value.",
    "clip_recipe": "Recipe of the encoder's pretraining.",
    "clip_overrides": "Changes of that recipe, a list of path=value.",
    "segmentation_recipe": "Recipe of the segmentation head's training.",
    "depth_recipe": "Recipe of the depth head's training.",
    "finetune_overrides": "Changes of both heads' recipes, a list of path=value.",
    "study_recipe": "Recipe of the study.",
    "study_overrides": "Changes of that recipe, a list of path=value.",
}
"""Meaning of each parameter of a pipeline."""


def pipeline(name: str, *steps: Step) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator that makes a pipeline of a function and the optional inputs of ``steps``.

    Its parameters are described as in :data:`DESCRIPTIONS`.
    """

    def define(function: Callable[..., Any]) -> Any:
        extended = with_inputs_of(*steps)(function)
        parameters = inspect.signature(extended).parameters
        described = "\n".join(f"    {name}: {DESCRIPTIONS[name]}" for name in parameters)
        extended.__doc__ = f"{inspect.cleandoc(function.__doc__ or '')}\n\nArgs:\n{described}\n"
        return dsl.pipeline(name=name)(extended)

    return define


def with_inputs_of(*steps: Step) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that adds the optional inputs of ``steps`` to a function.

    The function gets their values as ``**given``, and passes them on with :func:`inputs_for`. It
    wires a step's required inputs itself; these aren't inputs of the function.
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
        signature = own.replace(parameters=ordered)

        @functools.wraps(function)
        def extended(*values: Any, **named: Any) -> Any:
            bound = signature.bind(*values, **named)
            bound.apply_defaults()
            return function(**bound.arguments)

        extended.__signature__ = signature  # type: ignore[attr-defined]  # KFP reads it
        return extended

    return extend


def inputs_for(step: Step, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of a pipeline's inputs that ``step`` takes."""
    return {name: given[name] for name in _optional(step) if name in given}


def _optional(step: Step) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(step).parameters.values()
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

    layer: Channel
    """Name of their layer."""
    captioner: Channel
    """The captioner that wrote them."""


def sharded(
    store: Channel,
    pairs: str = "",
    scenes_recipe: str = "scenes-tiny",
    scenes_overrides: list = [],  # noqa: B006  # KFP reads the default, nothing changes it
    shards_recipe: str = "shards-tiny",
) -> Sharded:
    """Shard ``pairs``, or those of generated scenes, and generate scenes for all else."""
    generated = load_or_generate_pairs(
        pairs=pairs, recipe=scenes_recipe, overrides=scenes_overrides, store=store
    )
    data = on_pool(generated, "cpu").set_display_name("load or generate data").outputs
    shards = {"recipe": shards_recipe, "overrides": [], "store": store}
    dataset = shard(source=data["pairs"], label="pairs", **shards)
    # What lies at a URI of raw data may have changed since.
    on_pool(dataset, "cpu", cached=False).set_display_name("shard dataset")
    captioning = shard(source=data["captioner_pairs"], label="captioning", **shards)
    on_pool(captioning, "cpu").set_display_name("shard captioner data")
    outputs = (dataset.outputs["Output"], captioning.outputs["Output"])
    return Sharded(*outputs, ade20k=data["ade20k"], nyu=data["nyu"])


def captioned(
    store: Channel,
    dataset: Channel,
    captioning: Channel,
    captioner: str = "",
    captioner_recipe: str = "coca-tiny",
    captioner_overrides: list = [],  # noqa: B006  # as above
    recaption_recipe: str = "recaption-tiny",
    recaption_overrides: list = [],  # noqa: B006  # as above
) -> Captioned:
    """Caption ``dataset``'s images, by ``captioner`` or by one trained on ``captioning``."""
    trained = train_captioner(
        dataset=captioning,
        recipe=captioner_recipe,
        overrides=captioner_overrides,
        captioner=captioner,
        store=store,
    )
    chosen = on_pool(trained, "gpu").set_display_name("train captioner").outputs["Output"]
    written = recaption(
        dataset=dataset,
        captioner=chosen,
        recipe=recaption_recipe,
        overrides=recaption_overrides,
        store=store,
    )
    on_pool(written, "gpu").set_display_name("write captions")
    return Captioned(layer=written.outputs["Output"], captioner=chosen)


def pretrained(
    store: Channel,
    dataset: Channel,
    layer: Channel,
    score_recipe: str = "score-basic",
    score_overrides: list = [],  # noqa: B006  # as above
    select_recipe: str = "select-tiny",
    select_overrides: list = [],  # noqa: B006  # as above
    captions: str = "both",
    clip_recipe: str = "clip-tiny",
    clip_overrides: list = [],  # noqa: B006  # as above
) -> Any:
    """Score and select ``dataset``'s samples, and pretrain on those; the task that does.

    The captions of ``layer`` are scored too.
    """
    scored = score(dataset=dataset, recipe=score_recipe, overrides=score_overrides, store=store)
    # It scores all captions that the dataset has by then.
    on_pool(scored.after(layer.task), "cpu").set_display_name("score samples")
    rule = select(
        dataset=dataset,
        layers=scored.output,
        recipe=select_recipe,
        overrides=select_overrides,
        store=store,
    )
    on_pool(rule, "cpu").set_display_name("select samples")
    encoder = pretrain(
        dataset=dataset,
        captions=captions,
        layer=layer,
        select=rule.output,
        recipe=clip_recipe,
        overrides=clip_overrides,
        store=store,
    )
    return on_pool(encoder, "gpu").set_display_name("pretrain encoder")
