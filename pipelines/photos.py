"""From anybody's captioned photographs to a CLIP encoder, and what it learned, without labels."""

from typing import Any

from clipmill.components.finish_run import finish_run
from clipmill.components.hold_out import hold_out
from clipmill.components.pretrain import pretrain
from clipmill.components.recaption import recaption
from clipmill.components.report_photos import report_photos
from clipmill.components.retrieval import retrieval
from clipmill.components.shard import shard
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
    """Pretrain on ``pairs`` and measure image-text retrieval on pairs that were held out.

    With ``captioner``, which has to know photographs, a second encoder learns from its captions
    too. ``encoder`` is an encoder to compare with, such as public weights.
    """
    at = {"store": store, "run": run}
    with dsl.ExitHandler(on_pool(finish_run(**at), "cpu", cached=False), name="all"):
        made = shard(
            source=pairs, recipe=shards_recipe, overrides=["duplicates=drop"], label="pairs", **at
        )
        # What lies at a URI of raw data may have changed since.
        dataset = on_pool(made, "cpu", cached=False).outputs["Output"]
        cut = hold_out(dataset=dataset, recipe=clip_recipe, overrides=clip_overrides, **at)
        judging = {"data": dataset, "recipe": "retrieval", **at}
        overrides = on_pool(cut, "cpu").outputs
        given = retrieval(model=encoder, overrides=overrides["judging"], label="given", **judging)
        on_pool(given, "gpu").set_display_name("retrieval of a given encoder")

        def judged(captions: str, layer: Any) -> Any:
            trained = pretrain(
                dataset=dataset,
                captions=captions,
                layer=layer,
                recipe=clip_recipe,
                overrides=overrides["pretraining"],
                **at,
            )
            model = on_pool(trained, "gpu").outputs["Output"]
            found = retrieval(
                model=model, overrides=overrides["judging"], label=captions, **judging
            )
            return on_pool(found, "gpu")

        def reported(layer: Any, evaluations: list[Any]) -> Any:
            page = report_photos(
                dataset=dataset,
                layer=layer,
                captioner=captioner,
                evaluations=evaluations,
                given=given.outputs["Output"],
                **at,
            )
            return on_pool(page, "cpu", cached=False)

        own = judged("real", "")
        with dsl.If(captioner == "", name="own-captions-alone"):
            reported("", [own.outputs["Output"]])
        with dsl.If(captioner != "", name="with-a-captioner"):
            written = recaption(
                dataset=dataset,
                captioner=captioner,
                recipe=recaption_recipe,
                overrides=recaption_overrides,
                **at,
            )
            layer = on_pool(written, "gpu").output
            both = judged("both", layer)
            reported(layer, [own.outputs["Output"], both.outputs["Output"]])
