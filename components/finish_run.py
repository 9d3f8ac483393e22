"""Component: how a run ended, whatever happened in it."""

from clipmill.components import IMAGE
from kfp import dsl


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def finish_run(store: str, run: str, status: dsl.PipelineTaskFinalStatus) -> None:
    """Keep the run's end beside the times of its stages."""
    from clipmill.stage_records import write_end

    write_end(store, run, status.state, status.error_message or "")
