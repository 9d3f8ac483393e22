"""From a dataset with a layer of synthetic captions to promoted models and a report."""

from clipmill.components.deployment.promote_compared import promote_compared
from clipmill.components.deployment.smoke_test_models import smoke_test_models
from clipmill.components.evaluation.compare_encoders import compare_encoders
from clipmill.components.evaluation.evaluate_features import evaluate_features
from clipmill.components.evaluation.random_weights import random_weights
from clipmill.components.evaluation.report import report
from clipmill.components.training.pretrain import pretrain
from clipmill.pipelines.common import on_pool
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
    clip_recipe: str = "clip-tiny",
    clip_overrides: list = [],  # noqa: B006  # KFP reads the default, nothing changes it
    segmentation_recipe: str = "linear-segmentation-tiny",
    depth_recipe: str = "linear-depth-tiny",
    finetune_overrides: list = [],  # noqa: B006  # as above
) -> str:
    """Pretrain on real captions, and on both; compare frozen features with random weights; serve.

    A model is promoted only if it is better than random weights and trivial predictions.

    A pipeline of its own because ``kfp.local`` 2.17 passes a loop's item to every input that comes
    from a task outside the loop, but leaves a pipeline's inputs alone.
    """
    at = {"store": store, "run": run}
    heads = {
        "segmentation_recipe": segmentation_recipe,
        "depth_recipe": depth_recipe,
        "ade20k": ade20k,
        "nyu": nyu,
    }
    untrained = random_weights(
        clip_recipe=clip_recipe,
        clip_overrides=clip_overrides,
        finetune_overrides=finetune_overrides,
        **heads,
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
        evaluated = evaluate_features(
            encoder=encoder, overrides=finetune_overrides, label=captions, **heads, **at
        )
        on_pool(evaluated, "gpu").set_display_name("evaluate frozen features")
    # A dsl.Collected serves one reader.
    compared = compare_encoders(
        encoders=dsl.Collected(encoder),
        evaluations=dsl.Collected(evaluated.output),
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
    tested = smoke_test_models(models=promoted, **at)
    page = report(
        dataset=dataset,
        layer=layer,
        captioner=captioner,
        encoders=dsl.Collected(encoder),
        evaluations=dsl.Collected(evaluated.output),
        comparison=comparison,
        promotions=list(promoted.values()),
        smoke_test=on_pool(tested, "cpu", cached=False).output,
        **at,
    )
    return on_pool(page, "cpu", cached=False).outputs["Output"]
