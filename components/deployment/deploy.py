"""Canary rollout of a promoted model."""

from clipmill.components import IMAGE
from kfp import dsl


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def deploy(promotion: str, endpoint: str, namespace: str, runtime: str, prometheus: str) -> str:
    """Roll a promoted model out to an endpoint as a canary.

    Args:
        promotion: URI of the promotion; empty where no model was promoted.
        endpoint: Name of the endpoint.
        namespace: Kubernetes namespace; empty to deploy nothing.
        runtime: Serving runtime: cpu or gpu.
        prometheus: Prometheus URL for the canary's error rate.

    Returns:
        Digest of the model that the endpoint serves; empty if nothing was deployed.
    """
    from clipmill.cluster.kserve import InferenceServiceConfig
    from clipmill.cluster.rollout import RolloutConfig, deploy_promotion

    if not (promotion and namespace):
        return ""
    settings = {"name": endpoint, "namespace": namespace, "runtime": runtime}
    service = InferenceServiceConfig.from_json({**settings, "prometheus": prometheus})
    return deploy_promotion(promotion, service, RolloutConfig()).digest
