"""To be run again and again: new data makes a new encoder, and models that serve if better."""

from typing import Any

from clipmill.components.finish_run import finish_run
from clipmill.components.is_new import is_new
from clipmill.components.remember import remember
from clipmill.pipelines.common import (
    captioned,
    inputs_for,
    on_pool,
    pretrained,
    sharded,
    with_inputs_of,
)
from clipmill.pipelines.tune_tasks import tune_tasks
from kfp import dsl


@dsl.pipeline(name="refresh")
@with_inputs_of(sharded, captioned, pretrained, tune_tasks)
def refresh(store: str, run: str, tasks: list, **given: Any) -> None:
    """Do nothing where ``pairs`` are those of an earlier refresh, else all from captions to tasks.

    A model is promoted only if it beats the one that serves. A refresh that failed is done again
    by the next, which finds what was finished.
    """
    at = {"store": store, "run": run}
    with dsl.ExitHandler(on_pool(finish_run(**at), "cpu", cached=False), name="all"):
        data = sharded(**at, **inputs_for(sharded, given))
        found = on_pool(is_new(dataset=data.dataset, store=store), "cpu", cached=False)
        with dsl.If(found.output == True, name="something-new"):  # noqa: E712  # a KFP condition
            made = captioned(
                dataset=data.dataset,
                captioning=data.captioning,
                **at,
                **inputs_for(captioned, given),
            )
            encoder = pretrained(
                dataset=data.dataset, written=made.written, **at, **inputs_for(pretrained, given)
            )
            tuned = tune_tasks(
                encoder=encoder.outputs["Output"],
                tasks=tasks,
                **at,
                **inputs_for(tune_tasks, given),
            )
            done = remember(dataset=data.dataset, **at).after(tuned)
            on_pool(done, "cpu", cached=False)
