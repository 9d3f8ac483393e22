"""Promotion of the best model above a comparison's threshold."""

from typing import NamedTuple

from clipmill.components import IMAGE
from kfp import dsl


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def promote_compared(
    task: str, comparison: str, store: str, promoted_model: dsl.Output[dsl.Model]
) -> NamedTuple("Promoted", [("promotion", str), ("model", str)]):  # type: ignore[valid-type]
    """Promote the best model of a comparison if it reaches the comparison's threshold.

    Args:
        task: Name of the task.
        comparison: URI of the comparison.
        store: URI of the store to write to.
        promoted_model: The promoted model as an artifact with its metadata.

    Returns:
        URIs of the promotion in effect and of its model; empty where no model was ever promoted.
    """
    from clipmill import stages
    from clipmill.lineage import log_artifact
    from clipmill.tasks.promotion import read_promotion

    promotion = stages.promote_compared(task, comparison, store)
    if not promotion:
        return promotion, ""
    return promotion, log_artifact(read_promotion(promotion).evaluation.model.uri, promoted_model)
