"""Promotion of the best model above a comparison's threshold."""

from clipmill.components import IMAGE
from kfp import dsl


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def promote_compared(task: str, comparison: str, store: str, run: str) -> str:
    """Promote the best model of a comparison if it reaches the comparison's threshold.

    Args:
        task: Name of the task.
        comparison: URI of the comparison.
        store: URI of the store to write to.
        run: Name of the run, for its timing records.

    Returns:
        URI of the promotion in effect; empty where no model was ever promoted.
    """
    from clipmill import stages

    return stages.promote_compared(task, comparison, store, run)
