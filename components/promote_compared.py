"""Component: the gate before serving, set by what learned nothing."""

from clipmill.components import IMAGE
from kfp import dsl


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def promote_compared(task: str, comparison: str, store: str, run: str) -> str:
    """Let the best model of a comparison serve if it passes; the promotion's URI, or none."""
    from clipmill.stages.run import promote_compared as stage

    return stage(task, comparison, store, run)
