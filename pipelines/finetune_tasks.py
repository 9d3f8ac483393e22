"""From an encoder to promoted task models: a sweep per task, its points in parallel."""

from clipmill.components.deployment.deploy import deploy
from clipmill.components.deployment.promote import promote
from clipmill.components.evaluation.task_report import task_report
from clipmill.components.training.list_sweep_points import list_sweep_points
from clipmill.components.training.sweep import sweep
from clipmill.components.training.sweep_point import sweep_point
from clipmill.pipelines.common import Channel, on_pool
from kfp import dsl


def finetuned(
    store: Channel,
    encoder: Channel,
    tasks: Channel,
    namespace: str = "",
    runtime: str = "cpu",
    prometheus: str = "",
) -> None:
    """Run a sweep for each of ``tasks``, promote and deploy the best models, write the report."""
    with dsl.ParallelFor(items=tasks, parallelism=4, name="each task") as task_spec:
        tuning = {"encoder": encoder, "task_spec": task_spec, "store": store}
        points = on_pool(list_sweep_points(task_spec=task_spec), "cpu", is_light=True)
        with dsl.ParallelFor(items=points.output, name="each sweep point") as point:
            tried = on_pool(sweep_point(point=point, **tuning), "gpu")
            tried.set_display_name("fine-tune and evaluate")
        # It reuses finished points, and continues with the best where the recipe has further rungs.
        best = on_pool(sweep(**tuning).after(tried), "gpu").set_display_name("choose best model")
        promoted = promote(
            task=best.outputs["task"],
            min_metric=best.outputs["min_metric"],
            evaluations=best.outputs["evaluations"],
            store=store,
        )
        on_pool(promoted, "cpu", cached=False, is_light=True).set_display_name("promote model")
        deployed = deploy(
            promotion=promoted.outputs["Output"],
            endpoint=best.outputs["task"],
            namespace=namespace,
            runtime=runtime,
            prometheus=prometheus,
        )
        on_pool(deployed, "cpu", cached=False, is_light=True).set_display_name("deploy model")
    report = task_report(
        encoder=encoder,
        evaluations=dsl.Collected(best.outputs["evaluation"]),
        promotions=dsl.Collected(promoted.outputs["Output"]),
        store=store,
    )
    on_pool(report, "cpu", cached=False).set_display_name("report")
