"""Points of a task's sweep."""

from clipmill.components import IMAGE
from kfp import dsl


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def list_sweep_points(task_spec: dict) -> list:
    """List the points to run in parallel; one for a plain fine-tuning.

    Args:
        task_spec: Recipe, data, overrides and threshold of the task, as JSON of a TaskSpec.

    Returns:
        Values by path, for each point.
    """
    from clipmill import stages
    from clipmill.tasks.sweep import next_wave

    return next_wave(stages.TaskSpec.from_json(task_spec).sweep, [])[1]
