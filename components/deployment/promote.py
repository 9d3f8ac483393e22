"""Promotion of the best model above a fixed threshold."""

from clipmill.components import IMAGE
from kfp import dsl


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def promote(
    task: str, min_metric: float, evaluations: list, store: str,
    promoted_model: dsl.Output[dsl.Model],
) -> str:  # fmt: skip
    """Promote the best evaluated model of a task if it reaches a threshold.

    Args:
        task: Name of the task.
        min_metric: Value of the task's metric required for promotion, in its unit.
        evaluations: URIs of evaluations.
        store: URI of the store to write to.
        promoted_model: The promoted model as an artifact with its metadata.

    Returns:
        URI of the promotion in effect.
    """
    from clipmill import stages
    from clipmill.lineage import log_artifact
    from clipmill.tasks.promotion import read_promotion

    promotion = stages.promote(task, min_metric, evaluations, store)
    log_artifact(read_promotion(promotion).evaluation.model.uri, promoted_model)
    return promotion
