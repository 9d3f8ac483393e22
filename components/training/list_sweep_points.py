"""Points of a task's sweep."""

from typing import NamedTuple

from clipmill.components import IMAGE
from kfp import dsl


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def list_sweep_points(encoder: str, task_spec: dict, store: str, wave: int) -> NamedTuple(  # type: ignore[valid-type]  # KFP reads no other form
    "Wave", [("points", list), ("has_more", bool)]
):  # fmt: skip
    """List the points of a sweep's wave to run in parallel; one for a plain fine-tuning.

    Args:
        encoder: Address of the encoder.
        task_spec: Recipe, data, overrides and threshold of the task, as JSON of a TaskSpec.
        store: URI of the store that has the results of the waves before.
        wave: Number of the wave, from 0.

    Returns:
        Each point's rung and values by path; whether another wave follows.
    """
    from clipmill import stages

    return stages.list_sweep_points(stages.TaskSpec.from_json(task_spec), encoder, store, wave)
