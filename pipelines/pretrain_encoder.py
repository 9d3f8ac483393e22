"""From images with captions to a CLIP encoder: recaptioning, selection, pretraining."""

from typing import Any

from clipmill.components.evaluation.runs_report import runs_report
from clipmill.pipelines.common import captioned, inputs_for, on_pool, pipeline, pretrained, sharded


@pipeline("pretrain-encoder", sharded, captioned, pretrained)
def pretrain_encoder(store: str, **given: Any) -> None:
    """Shard, recaption, score, select, and pretrain on the captions of your choice.

    The encoder's URI is the output of the task pretrain encoder; the task report shows its curves
    with those of the store's other runs.
    """
    data = sharded(store, **inputs_for(sharded, given))
    captions = captioned(
        store,
        dataset=data.dataset,
        captioning=data.captioning,
        **inputs_for(captioned, given),
    )
    encoder = pretrained(
        store, dataset=data.dataset, layer=captions.layer, **inputs_for(pretrained, given)
    )
    report = runs_report(store=store).after(encoder)
    on_pool(report, "cpu", cached=False).set_display_name("report")
