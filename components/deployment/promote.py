"""Promotion of the best model above a fixed threshold."""

from clipmill.components import IMAGE
from kfp import dsl


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def promote(task: str, min_metric: float, evaluations: list, store: str, run: str) -> str:
    """Promote the best evaluated model of a task if it reaches a threshold.

    Args:
        task: Name of the task.
        min_metric: Value of the task's metric required for promotion, in its unit.
        evaluations: URIs of evaluations.
        store: URI of the store to write to.
        run: Name of the run, for its timing records.

    Returns:
        URI of the promotion in effect.
    """
    from clipmill import stages

    return stages.promote(task, min_metric, evaluations, store, run)
