"""From one dataset with a layer of synthetic captions to served models and a report."""

from clipmill.components.evaluate import evaluate
from clipmill.components.finetune import finetune
from clipmill.components.pretrain import pretrain
from clipmill.components.probe import probe
from clipmill.components.promote import promote
from clipmill.components.report import report
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
    clip_recipe: str,
    clip_overrides: list,
    segmentation_recipe: str,
    depth_recipe: str,
    finetune_overrides: list,
    min_miou: float,
    max_rmse_metres: float,
) -> str:
    """Pretrain on real captions, and on real and synthetic ones; fine-tune, judge and serve.

    A pipeline of its own because ``kfp.local`` 2.17 hands a loop's item to every input that comes
    from a task outside the loop; what comes from a pipeline's inputs it leaves alone.
    """
    at = {"store": store, "run": run}
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
        segmenter = finetune(data=ade20k, recipe=segmentation_recipe, **tuning).output
        segmented = evaluate(model=segmenter, data=ade20k, label=captions, **at)
        measurer = finetune(data=nyu, recipe=depth_recipe, **tuning).output
        measured = evaluate(model=measurer, data=nyu, label=captions, **at)
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
