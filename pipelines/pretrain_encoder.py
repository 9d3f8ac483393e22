"""From images with captions to a CLIP encoder: recaptioning, selection, pretraining."""

from typing import Any

from clipmill.components.deployment.record_run_status import record_run_status
from clipmill.components.evaluation.runs_report import runs_report
from clipmill.pipelines.common import (
    captioned,
    inputs_for,
    on_pool,
    pretrained,
    sharded,
    with_inputs_of,
)
from kfp import dsl


@dsl.pipeline(name="pretrain-encoder")
@with_inputs_of(sharded, captioned, pretrained)
def pretrain_encoder(store: str, run: str, **given: Any) -> None:
    """Shard, recaption, score, select, and pretrain on ``captions``.

    Without ``pairs`` procedural scenes are generated; without ``captioner`` one is trained on
    scenes. The encoder's URI is the output of the task ``pretrain``; ``runs-report`` shows its
    curves with those of the store's other runs.
    """
    at = {"store": store, "run": run}
    with dsl.ExitHandler(on_pool(record_run_status(**at), "cpu", cached=False), name="run"):
        data = sharded(**at, **inputs_for(sharded, given))
        captions = captioned(
            dataset=data.dataset, captioning=data.captioning, **at, **inputs_for(captioned, given)
        )
        encoder = pretrained(
            dataset=data.dataset, written=captions.written, **at, **inputs_for(pretrained, given)
        )
        on_pool(runs_report(store=store).after(encoder), "cpu", cached=False)
