"""Recaption a large dataset on many pods, and pretrain an encoder on several GPU nodes."""

from clipmill.components.data.recaption_on_argo import recaption_on_argo
from clipmill.components.training.pretrain_on_nodes import pretrain_on_nodes
from clipmill.pipelines.common import on_pool, pipeline


@pipeline("pretrain-encoder-distributed")
def pretrain_encoder_distributed(
    store: str,
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
    start_timeout_seconds: int = 1800,
) -> None:
    """Caption all images of a dataset by Argo, and pretrain on several nodes.

    The tasks only submit a workflow and a TrainJob, and wait for them; both resume when they are
    submitted again.
    """
    written = recaption_on_argo(
        dataset=dataset,
        captioner=captioner,
        recipe=recaption_recipe,
        pool=recaption_pool,
        namespace=namespace,
        store=store,
    )
    on_pool(written, "cpu", is_light=True).set_display_name("write captions")
    encoder = pretrain_on_nodes(
        dataset=dataset,
        captions=captions,
        layer=written.outputs["Output"],
        recipe=clip_recipe,
        overrides=clip_overrides,
        pool=pool,
        nodes=nodes,
        queue=queue,
        namespace=namespace,
        store=store,
        start_timeout_seconds=start_timeout_seconds,
    )
    on_pool(encoder, "cpu", is_light=True).set_display_name("pretrain encoder")
