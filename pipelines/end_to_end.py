"""The whole way on a cluster: as first-light, then the promoted models take over its endpoints."""

from typing import Any

from clipmill.components.deploy import deploy
from clipmill.components.finish_run import finish_run
from clipmill.pipelines.common import inputs_for, on_pool, with_inputs_of
from clipmill.pipelines.first_light import first_light
from kfp import dsl


@dsl.pipeline(name="end-to-end")
@with_inputs_of(first_light)
def end_to_end(
    store: str,
    run: str,
    namespace: str = "",
    runtime: str = "cpu",
    prometheus: str = "",
    **given: Any,
) -> None:
    """Pretrain, fine-tune, judge, and deploy what passes its gate.

    ``namespace`` is where the endpoints are; without one nothing is deployed. However the run
    ends, the store says so.
    """
    at = {"store": store, "run": run}
    with dsl.ExitHandler(on_pool(finish_run(**at), "cpu", cached=False), name="all"):
        made = first_light(**at, **inputs_for(first_light, given))
        with dsl.If(namespace != "", name="on-a-cluster"):
            for task in ("segmentation", "depth"):
                deployed = deploy(
                    promotion=f"{store}/serving/{task}",
                    endpoint=task,
                    namespace=namespace,
                    runtime=runtime,
                    prometheus=prometheus,
                ).after(made)
                deployed.set_display_name(f"deploy {task}")
                on_pool(deployed, "cpu", cached=False)
