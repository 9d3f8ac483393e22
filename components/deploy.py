"""Component: a promoted model on a cluster's endpoint."""

from clipmill.components import IMAGE
from kfp import dsl


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def deploy(promotion: str, endpoint: str, namespace: str, runtime: str, prometheus: str) -> str:
    """Let the promotion's model take over as a canary; the digest of what serves now."""
    from clipmill.cluster.deploy import deploy_promotion
    from clipmill.cluster.rollout import RolloutConfig
    from clipmill.cluster.serving import EndpointConfig

    settings = {"name": endpoint, "namespace": namespace, "runtime": runtime}
    place = EndpointConfig.from_json({**settings, "prometheus": prometheus})
    return deploy_promotion(promotion, place, RolloutConfig()).digest
