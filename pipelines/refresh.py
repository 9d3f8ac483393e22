"""Recurring pipeline: new data leads to a new encoder, and to served models if they are better."""

from typing import Any

from clipmill.pipelines.common import captioned, inputs_for, pipeline, pretrained, sharded
from clipmill.pipelines.finetune_tasks import finetuned


@pipeline("refresh", sharded, captioned, pretrained, finetuned)
def refresh(store: str, tasks: list, **given: Any) -> None:
    """Run all from captions to tasks; without new data all finished work is reused.

    A model is promoted, and deployed, only if it is better than the one that serves. A refresh that
    failed is repeated by the next one.
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
    finetuned(store, encoder=encoder.outputs["Output"], tasks=tasks, **inputs_for(finetuned, given))
