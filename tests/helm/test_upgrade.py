"""Helm's own install and upgrade, at an API that keeps what it is sent."""

import json

from helpers.helm_api import cluster
from helpers.helm_chart import CHART, ENDPOINT, deep, profile, render

VALUES = deep(
    deep(profile(""), "objectStore", {"createSecret": True, "embedded": {"enabled": True}}),
    "serving.endpoints",
    [ENDPOINT],
)


def test_an_upgrade_keeps_generated_keys_and_what_serves():
    with cluster(render(VALUES)) as (server, helm):

        def upgraded(path, value):
            helm.upgrade(str(CHART), "mill", deep(VALUES, path, value))
            return server.of("InferenceService")["depth"]["spec"]["predictor"]

        helm.install(str(CHART), "mill", VALUES)
        keys = server.of("Secret")["clipmill-store"]["data"]
        assert keys["AWS_SECRET_ACCESS_KEY"]
        versions = server.of("PipelineVersion").keys()
        served = server.of("InferenceService")["depth"]["spec"]["predictor"]
        assert served["model"]["storageUri"] == ENDPOINT["modelUri"]

        # As a roll-out does it.
        served["name"] = "track-2"
        served["model"]["storageUri"] = "s3://bucket/models/depth-2"
        rolled_out = json.loads(json.dumps(served))
        assert upgraded("images.train.tag", "9.9.9") == rolled_out
        assert server.of("Secret")["clipmill-store"]["data"] == keys
        # With another image a pipeline is another version; runs of the old one go on.
        assert server.of("PipelineVersion").keys() > versions
        served = upgraded("serving.endpoints", [{**ENDPOINT, "maxReplicas": 5}])
        assert served == {**rolled_out, "maxReplicas": 5}
        assert upgraded("serving.endpoints", []) == served

        asked = {**ENDPOINT, "modelUri": "s3://bucket/models/depth-3"}
        served = upgraded("serving.endpoints", [asked])
        assert (served["name"], served["model"]["storageUri"]) == ("stable", asked["modelUri"])
