"""Best fine-tuning of a sweep."""

from typing import NamedTuple

from clipmill.components import IMAGE
from kfp import dsl


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def sweep(
    encoder: str, task_spec: dict, store: str,
    task_model: dsl.Output[dsl.Model], metrics: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
) -> NamedTuple(  # type: ignore[valid-type]  # KFP reads no other form
    "Best", [("task", str), ("min_metric", float), ("evaluation", str), ("evaluations", list)]
):  # fmt: skip
    """Complete a task's sweep and return its best evaluation.

    Args:
        encoder: Address of the encoder.
        task_spec: Recipe, data, overrides and threshold of the task, as JSON of a TaskSpec.
        store: URI of the store to write to.
        task_model: The best model as an artifact with its metadata.
        metrics: Metrics for the UI.
        report: HTML page of the sweep for the UI's viewer.

    Returns:
        The task, its threshold, and the best evaluation, also as a list.
    """
    from pathlib import Path

    from clipmill import stages
    from clipmill.lineage import log_artifact
    from clipmill.storage import read_bytes

    spec = stages.TaskSpec.from_json(task_spec)
    uri, best = stages.best_of_sweep(spec, encoder, store)
    Path(report.path).write_bytes(read_bytes(f"{uri}/sweep.html"))
    log_artifact(best.model.uri, task_model)
    for name, value in best.metrics.items():
        metrics.log_metric(name, value)
    return best.task, spec.min_metric, best.uri, [best.uri]
