"""The full pipeline of a cluster: train-and-report, then deployment of the promoted models."""

from typing import Any

from clipmill.components.deployment.deploy import deploy
from clipmill.pipelines.common import inputs_for, on_pool, pipeline
from clipmill.pipelines.train_and_report import trained_and_compared


@pipeline("end-to-end", trained_and_compared)
def end_to_end(
    store: str, namespace: str = "", runtime: str = "cpu", prometheus: str = "", **given: Any
) -> None:
    """Pretrain on real captions, and on real and synthetic ones, compare, report, and deploy.

    Both encoders are evaluated at segmentation and depth. The best models are promoted if they
    reach their threshold, tested, and rolled out to the endpoints segmentation and depth. The task
    report shows the page with all results.
    """
    compared = trained_and_compared(store=store, **inputs_for(trained_and_compared, given))
    for task, promotion in compared.promotions.items():
        deployed = deploy(
            promotion=promotion,
            endpoint=task,
            namespace=namespace,
            runtime=runtime,
            prometheus=prometheus,
        ).after(compared.tested)
        on_pool(deployed, "cpu", cached=False, is_light=True).set_display_name(
            f"deploy {task} model"
        )
