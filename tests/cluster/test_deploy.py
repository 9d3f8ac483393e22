"""A promotion's record becomes an endpoint: lineage, the gate, what isn't there."""

import pytest

from clipmill.cluster.kserve import InferenceServiceConfig, RolloutConfig, deploy_promotion
from clipmill.errors import GateError, NotFoundError, ServerError
from clipmill.lineage import Parent
from clipmill.models.checkpoint import CheckpointMetadata, save_checkpoint
from clipmill.storage import join, write_bytes, write_json
from clipmill.tasks.visualization import encode_png

ENDPOINT = InferenceServiceConfig(name="depth", namespace="ml")
QUICK = RolloutConfig(ready_seconds=1.0, observation_seconds=0.0, poll_interval_seconds=0.01)


@pytest.fixture
def promotion(tmp_path):
    """A promoted depth model; nothing of it can be served here."""
    import numpy as np
    import torch

    store = str(tmp_path)
    parents = (Parent(role="encoder", uri="e", digest="abc"),)
    metadata = CheckpointMetadata(
        kind="task-model", architecture={"task": "depth"}, recipe={}, parents=parents
    )
    metadata = save_checkpoint(join(store, "models/m"), metadata, {"w": torch.zeros(1)})
    evaluation = join(store, "evaluations/e")
    write_bytes(join(evaluation, "00-image.png"), encode_png(np.zeros((8, 8, 3), np.uint8)))
    data = {"role": "data", "uri": "d", "digest": "d"}
    write_json(
        join(evaluation, "evaluation.json"),
        {
            "format": 1, "kind": "evaluation", "digest": "e", "task": "depth",
            "metrics": {"rmse": 0.4}, "num_samples": 1,
            "parents": [metadata.as_parent("model").to_json(), data],
        },
    )  # fmt: skip
    write_json(join(store, "serving/depth/promotion.json"), {"evaluation": evaluation})
    return join(store, "serving/depth")


def test_the_model_is_created_with_its_lineage_and_asked(cluster, promotion):
    def ready(resource):
        resource["status"] = {"conditions": [{"type": "Ready", "status": "True"}]}

    cluster.on_change = ready
    with pytest.raises(ServerError, match=r"depth-rev-[0-9a-f]{8}-predictor\.ml"):
        deploy_promotion(promotion, ENDPOINT, QUICK, api=cluster.api())
    (made,) = cluster.resources.values()
    annotations = made["metadata"]["annotations"]
    assert annotations["clipmill.io/parent-encoder"] == "abc"
    assert annotations["clipmill.io/metric-rmse"] == "0.4"
    assert made["spec"]["predictor"]["model"]["storageUri"].endswith("models/m")


def test_a_model_that_never_loads_is_said(cluster, promotion):
    with pytest.raises(GateError, match="endpoint depth wasn't ready"):
        deploy_promotion(promotion, ENDPOINT, QUICK, api=cluster.api())


def test_a_promotion_that_isnt_there_is_said(cluster, tmp_path):
    with pytest.raises(NotFoundError):
        deploy_promotion(str(tmp_path / "none"), ENDPOINT, QUICK, api=cluster.api())
    assert cluster.requests == []
