"""Exit handler that records how a run ended."""

from clipmill.components import IMAGE
from kfp import dsl


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def record_run_status(store: str, run: str, status: dsl.PipelineTaskFinalStatus) -> None:
    """Record the final status of a run next to its timing records.

    Args:
        store: URI of the store with the run's records.
        run: Name of the run.
        status: Final status, filled in by Kubeflow.
    """
    from clipmill.stage_records import write_end

    write_end(store, run, status.state, status.error_message or "")
