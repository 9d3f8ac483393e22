"""From an encoder to promoted task models: a sweep per task, its points in parallel."""

from typing import NamedTuple

from clipmill.components.deployment.deploy import deploy
from clipmill.components.deployment.promote import promote
from clipmill.components.evaluation.task_report import task_report
from clipmill.components.training.list_sweep_points import list_sweep_points
from clipmill.components.training.sweep import sweep
from clipmill.components.training.sweep_point import sweep_point
from clipmill.pipelines.common import on_pool
from kfp import dsl


@dsl.pipeline(name="finetune-task")
def finetune_task(
    store: str,
    run: str,
    encoder: str,
    task_spec: dict,
    namespace: str = "",
    runtime: str = "cpu",
    prometheus: str = "",
) -> NamedTuple("Finetuned", [("evaluation", str), ("promotion", str)]):  # type: ignore[valid-type]
    """Run a task's sweep, promote the best model, and deploy it if ``namespace`` is given."""
    at = {"store": store, "run": run}
    tuning = {"encoder": encoder, "task_spec": task_spec, **at}
    points = on_pool(list_sweep_points(task_spec=task_spec), "cpu")
    with dsl.ParallelFor(items=points.output) as point:
        tried = on_pool(sweep_point(point=point, **tuning), "gpu")
    # It reuses finished points, and continues with the best where the recipe has further rungs.
    best = on_pool(sweep(**tuning).after(tried), "gpu").outputs
    decided = promote(
        task=best["task"], min_metric=best["min_metric"], evaluations=best["evaluations"], **at
    )
    promotion = on_pool(decided, "cpu", cached=False).output
    with dsl.If(namespace != "", name="deploy"):
        deployed = deploy(
            promotion=promotion,
            endpoint=best["task"],
            namespace=namespace,
            runtime=runtime,
            prometheus=prometheus,
        )
        on_pool(deployed, "cpu", cached=False)

    class Finetuned(NamedTuple):
        evaluation: str
        promotion: str

    return Finetuned(best["evaluation"], promotion)


@dsl.pipeline(name="finetune-tasks")
def finetune_tasks(
    store: str,
    run: str,
    encoder: str,
    tasks: list,
    namespace: str = "",
    runtime: str = "cpu",
    prometheus: str = "",
) -> str:
    """Fine-tune ``encoder`` for each entry of ``tasks``; return the URI of the report.

    A pipeline of its own because of what ``kfp.local`` does to loops, see ``compare_captions``.
    """
    at = {"store": store, "run": run}
    with dsl.ParallelFor(items=tasks, parallelism=4) as task_spec:
        tuned = finetune_task(
            encoder=encoder,
            task_spec=task_spec,
            namespace=namespace,
            runtime=runtime,
            prometheus=prometheus,
            **at,
        )
    page = task_report(
        encoder=encoder,
        evaluations=dsl.Collected(tuned.outputs["evaluation"]),
        promotions=dsl.Collected(tuned.outputs["promotion"]),
        **at,
    )
    return on_pool(page, "cpu", cached=False).outputs["Output"]
