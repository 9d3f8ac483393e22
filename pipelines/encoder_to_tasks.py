"""From any encoder to the models of several tasks, promoted where they are better."""

from typing import Any

from clipmill.components.finish_run import finish_run
from clipmill.pipelines.common import inputs_for, on_pool, with_inputs_of
from clipmill.pipelines.tune_tasks import tune_tasks
from kfp import dsl


@dsl.pipeline(name="encoder-to-tasks")
@with_inputs_of(tune_tasks)
def encoder_to_tasks(store: str, run: str, encoder: str, tasks: list, **given: Any) -> None:
    """Fine-tune ``encoder`` for all ``tasks``, judge, promote, report, and deploy where told to.

    An entry of ``tasks`` names a recipe, of a fine-tuning or of a sweep, its data, and the gate:
    ``{"recipe": "sweep-depth-vit-b16", "data": "s3://b/nyu_depth_v2.tar", "min_metric": 0.4}``.
    """
    at = {"store": store, "run": run}
    with dsl.ExitHandler(on_pool(finish_run(**at), "cpu", cached=False), name="all"):
        tune_tasks(encoder=encoder, tasks=tasks, **at, **inputs_for(tune_tasks, given))
