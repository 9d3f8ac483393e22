"""From captioned photographs to CLIP encoders, evaluated by retrieval, without labels."""

from typing import Any

from clipmill.components.data.hold_out import hold_out
from clipmill.components.data.recaption import recaption
from clipmill.components.data.shard import shard
from clipmill.components.deployment.record_run_status import record_run_status
from clipmill.components.evaluation.photo_report import photo_report
from clipmill.components.evaluation.retrieval import retrieval
from clipmill.components.training.pretrain import pretrain
from clipmill.pipelines.common import on_pool
from kfp import dsl


@dsl.pipeline(name="photos")
def photos(
    store: str,
    run: str,
    pairs: str,
    captioner: str = "",
    encoder: str = "",
    shards_recipe: str = "shards-tiny",
    recaption_recipe: str = "recaption-tiny",
    recaption_overrides: list = [],  # noqa: B006  # KFP reads the default, nothing changes it
    clip_recipe: str = "clip-tiny",
    clip_overrides: list = [],  # noqa: B006  # as above
) -> None:
    """Pretrain on ``pairs``, and evaluate image-text retrieval on held-out pairs.

    With ``captioner``, trained on photographs, a second encoder is pretrained on its captions too.
    ``encoder`` is an encoder to compare with, such as public weights.
    """
    at = {"store": store, "run": run}
    with dsl.ExitHandler(on_pool(record_run_status(**at), "cpu", cached=False), name="run"):
        sharded = shard(
            source=pairs, recipe=shards_recipe, overrides=["duplicates=drop"], label="pairs", **at
        )
        # What lies at a URI of raw data may have changed since.
        dataset = on_pool(sharded, "cpu", cached=False).outputs["Output"]
        split = hold_out(dataset=dataset, recipe=clip_recipe, overrides=clip_overrides, **at)
        overrides = on_pool(split, "cpu").outputs
        evaluation = {
            "data": dataset,
            "recipe": "retrieval",
            "overrides": overrides["retrieval"],
            **at,
        }
        public = retrieval(model=encoder, label="given", **evaluation)
        on_pool(public, "gpu").set_display_name("retrieval of a public encoder")

        def pretrain_and_evaluate(captions: str, layer: Any) -> Any:
            trained = pretrain(
                dataset=dataset,
                captions=captions,
                layer=layer,
                recipe=clip_recipe,
                overrides=overrides["pretrain"],
                **at,
            )
            model = on_pool(trained, "gpu").outputs["Output"]
            return on_pool(retrieval(model=model, label=captions, **evaluation), "gpu")

        def write_report(layer: Any, evaluations: list[Any]) -> Any:
            page = photo_report(
                dataset=dataset,
                layer=layer,
                captioner=captioner,
                evaluations=evaluations,
                public=public.outputs["Output"],
                **at,
            )
            return on_pool(page, "cpu", cached=False)

        own = pretrain_and_evaluate("real", "")
        with dsl.If(captioner == "", name="without-captioner"):
            write_report("", [own.outputs["Output"]])
        with dsl.If(captioner != "", name="with-captioner"):
            written = recaption(
                dataset=dataset,
                captioner=captioner,
                recipe=recaption_recipe,
                overrides=recaption_overrides,
                **at,
            )
            layer = on_pool(written, "gpu").output
            both = pretrain_and_evaluate("both", layer)
            write_report(layer, [own.outputs["Output"], both.outputs["Output"]])
