"""Helm's own install and upgrade, at an API that keeps what it is sent."""

import json

import pytest
from helpers.helm_api import cluster
from helpers.helm_chart import CHART, ENDPOINT, deep, profile, render

from clipmill.cluster.kserve import PromotedModel, promoted_fields, served_model

VALUES = deep(
    deep(profile(""), "objectStore", {"createSecret": True, "embedded": {"enabled": True}}),
    "serving.endpoints",
    [ENDPOINT],
)


def test_an_upgrade_keeps_generated_keys():
    with cluster(render(VALUES)) as (server, helm):

        def upgraded(path, value):
            helm.upgrade(str(CHART), "mill", deep(VALUES, path, value))

        helm.install(str(CHART), "mill", VALUES)
        keys = server.of("Secret")["clipmill-store"]["data"]
        assert keys["AWS_SECRET_ACCESS_KEY"]
        versions = server.of("PipelineVersion").keys()
        assert served_model(predictor(server)) == PromotedModel(uri=ENDPOINT["modelUri"])

        upgraded("images.train.tag", "9.9.9")
        assert server.of("Secret")["clipmill-store"]["data"] == keys
        # With another image a pipeline is another version; runs of the old one go on.
        assert server.of("PipelineVersion").keys() > versions


def predictor(server):
    return server.of("InferenceService")["depth"]["spec"]["predictor"]


def roll_out(server, model):
    """As a rollout promotes a model: the variable and the annotation."""
    live = predictor(server)
    fields = promoted_fields(live, model)
    live["annotations"].update(fields["annotations"])
    live["model"].update(fields["model"])


BETTER = PromotedModel(uri="s3://bucket/models/depth-2", digest="2" * 64, task="depth")
THIRD = "s3://bucket/models/depth-3"


@pytest.fixture
def installed():
    """The chart with one endpoint, and a function that upgrades it to other endpoints."""
    with cluster(render(VALUES)) as (server, helm):
        helm.install(str(CHART), "mill", VALUES)

        def upgrade(*endpoints, **others):
            values = deep(VALUES, "serving.endpoints", list(endpoints))
            for path, value in others.items():
                values = deep(values, path, value)
            helm.upgrade(str(CHART), "mill", values)
            return served_model(predictor(server))

        yield server, upgrade


def test_before_a_rollout_the_values_name_the_model(installed):
    _, upgrade = installed
    assert upgrade({**ENDPOINT, "modelUri": THIRD}) == PromotedModel(uri=THIRD)


def test_after_a_rollout_an_upgrade_keeps_what_serves(installed):
    server, upgrade = installed
    roll_out(server, BETTER)
    before = json.loads(json.dumps(predictor(server)))
    assert upgrade(ENDPOINT) == BETTER
    assert predictor(server) == before
    upgrade({**ENDPOINT, "maxReplicas": 5})
    assert predictor(server) == {**before, "maxReplicas": 5}
    assert upgrade() == BETTER


def test_after_a_rollout_another_model_in_the_values_takes_its_place(installed):
    server, upgrade = installed
    roll_out(server, BETTER)
    assert upgrade({**ENDPOINT, "modelUri": THIRD}) == PromotedModel(uri=THIRD)
    # The name stays, so KServe replaces the pods one by one; the annotation names what serves.
    assert predictor(server)["name"] == "stable"
    assert json.loads(predictor(server)["annotations"]["clipmill.io/model"]) == {"uri": THIRD}
    roll_out(server, BETTER)
    assert upgrade({**ENDPOINT, "modelUri": THIRD}) == BETTER
    assert upgrade(ENDPOINT) == PromotedModel(uri=ENDPOINT["modelUri"])


def test_an_endpoint_that_a_rollout_made_keeps_its_model_when_it_is_adopted(installed):
    server, upgrade = installed
    resource = server.of("InferenceService")["depth"]
    del resource["metadata"]["annotations"]["clipmill.io/installed-model"]
    roll_out(server, BETTER)
    resource["spec"]["predictor"]["name"] = ""
    assert upgrade(ENDPOINT) == BETTER
    assert predictor(server)["name"] == ""
    installed_model = server.of("InferenceService")["depth"]["metadata"]["annotations"]
    assert installed_model["clipmill.io/installed-model"] == ENDPOINT["modelUri"]
    assert upgrade({**ENDPOINT, "modelUri": THIRD}) == PromotedModel(uri=THIRD)


def test_a_model_that_was_changed_by_hand_is_kept_and_named(installed):
    server, upgrade = installed
    roll_out(server, BETTER)
    predictor(server)["model"]["env"][0]["value"] = THIRD
    assert upgrade(ENDPOINT) == PromotedModel(uri=THIRD)
    assert json.loads(predictor(server)["annotations"]["clipmill.io/model"]) == {"uri": THIRD}
