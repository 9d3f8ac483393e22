"""From any encoder to the models of several tasks, promoted where they are better."""

from typing import Any

from clipmill.components.deployment.record_run_status import record_run_status
from clipmill.pipelines.common import inputs_for, on_pool, with_inputs_of
from clipmill.pipelines.finetune_tasks import finetune_tasks
from kfp import dsl


@dsl.pipeline(name="encoder-to-tasks")
@with_inputs_of(finetune_tasks)
def encoder_to_tasks(store: str, run: str, encoder: str, tasks: list, **given: Any) -> None:
    """Fine-tune ``encoder`` for all ``tasks``, evaluate, promote, report, and optionally deploy.

    An entry of ``tasks`` names a recipe of a fine-tuning or a sweep, its data, and a threshold:
    ``{"recipe": "sweep-depth-vit-b16", "data": "s3://b/nyu_depth_v2.tar", "min_metric": 0.4}``.
    """
    at = {"store": store, "run": run}
    with dsl.ExitHandler(on_pool(record_run_status(**at), "cpu", cached=False), name="run"):
        finetune_tasks(encoder=encoder, tasks=tasks, **at, **inputs_for(finetune_tasks, given))
