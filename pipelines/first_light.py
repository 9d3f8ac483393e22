"""The whole way: pictures with captions in, queried endpoints and a report out."""

from clipmill.components.recaption import recaption
from clipmill.components.shard import shard
from clipmill.components.source import source
from clipmill.components.train_captioner import train_captioner
from clipmill.pipelines.compare_captions import compare_captions
from clipmill.pipelines.placement import on_pool
from kfp import dsl


@dsl.pipeline(name="first-light")
def first_light(
    store: str,
    run: str,
    pairs: str = "",
    scenes_recipe: str = "scenes-miniature",
    scenes_overrides: list = [],  # noqa: B006  # KFP reads the default, nothing changes it
    shards_recipe: str = "shards-miniature",
    captioner_recipe: str = "coca-miniature",
    captioner_overrides: list = [],  # noqa: B006  # as above
    recaption_recipe: str = "recaption-miniature",
    clip_recipe: str = "clip-miniature",
    clip_overrides: list = [],  # noqa: B006  # as above
    segmentation_recipe: str = "upernet-miniature",
    depth_recipe: str = "depth-miniature",
    finetune_overrides: list = [],  # noqa: B006  # as above
    min_miou: float = 5.0,
    max_rmse_metres: float = 3.0,
) -> str:
    """Pretrain on real captions, and on real and synthetic ones, and see what that does.

    ``pairs`` is a folder of pictures with captions that takes the scenes' place for pretraining.
    Both encoders are fine-tuned for segmentation and depth; the better models are served.
    """
    at = {"store": store, "run": run}
    drawn = source(pairs=pairs, recipe=scenes_recipe, overrides=scenes_overrides, **at)
    data = on_pool(drawn, "cpu").outputs
    shards = {"recipe": shards_recipe, "overrides": [], **at}
    dataset = on_pool(shard(source=data["pairs"], label="pairs", **shards), "cpu").output
    captioned = on_pool(shard(source=data["captioning"], label="captioning", **shards), "cpu")
    trained = train_captioner(
        dataset=captioned.output, recipe=captioner_recipe, overrides=captioner_overrides, **at
    )
    captioner = on_pool(trained, "gpu").output
    recaptioned = recaption(
        dataset=dataset, captioner=captioner, recipe=recaption_recipe, overrides=[], **at
    )
    layer = on_pool(recaptioned, "gpu").output
    return compare_captions(
        dataset=dataset,
        layer=layer,
        captioner=captioner,
        ade20k=data["ade20k"],
        nyu=data["nyu"],
        clip_recipe=clip_recipe,
        clip_overrides=clip_overrides,
        segmentation_recipe=segmentation_recipe,
        depth_recipe=depth_recipe,
        finetune_overrides=finetune_overrides,
        min_miou=min_miou,
        max_rmse_metres=max_rmse_metres,
        **at,
    ).output
