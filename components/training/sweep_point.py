"""One point of a sweep."""

from clipmill.components import IMAGE
from kfp import dsl


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def sweep_point(encoder: str, task_spec: dict, point: dict, store: str) -> str:
    """Fine-tune and evaluate one point of a sweep.

    Args:
        encoder: Address of the encoder.
        task_spec: Recipe, data, overrides and threshold of the task, as JSON of a TaskSpec.
        point: Rung and values by path, as list_sweep_points gives them.
        store: URI of the store to write to.

    Returns:
        URI of the evaluation; empty where training diverged.
    """
    from clipmill import stages

    return stages.sweep_point(stages.TaskSpec.from_json(task_spec), point, encoder, store)
