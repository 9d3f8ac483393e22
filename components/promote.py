"""Component: the gate before serving."""

from clipmill.components import IMAGE
from kfp import dsl


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def promote(task: str, threshold: float, evaluations: list, store: str, run: str) -> str:
    """Let the best model of ``task`` serve, if it may; the promotion's URI."""
    from clipmill.stages.run import promote as stage

    return stage(task, threshold, evaluations, store, run)
