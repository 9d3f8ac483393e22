"""From a promotion's record to an endpoint that serves its model."""

import io
from dataclasses import replace

from clipmill.cluster.api import ClusterApi
from clipmill.cluster.prometheus import Prometheus
from clipmill.cluster.rollout import Rollout, RolloutConfig, roll_out
from clipmill.cluster.serving import EndpointConfig, ServedModel
from clipmill.models.checkpoint import read_metadata
from clipmill.tasks.evaluation import EvaluationResult
from clipmill.tasks.promotion import read_promotion


def deploy_promotion(
    promotion: str,
    endpoint: EndpointConfig,
    config: RolloutConfig,
    *,
    api: ClusterApi | None = None,
) -> Rollout:
    """Roll the promoted model out; only its smoke query judges it where there is no Prometheus.

    Raises:
        NotFoundError: nothing was promoted there.
        GateError: the canary failed; what served before serves on.
        ClusterError: the cluster or Prometheus can't be reached.
    """
    result = read_promotion(promotion).evaluation
    server = Prometheus(endpoint.prometheus) if endpoint.prometheus else None
    return roll_out(
        endpoint,
        served_model(result),
        api=api or ClusterApi(),
        smoke=lambda url: _ask(url, endpoint.name, result),
        error_ratio=server.error_ratio if server else lambda _endpoint, _track: 0.0,
        config=config if server else replace(config, watch_seconds=0.0),
    )


def served_model(result: EvaluationResult) -> ServedModel:
    """The judged model with its metrics and parents."""
    metadata = read_metadata(result.model.uri)
    return ServedModel(
        uri=result.model.uri,
        digest=result.model.digest,
        task=result.task,
        metrics=result.metrics,
        parents={parent.role: parent.digest for parent in metadata.parents},
    )


def _ask(url: str, model: str, result: EvaluationResult) -> None:
    import numpy as np
    from PIL import Image

    from clipmill.serve.client import query

    image = Image.open(io.BytesIO(result.read_image(0, "image"))).convert("RGB")
    query(url, model, np.asarray(image))
