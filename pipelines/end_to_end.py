"""The whole way on a cluster: as first-light, then the promoted models take over its endpoints."""

from clipmill.components.deploy import deploy
from clipmill.components.finish_run import finish_run
from clipmill.pipelines.first_light import first_light
from clipmill.pipelines.placement import on_pool
from kfp import dsl


@dsl.pipeline(name="end-to-end")
def end_to_end(
    store: str,
    run: str,
    pairs: str = "",
    scenes_overrides: list = [],  # noqa: B006  # KFP reads the default, nothing changes it
    captioner_recipe: str = "coca-miniature",
    captioner_overrides: list = [],  # noqa: B006  # as above
    clip_recipe: str = "clip-miniature",
    clip_overrides: list = [],  # noqa: B006  # as above
    segmentation_recipe: str = "upernet-miniature",
    depth_recipe: str = "depth-miniature",
    finetune_overrides: list = [],  # noqa: B006  # as above
    min_miou: float = 5.0,
    max_rmse_metres: float = 3.0,
    namespace: str = "",
    runtime: str = "cpu",
    prometheus: str = "",
) -> None:
    """Pretrain, fine-tune, judge, and deploy what passes its gate.

    ``namespace`` is where the endpoints are; without one nothing is deployed. However the run
    ends, the store says so.
    """
    with dsl.ExitHandler(on_pool(finish_run(store=store, run=run), "cpu"), name="all"):
        made = first_light(
            store=store,
            run=run,
            pairs=pairs,
            scenes_overrides=scenes_overrides,
            captioner_recipe=captioner_recipe,
            captioner_overrides=captioner_overrides,
            clip_recipe=clip_recipe,
            clip_overrides=clip_overrides,
            segmentation_recipe=segmentation_recipe,
            depth_recipe=depth_recipe,
            finetune_overrides=finetune_overrides,
            min_miou=min_miou,
            max_rmse_metres=max_rmse_metres,
        )
        with dsl.If(namespace != "", name="on-a-cluster"):
            for task in ("segmentation", "depth"):
                deployed = deploy(
                    promotion=f"{store}/serving/{task}",
                    endpoint=task,
                    namespace=namespace,
                    runtime=runtime,
                    prometheus=prometheus,
                ).after(made)
                on_pool(deployed, "cpu")
