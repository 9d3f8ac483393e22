"""Canary rollout of a promoted model."""

from clipmill.components import IMAGE
from kfp import dsl


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def deploy(promotion: str, endpoint: str, namespace: str, runtime: str, prometheus: str) -> str:
    """Roll a promoted model out to an endpoint as a canary.

    Args:
        promotion: URI of the promotion.
        endpoint: Name of the endpoint.
        namespace: Kubernetes namespace.
        runtime: Serving runtime: cpu or gpu.
        prometheus: Prometheus URL for the canary's error rate.

    Returns:
        Digest of the model that the endpoint serves.
    """
    from clipmill.cluster.kserve import InferenceServiceConfig
    from clipmill.cluster.rollout import RolloutConfig, deploy_promotion

    settings = {"name": endpoint, "namespace": namespace, "runtime": runtime}
    service = InferenceServiceConfig.from_json({**settings, "prometheus": prometheus})
    return deploy_promotion(promotion, service, RolloutConfig()).digest
