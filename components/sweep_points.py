"""Points of a task's sweep."""

from clipmill.components import IMAGE
from kfp import dsl


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def sweep_points(wanted: dict) -> list:
    """List the points to run in parallel; one for a plain fine-tuning.

    Args:
        wanted: The task: a :class:`clipmill.stages.TaskSpec` as JSON.

    Returns:
        Values by path, for each point.
    """
    from clipmill import stages

    return list(stages.TaskSpec.from_json(wanted).sweep.points())
