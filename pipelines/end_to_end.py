"""The full pipeline of a cluster: train-and-report, then deployment of the promoted models."""

from typing import Any

from clipmill.components.deployment.deploy import deploy
from clipmill.components.deployment.record_run_status import record_run_status
from clipmill.pipelines.common import inputs_for, on_pool, with_inputs_of
from clipmill.pipelines.train_and_report import train_and_report
from kfp import dsl


@dsl.pipeline(name="end-to-end")
@with_inputs_of(train_and_report)
def end_to_end(
    store: str,
    run: str,
    namespace: str = "",
    runtime: str = "cpu",
    prometheus: str = "",
    **given: Any,
) -> None:
    """Pretrain, fine-tune, evaluate, and deploy the models that reach their threshold.

    ``namespace`` is that of the endpoints; without one nothing is deployed. The run's final status
    is recorded in the store.
    """
    at = {"store": store, "run": run}
    with dsl.ExitHandler(on_pool(record_run_status(**at), "cpu", cached=False), name="run"):
        report = train_and_report(**at, **inputs_for(train_and_report, given))
        with dsl.If(namespace != "", name="deploy"):
            for task in ("segmentation", "depth"):
                deployed = deploy(
                    promotion=f"{store}/serving/{task}",
                    endpoint=task,
                    namespace=namespace,
                    runtime=runtime,
                    prometheus=prometheus,
                ).after(report)
                deployed.set_display_name(f"deploy {task}")
                on_pool(deployed, "cpu", cached=False)
