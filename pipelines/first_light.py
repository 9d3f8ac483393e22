"""The whole way: pictures with captions in, queried endpoints and a report out."""

from kfp import dsl

from clipmill.components.evaluate import evaluate
from clipmill.components.finetune import finetune
from clipmill.components.pretrain import pretrain
from clipmill.components.probe import probe
from clipmill.components.promote import promote
from clipmill.components.recaption import recaption
from clipmill.components.report import report
from clipmill.components.shard import shard
from clipmill.components.source import source
from clipmill.components.train_captioner import train_captioner


@dsl.pipeline(name="first-light")
def first_light(
    store: str,
    run: str,
    pairs: str = "",
    scenes_recipe: str = "scenes-miniature",
    scenes_overrides: list = [],  # noqa: B006  # KFP reads the default, nothing changes it
    shards_recipe: str = "shards-miniature",
    captioner_recipe: str = "coca-miniature",
    captioner_overrides: list = [],  # noqa: B006
    recaption_recipe: str = "recaption-miniature",
    clip_recipe: str = "clip-miniature",
    clip_overrides: list = [],  # noqa: B006
    segmentation_recipe: str = "upernet-miniature",
    depth_recipe: str = "depth-miniature",
    finetune_overrides: list = [],  # noqa: B006
    min_miou: float = 5.0,
    max_rmse_metres: float = 3.0,
) -> str:
    """Pretrain on real captions, and on real and synthetic ones, and see what that does.

    ``pairs`` is a folder of pictures with captions that takes the scenes' place for pretraining.
    Both encoders are fine-tuned for segmentation and depth; the better models are served.
    """
    at = {"store": store, "run": run}
    data = source(pairs=pairs, recipe=scenes_recipe, overrides=scenes_overrides, **at).outputs
    shards = {"recipe": shards_recipe, "overrides": [], **at}
    dataset = shard(source=data["pairs"], label="pairs", **shards).output
    captioned = shard(source=data["captioning"], label="captioning", **shards).output
    captioner = train_captioner(
        dataset=captioned, recipe=captioner_recipe, overrides=captioner_overrides, **at
    ).output
    layer = recaption(
        dataset=dataset, captioner=captioner, recipe=recaption_recipe, overrides=[], **at
    ).output
    with dsl.ParallelFor(items=["real", "both"], parallelism=2) as captions:
        encoder = pretrain(
            dataset=dataset,
            captions=captions,
            layer=layer,
            recipe=clip_recipe,
            overrides=clip_overrides,
            **at,
        ).output
        tuning = {"encoder": encoder, "overrides": finetune_overrides, "label": captions, **at}
        segmenter = finetune(data=data["ade20k"], recipe=segmentation_recipe, **tuning).output
        segmented = evaluate(model=segmenter, data=data["ade20k"], label=captions, **at)
        measurer = finetune(data=data["nyu"], recipe=depth_recipe, **tuning).output
        measured = evaluate(model=measurer, data=data["nyu"], label=captions, **at)
    # A dsl.Collected serves one reader.
    segmentation = promote(
        task="segmentation",
        threshold=min_miou,
        evaluations=dsl.Collected(segmented.outputs["Output"]),
        **at,
    ).output
    depth = promote(
        task="depth",
        threshold=max_rmse_metres,
        evaluations=dsl.Collected(measured.outputs["Output"]),
        **at,
    ).output
    probed = probe(segmentation=segmentation, depth=depth, **at).output
    return report(
        dataset=dataset,
        layer=layer,
        captioner=captioner,
        encoders=dsl.Collected(encoder),
        segmentations=dsl.Collected(segmented.outputs["Output"]),
        depths=dsl.Collected(measured.outputs["Output"]),
        segmentation=segmentation,
        depth=depth,
        probed=probed,
        **at,
    ).outputs["Output"]
