"""Component: one point of a sweep."""

from clipmill.components import IMAGE
from kfp import dsl


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def sweep_point(encoder: str, wanted: dict, point: dict, store: str, run: str) -> str:
    """Fine-tune and judge a point; the evaluation's URI, empty where training diverged."""
    from clipmill.stages.run import WantedTask
    from clipmill.stages.run import sweep_point as stage

    return stage(WantedTask.from_json(wanted), point, encoder, store, run)
