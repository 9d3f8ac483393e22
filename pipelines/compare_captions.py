"""From one dataset with a layer of synthetic captions to served models and a report."""

from clipmill.components.compare_encoders import compare_encoders
from clipmill.components.evaluate import evaluate
from clipmill.components.finetune import finetune
from clipmill.components.pretrain import pretrain
from clipmill.components.probe import probe
from clipmill.components.promote_compared import promote_compared
from clipmill.components.random_weights import random_weights
from clipmill.components.report import report
from clipmill.pipelines.placement import on_pool
from kfp import dsl


@dsl.pipeline(name="compare-captions")
def compare_captions(
    store: str,
    run: str,
    dataset: str,
    layer: str,
    captioner: str,
    ade20k: str,
    nyu: str,
    clip_recipe: str = "clip-miniature",
    clip_overrides: list = [],  # noqa: B006  # KFP reads the default, nothing changes it
    segmentation_recipe: str = "linear-segmentation-miniature",
    depth_recipe: str = "linear-depth-miniature",
    finetune_overrides: list = [],  # noqa: B006  # as above
) -> str:
    """Pretrain on real captions, and on both; compare frozen features with random weights; serve.

    The gate that a model must pass to serve is what random weights and trivial answers reach.

    A pipeline of its own because ``kfp.local`` 2.17 hands a loop's item to every input that comes
    from a task outside the loop; what comes from a pipeline's inputs it leaves alone.
    """
    at = {"store": store, "run": run}
    untrained = random_weights(
        clip_recipe=clip_recipe,
        clip_overrides=clip_overrides,
        segmentation_recipe=segmentation_recipe,
        depth_recipe=depth_recipe,
        finetune_overrides=finetune_overrides,
        ade20k=ade20k,
        nyu=nyu,
        **at,
    )
    with dsl.ParallelFor(items=["real", "both"], parallelism=2) as captions:
        pretrained = pretrain(
            dataset=dataset,
            captions=captions,
            layer=layer,
            recipe=clip_recipe,
            overrides=clip_overrides,
            **at,
        )
        encoder = on_pool(pretrained, "gpu").outputs["Output"]
        tuning = {"encoder": encoder, "overrides": finetune_overrides, "label": captions, **at}
        segmenter = finetune(data=ade20k, recipe=segmentation_recipe, **tuning)
        segmented = evaluate(
            model=on_pool(segmenter, "gpu").outputs["Output"], data=ade20k, label=captions, **at
        )
        measurer = finetune(data=nyu, recipe=depth_recipe, **tuning)
        measured = evaluate(
            model=on_pool(measurer, "gpu").outputs["Output"], data=nyu, label=captions, **at
        )
        for task in (segmented, measured):
            on_pool(task, "gpu")
        for task, name in ((segmenter, "finetune"), (segmented, "evaluate")):
            task.set_display_name(f"{name} segmentation")
        for task, name in ((measurer, "finetune"), (measured, "evaluate")):
            task.set_display_name(f"{name} depth")
    # A dsl.Collected serves one reader.
    compared = compare_encoders(
        encoders=dsl.Collected(encoder),
        segmentations=dsl.Collected(segmented.outputs["Output"]),
        depths=dsl.Collected(measured.outputs["Output"]),
        random=on_pool(untrained, "gpu").output,
        ade20k=ade20k,
        nyu=nyu,
        **at,
    )
    comparison = on_pool(compared, "cpu").output
    segmentation = promote_compared(task="segmentation", comparison=comparison, **at)
    depth = promote_compared(task="depth", comparison=comparison, **at)
    promoted = {
        "segmentation": on_pool(segmentation, "cpu", cached=False).output,
        "depth": on_pool(depth, "cpu", cached=False).output,
    }
    segmentation.set_display_name("promote segmentation")
    depth.set_display_name("promote depth")
    page = report(
        dataset=dataset,
        layer=layer,
        captioner=captioner,
        encoders=dsl.Collected(encoder),
        segmentations=dsl.Collected(segmented.outputs["Output"]),
        depths=dsl.Collected(measured.outputs["Output"]),
        comparison=comparison,
        probed=on_pool(probe(**promoted, **at), "cpu", cached=False).output,
        **promoted,
        **at,
    )
    return on_pool(page, "cpu", cached=False).outputs["Output"]
