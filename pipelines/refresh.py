"""Recurring pipeline: new data leads to a new encoder, and to served models if they are better."""

from typing import Any

from clipmill.components.data.is_dataset_processed import is_dataset_processed
from clipmill.components.data.mark_dataset_processed import mark_dataset_processed
from clipmill.components.deployment.record_run_status import record_run_status
from clipmill.pipelines.common import (
    captioned,
    inputs_for,
    on_pool,
    pretrained,
    sharded,
    with_inputs_of,
)
from clipmill.pipelines.finetune_tasks import finetune_tasks
from kfp import dsl


@dsl.pipeline(name="refresh")
@with_inputs_of(sharded, captioned, pretrained, finetune_tasks)
def refresh(store: str, run: str, tasks: list, **given: Any) -> None:
    """Run all from captions to tasks, unless an earlier refresh was completed with ``pairs``.

    A model is promoted only if it is better than the one that serves. A refresh that failed is
    repeated by the next one, which reuses finished stages.
    """
    at = {"store": store, "run": run}
    with dsl.ExitHandler(on_pool(record_run_status(**at), "cpu", cached=False), name="run"):
        data = sharded(**at, **inputs_for(sharded, given))
        processed = is_dataset_processed(dataset=data.dataset, store=store)
        on_pool(processed, "cpu", cached=False)
        with dsl.If(processed.output == False, name="if-new-data"):  # noqa: E712  # a KFP condition
            captions = captioned(
                dataset=data.dataset,
                captioning=data.captioning,
                **at,
                **inputs_for(captioned, given),
            )
            encoder = pretrained(
                dataset=data.dataset,
                written=captions.written,
                **at,
                **inputs_for(pretrained, given),
            )
            finetuned = finetune_tasks(
                encoder=encoder.outputs["Output"],
                tasks=tasks,
                **at,
                **inputs_for(finetune_tasks, given),
            )
            done = mark_dataset_processed(dataset=data.dataset, **at).after(finetuned)
            on_pool(done, "cpu", cached=False)
