"""Tasks that several pipelines begin with: from pictures with captions to an encoder.

Each function adds its tasks to the pipeline that is being drawn. Its optional arguments are inputs
of that pipeline (:mod:`clipmill.pipelines.inputs`).
"""

from typing import Any, NamedTuple

from clipmill.components.pretrain import pretrain
from clipmill.components.recaption import recaption
from clipmill.components.score import score
from clipmill.components.select import select
from clipmill.components.shard import shard
from clipmill.components.source import source
from clipmill.components.train_captioner import train_captioner
from clipmill.pipelines.placement import on_pool

Channel = Any
"""What a task returns, or a pipeline is given: kfp's PipelineChannel."""


class Sharded(NamedTuple):
    """Datasets, and labelled data beside them."""

    dataset: Channel
    """To pretrain on."""
    captioning: Channel
    """With good captions, for a captioner."""
    ade20k: Channel
    """Scenes with class masks."""
    nyu: Channel
    """Scenes with depth."""


class Captioned(NamedTuple):
    """Synthetic captions of a dataset."""

    written: Any
    """The task that writes their layer, and returns its name."""
    captioner: Channel
    """Who wrote them."""


def sharded(
    store: Channel,
    run: Channel,
    pairs: str = "",
    scenes_recipe: str = "scenes-miniature",
    scenes_overrides: list = [],  # noqa: B006  # KFP reads the default, nothing changes it
    shards_recipe: str = "shards-miniature",
) -> Sharded:
    """Draw scenes and shard them; ``pairs``, where given, takes the place of theirs."""
    at = {"store": store, "run": run}
    drawn = source(pairs=pairs, recipe=scenes_recipe, overrides=scenes_overrides, **at)
    data = on_pool(drawn, "cpu").outputs
    shards = {"recipe": shards_recipe, "overrides": [], **at}
    # What lies at a URI of raw data may have changed since.
    dataset = on_pool(shard(source=data["pairs"], label="pairs", **shards), "cpu", cached=False)
    captioning = on_pool(shard(source=data["captioning"], label="captioning", **shards), "cpu")
    captioning.set_display_name("shard for captioning")
    outputs = (dataset.outputs["Output"], captioning.outputs["Output"])
    return Sharded(*outputs, ade20k=data["ade20k"], nyu=data["nyu"])


def captioned(
    store: Channel,
    run: Channel,
    dataset: Channel,
    captioning: Channel,
    captioner: str = "",
    captioner_recipe: str = "coca-miniature",
    captioner_overrides: list = [],  # noqa: B006  # as above
    recaption_recipe: str = "recaption-miniature",
    recaption_overrides: list = [],  # noqa: B006  # as above
) -> Captioned:
    """Caption ``dataset``'s pictures, by ``captioner`` or by one trained on ``captioning``."""
    at = {"store": store, "run": run}
    trained = train_captioner(
        dataset=captioning,
        recipe=captioner_recipe,
        overrides=captioner_overrides,
        captioner=captioner,
        **at,
    )
    chosen = on_pool(trained, "gpu").outputs["Output"]
    written = recaption(
        dataset=dataset,
        captioner=chosen,
        recipe=recaption_recipe,
        overrides=recaption_overrides,
        **at,
    )
    return Captioned(written=on_pool(written, "gpu"), captioner=chosen)


def pretrained(
    store: Channel,
    run: Channel,
    dataset: Channel,
    written: Any,
    score_recipe: str = "score-basic",
    score_overrides: list = [],  # noqa: B006  # as above
    select_recipe: str = "select-miniature",
    select_overrides: list = [],  # noqa: B006  # as above
    captions: str = "both",
    clip_recipe: str = "clip-miniature",
    clip_overrides: list = [],  # noqa: B006  # as above
) -> Any:
    """Score and select ``dataset``'s samples, and pretrain on those; the task that does.

    ``written`` is the task that captioned them: its captions are scored too.
    """
    at = {"store": store, "run": run}
    scored = score(dataset=dataset, recipe=score_recipe, overrides=score_overrides, **at)
    rule = select(
        dataset=dataset,
        layers=on_pool(scored.after(written), "cpu").output,
        recipe=select_recipe,
        overrides=select_overrides,
        **at,
    )
    encoder = pretrain(
        dataset=dataset,
        captions=captions,
        layer=written.output,
        select=on_pool(rule, "cpu").output,
        recipe=clip_recipe,
        overrides=clip_overrides,
        **at,
    )
    return on_pool(encoder, "gpu")
