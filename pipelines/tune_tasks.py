"""From an encoder to promoted task models: a sweep a task, its points side by side."""

from typing import NamedTuple

from clipmill.components.deploy import deploy
from clipmill.components.promote import promote
from clipmill.components.report_tasks import report_tasks
from clipmill.components.sweep import sweep
from clipmill.components.sweep_point import sweep_point
from clipmill.components.sweep_points import sweep_points
from clipmill.pipelines.common import on_pool
from kfp import dsl


@dsl.pipeline(name="tune-task")
def tune_task(
    store: str,
    run: str,
    encoder: str,
    wanted: dict,
    namespace: str = "",
    runtime: str = "cpu",
    prometheus: str = "",
) -> NamedTuple("Tuned", [("evaluation", str), ("promotion", str)]):
    """Try the points of a wanted task, promote the best, and deploy it where told to."""
    at = {"store": store, "run": run}
    tuning = {"encoder": encoder, "wanted": wanted, **at}
    points = on_pool(sweep_points(wanted=wanted), "cpu")
    with dsl.ParallelFor(items=points.output) as point:
        tried = on_pool(sweep_point(point=point, **tuning), "gpu")
    # Finds what was tried, and goes on with the best where the recipe has further rungs.
    best = on_pool(sweep(**tuning).after(tried), "gpu").outputs
    decided = promote(
        task=best["task"], threshold=best["gate"], evaluations=best["evaluations"], **at
    )
    promotion = on_pool(decided, "cpu", cached=False).output
    with dsl.If(namespace != "", name="on-a-cluster"):
        deployed = deploy(
            promotion=promotion,
            endpoint=best["task"],
            namespace=namespace,
            runtime=runtime,
            prometheus=prometheus,
        )
        on_pool(deployed, "cpu", cached=False)
    return NamedTuple("Tuned", [("evaluation", str), ("promotion", str)])(
        best["evaluation"], promotion
    )


@dsl.pipeline(name="tune-tasks")
def tune_tasks(
    store: str,
    run: str,
    encoder: str,
    tasks: list,
    namespace: str = "",
    runtime: str = "cpu",
    prometheus: str = "",
) -> str:
    """Tune ``encoder`` for each entry of ``tasks``; the page about all of them.

    A pipeline of its own because of what ``kfp.local`` does to loops, see ``compare_captions``.
    """
    at = {"store": store, "run": run}
    with dsl.ParallelFor(items=tasks, parallelism=4) as wanted:
        tuned = tune_task(
            encoder=encoder,
            wanted=wanted,
            namespace=namespace,
            runtime=runtime,
            prometheus=prometheus,
            **at,
        )
    page = report_tasks(
        encoder=encoder,
        evaluations=dsl.Collected(tuned.outputs["evaluation"]),
        promotions=dsl.Collected(tuned.outputs["promotion"]),
        **at,
    )
    return on_pool(page, "cpu", cached=False).outputs["Output"]
