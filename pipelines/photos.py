"""From captioned photographs to CLIP encoders, evaluated by retrieval, without labels."""

from typing import Any

from clipmill.components.data.hold_out import hold_out
from clipmill.components.data.recaption import recaption
from clipmill.components.data.shard import shard
from clipmill.components.evaluation.photo_report import photo_report
from clipmill.components.evaluation.retrieval import retrieval
from clipmill.components.training.pretrain import pretrain
from clipmill.pipelines.common import on_pool, pipeline
from kfp import dsl


@pipeline("photos")
def photos(
    store: str,
    pairs: str,
    captioner: str = "",
    encoder: str = "",
    shards_recipe: str = "shards-tiny",
    recaption_recipe: str = "recaption-tiny",
    recaption_overrides: list = [],  # noqa: B006  # KFP reads the default, nothing changes it
    clip_recipe: str = "clip-tiny",
    clip_overrides: list = [],  # noqa: B006  # as above
) -> None:
    """Pretrain on captioned photographs, and evaluate image-text retrieval on held-out pairs.

    With a captioner of photographs a second encoder is pretrained on its captions too.
    """
    sharded = shard(
        source=pairs,
        recipe=shards_recipe,
        overrides=["duplicates=drop"],
        label="pairs",
        store=store,
    )
    # What lies at a URI of raw data may have changed since.
    on_pool(sharded, "cpu", cached=False).set_display_name("shard dataset")
    dataset = sharded.outputs["Output"]
    split = hold_out(dataset=dataset, recipe=clip_recipe, overrides=clip_overrides, store=store)
    overrides = on_pool(split, "cpu").set_display_name("hold pairs out").outputs
    evaluation = {
        "data": dataset,
        "recipe": "retrieval",
        "overrides": overrides["retrieval"],
        "store": store,
    }
    public = on_pool(retrieval(model=encoder, label="given", **evaluation), "gpu")
    public.set_display_name("evaluate public encoder")

    def pretrain_and_evaluate(captions: str, layer: Any) -> Any:
        trained = pretrain(
            dataset=dataset,
            captions=captions,
            layer=layer,
            recipe=clip_recipe,
            overrides=overrides["pretrain"],
            store=store,
        )
        on_pool(trained, "gpu").set_display_name(f"pretrain on {captions} captions")
        evaluated = retrieval(model=trained.outputs["Output"], label=captions, **evaluation)
        on_pool(evaluated, "gpu").set_display_name(f"evaluate encoder of {captions} captions")
        return evaluated.outputs["Output"]

    def write_report(name: str, layer: Any, evaluations: list[Any]) -> None:
        page = photo_report(
            dataset=dataset,
            layer=layer,
            captioner=captioner,
            evaluations=evaluations,
            public=public.outputs["Output"],
            store=store,
        )
        on_pool(page, "cpu", cached=False).set_display_name(name)

    real = pretrain_and_evaluate("real", "")
    with dsl.If(captioner == "", name="without captioner"):
        write_report("report", "", [real])
    with dsl.If(captioner != "", name="with captioner"):
        written = recaption(
            dataset=dataset,
            captioner=captioner,
            recipe=recaption_recipe,
            overrides=recaption_overrides,
            store=store,
        )
        on_pool(written, "gpu").set_display_name("write captions")
        layer = written.outputs["Output"]
        both = pretrain_and_evaluate("both", layer)
        write_report("report with both encoders", layer, [real, both])
