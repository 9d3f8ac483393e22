"""Component: what a wanted task's sweep begins with."""

from clipmill.components import IMAGE
from kfp import dsl


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def sweep_points(wanted: dict) -> list:
    """The points to try side by side: one for a plain fine-tuning."""
    from clipmill.stages.run import WantedTask

    return list(WantedTask.from_json(wanted).sweep.points())
