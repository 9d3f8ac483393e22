"""Recaption a large dataset on many pods, and pretrain an encoder on several GPU nodes."""

from clipmill.components.data.recaption_on_argo import recaption_on_argo
from clipmill.components.deployment.record_run_status import record_run_status
from clipmill.components.training.pretrain_on_nodes import pretrain_on_nodes
from clipmill.pipelines.common import on_pool
from kfp import dsl


@dsl.pipeline(name="pretrain-encoder-distributed")
def pretrain_encoder_distributed(
    store: str,
    run: str,
    dataset: str,
    captioner: str,
    namespace: str,
    recaption_recipe: str = "recaption-beam",
    recaption_pool: str = "gpu",
    captions: str = "both",
    clip_recipe: str = "clip-vit-b16-12.8b",
    clip_overrides: list = [],  # noqa: B006  # KFP reads the default, nothing changes it
    pool: str = "gpu-8x",
    nodes: str = "1",
    queue: str = "",
) -> None:
    """Caption all images of ``dataset``, and pretrain on ``captions``.

    ``nodes`` is a number, or MIN:MAX to continue when nodes are lost. The tasks only submit a
    workflow and a TrainJob, and wait for them; both resume when they are submitted again.
    """
    at = {"store": store, "run": run}
    with dsl.ExitHandler(on_pool(record_run_status(**at), "cpu", cached=False), name="run"):
        layer = recaption_on_argo(
            dataset=dataset,
            captioner=captioner,
            recipe=recaption_recipe,
            pool=recaption_pool,
            namespace=namespace,
            **at,
        )
        encoder = pretrain_on_nodes(
            dataset=dataset,
            captions=captions,
            layer=on_pool(layer, "cpu").output,
            recipe=clip_recipe,
            overrides=clip_overrides,
            pool=pool,
            nodes=nodes,
            queue=queue,
            namespace=namespace,
            **at,
        )
        on_pool(encoder, "cpu")
