"""From pictures with captions to a CLIP encoder: better captions, the best samples, pretraining."""

from typing import Any

from clipmill.components.compare import compare
from clipmill.components.finish_run import finish_run
from clipmill.pipelines.common import (
    captioned,
    inputs_for,
    on_pool,
    pretrained,
    sharded,
    with_inputs_of,
)
from kfp import dsl


@dsl.pipeline(name="captions-to-encoder")
@with_inputs_of(sharded, captioned, pretrained)
def captions_to_encoder(store: str, run: str, **given: Any) -> None:
    """Shard, recaption, score, select, and pretrain on ``captions``.

    Without ``pairs`` and ``captioner`` procedural scenes are drawn, and a captioner trained on
    theirs. The encoder's URI is the output of the task ``pretrain``; ``compare`` draws its curves
    beside those of the store's other runs.
    """
    at = {"store": store, "run": run}
    with dsl.ExitHandler(on_pool(finish_run(**at), "cpu", cached=False), name="all"):
        data = sharded(**at, **inputs_for(sharded, given))
        made = captioned(
            dataset=data.dataset, captioning=data.captioning, **at, **inputs_for(captioned, given)
        )
        encoder = pretrained(
            dataset=data.dataset, written=made.written, **at, **inputs_for(pretrained, given)
        )
        on_pool(compare(store=store).after(encoder), "cpu", cached=False)
