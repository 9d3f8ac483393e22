"""Component: the best of a grid of fine-tunings."""

from typing import NamedTuple

from clipmill.components import IMAGE
from kfp import dsl


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def sweep(
    encoder: str, wanted: dict, store: str, run: str,
    made: dsl.Output[dsl.Model], metrics: dsl.Output[dsl.Metrics], page: dsl.Output[dsl.HTML],
) -> NamedTuple(
    "Best", [("task", str), ("gate", float), ("evaluation", str), ("evaluations", list)]
):  # fmt: skip
    """Try what wasn't tried, draw the grid, and tell the best point's evaluation."""
    from pathlib import Path

    from clipmill.cluster.artifacts import recorded
    from clipmill.stages.run import WantedTask, best_of_sweep
    from clipmill.storage import read_bytes

    task = WantedTask.from_json(wanted)
    uri, best = best_of_sweep(task, encoder, store, run)
    Path(page.path).write_bytes(read_bytes(f"{uri}/sweep.html"))
    recorded(best.model.uri, made)
    for name, value in best.metrics.items():
        metrics.log_metric(name, value)
    return best.task, task.gate, best.uri, [best.uri]
