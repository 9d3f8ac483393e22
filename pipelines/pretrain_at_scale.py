"""A large dataset recaptioned on many pods, and an encoder trained on several GPU nodes."""

from clipmill.components.finish_run import finish_run
from clipmill.components.pretrain_on_nodes import pretrain_on_nodes
from clipmill.components.recaption_on_argo import recaption_on_argo
from clipmill.pipelines.common import on_pool
from kfp import dsl


@dsl.pipeline(name="pretrain-at-scale")
def pretrain_at_scale(
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
    """Caption all pictures of ``dataset``, and pretrain on ``captions``.

    ``nodes`` is a number, or MIN:MAX to go on when nodes are lost. The tasks here only submit and
    wait; the work is a workflow's and a TrainJob's, which find what is done when tried again.
    """
    at = {"store": store, "run": run}
    with dsl.ExitHandler(on_pool(finish_run(**at), "cpu", cached=False), name="all"):
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
