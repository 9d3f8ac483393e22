"""From an encoder to promoted task models: a sweep per task, its points in parallel."""

from collections.abc import Mapping

from clipmill.components.deployment.deploy import deploy
from clipmill.components.deployment.promote import promote
from clipmill.components.evaluation.task_report import task_report
from clipmill.components.training.list_sweep_points import list_sweep_points
from clipmill.components.training.sweep import sweep
from clipmill.components.training.sweep_point import sweep_point
from clipmill.pipelines.common import Channel, on_pool
from kfp import dsl

MAX_WAVES = 4
"""Waves of a sweep whose points run in parallel; the task that completes it runs further ones.

KFP has no loop of unknown length, so the waves are compiled in, each nested in the one before.
"""


def _run_wave(wave: int, before: list[dsl.PipelineTask], tuning: Mapping[str, Channel]) -> None:
    listed = list_sweep_points(wave=wave, **tuning).after(*before)
    on_pool(listed, "cpu", is_light=True).set_display_name(f"list points of wave {wave + 1}")
    with dsl.ParallelFor(items=listed.outputs["points"], name="each sweep point") as point:
        tried = on_pool(sweep_point(point=point, **tuning), "gpu")
        tried.set_display_name(f"fine-tune and evaluate, wave {wave + 1}")
    if wave + 1 < MAX_WAVES:
        with dsl.If(listed.outputs["has_more"] == True, name="another wave"):  # noqa: E712  # KFP's
            _run_wave(wave + 1, [tried], tuning)


@dsl.pipeline(name="run-sweep-points")
def run_sweep_points(store: str, encoder: str, task_spec: dict) -> None:
    """Run the points of a sweep, wave by wave."""
    _run_wave(0, [], {"encoder": encoder, "task_spec": task_spec, "store": store})


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
        tried = run_sweep_points(**tuning).set_display_name("run sweep points")
        # It reuses finished points, and runs those of further waves.
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
