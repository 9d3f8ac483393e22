"""Helm's own install and upgrade, at an API that keeps what it is sent."""

import json
from base64 import b64decode

import pytest
from helm_python.errors import HelmError
from helpers.helm_api import cluster
from helpers.helm_chart import CHART, ENDPOINT, deep, lean, render

from clipmill.cluster.kserve import PromotedModel, promoted_fields, served_model

VALUES = deep(
    deep(lean(""), "objectStore", {"createSecret": True, "embedded": {"enabled": True}}),
    "serving.endpoints",
    [ENDPOINT],
)

NO_ENDPOINTS = deep(VALUES, "serving.endpoints", [])


def test_an_upgrade_keeps_generated_keys():
    values = deep(VALUES, "pipelines.enabled", True)
    with cluster(render(values)) as (server, helm):

        def upgraded(path, value):
            helm.upgrade(str(CHART), "mill", deep(values, path, value))

        helm.install(str(CHART), "mill", values)
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


def keys(server):
    data = server.of("Secret")["clipmill-store"]["data"]
    return tuple(
        b64decode(data[f"AWS_{n}"]).decode() for n in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY")
    )


def checksum(server):
    template = server.of("StatefulSet")["clipmill-store"]["spec"]["template"]
    return template["metadata"]["annotations"]["checksum/store"]


def test_keys_rotate_and_given_keys_go_with_the_values():
    with cluster(render(NO_ENDPOINTS)) as (server, helm):
        helm.install(str(CHART), "mill", NO_ENDPOINTS)
        seen = [(keys(server), checksum(server))]
        certificate = server.of("Secret")["clipmill-store-grpc"]["data"]

        def upgraded(**store):
            values = {**NO_ENDPOINTS["objectStore"], **store}
            helm.upgrade(str(CHART), "mill", {**NO_ENDPOINTS, "objectStore": values})
            seen.append((keys(server), checksum(server)))
            return seen[-1]

        assert upgraded() == seen[0]
        second = {"embedded": {"enabled": True, "keysVersion": 2}}
        drawn, _ = upgraded(**second)
        assert upgraded(**second) == seen[-2]
        assert [len(key) for key in drawn] == [20, 40]
        given, _ = upgraded(**second, accessKey="mine", secretKey="secret")
        assert given == ("mine", "secret")
        again, _ = upgraded(**second)
        assert again != given
        # The store restarts with each change of its keys.
        changes = [(one[0] != two[0], one[1] != two[1]) for one, two in zip(seen, seen[1:])]
        assert changes == [(False, False), (True, True), (False, False), (True, True), (True, True)]
        assert server.of("Secret")["clipmill-store-grpc"]["data"] == certificate


def test_a_volume_that_cant_be_changed_is_refused_before_the_cluster_is():
    with cluster(render(NO_ENDPOINTS)) as (server, helm):
        helm.install(str(CHART), "mill", NO_ENDPOINTS)
        for name, value, words in (
            ("size", "30Gi", "embedded.size is 30Gi, but the installed store has 20Gi"),
            ("storageClass", "fast", 'storageClass is "fast", but the installed store has ""'),
        ):
            with pytest.raises(HelmError) as caught:
                helm.upgrade(
                    str(CHART), "mill", deep(NO_ENDPOINTS, f"objectStore.embedded.{name}", value)
                )
            assert words in str(caught.value)
        # As the page on upgrading says: the StatefulSet goes, its pod and volume stay.
        path = next(p for p, r in server.kept.items() if r["kind"] == "StatefulSet")
        del server.kept[path]
        helm.upgrade(str(CHART), "mill", deep(NO_ENDPOINTS, "objectStore.embedded.size", "30Gi"))
        (claim,) = server.of("StatefulSet")["clipmill-store"]["spec"]["volumeClaimTemplates"]
        assert claim["spec"]["resources"]["requests"]["storage"] == "30Gi"


def test_levels_of_a_topology_that_cant_be_changed_are_refused():
    values = deep(NO_ENDPOINTS, "kueue", {"enabled": True, "topologyLevels": ["zone"]})
    with cluster(render(values)) as (server, helm):
        helm.install(str(CHART), "mill", values)
        other = deep(values, "kueue.topologyLevels", ["rack", "kubernetes.io/hostname"])
        with pytest.raises(HelmError, match="the installed topology has zone"):
            helm.upgrade(str(CHART), "mill", other)
        helm.upgrade(str(CHART), "mill", deep(other, "kueue.queue", "racks"))
        assert "ml-racks" in server.of("Topology")


KEPT = {"InferenceService", "ServingRuntime", "ServiceAccount", "Secret", "StatefulSet", "Service"}
"""Kinds that an uninstall leaves, in addition to PipelineVersions: what a served endpoint needs."""


def adopt(server, name):
    """As ``helm install --take-ownership`` does."""
    for resource in server.kept.values():
        resource["metadata"].setdefault("annotations", {})["meta.helm.sh/release-name"] = name


def test_uninstall_leaves_what_endpoints_need_and_any_release_adopts_it():
    values = deep(VALUES, "pipelines.enabled", True)
    with cluster(render(values)) as (server, helm):
        helm.install(str(CHART), "mill", values)
        before, first = dict(server.kept), keys(server)
        helm.uninstall("mill")
        left = {r["kind"] for r in server.kept.values()} - {"PipelineVersion"}
        assert left == KEPT
        endpoint = server.of("InferenceService")["depth"]["spec"]["predictor"]
        assert endpoint["model"]["runtime"] in server.of("ServingRuntime")
        assert {endpoint["serviceAccountName"]} == server.of("ServiceAccount").keys()
        assert {"clipmill-store", "clipmill-store-grpc"} == server.of("Secret").keys()
        store = server.of("StatefulSet")["clipmill-store"]["spec"]
        service = server.of("Service")["clipmill-store"]["spec"]
        adopt(server, "other")
        helm.install(str(CHART), "other", values)
        assert server.kept.keys() >= before.keys() - {p for p in before if "pipelineversion" in p}
        assert keys(server) == first
        # The store's pod isn't restarted: its template is the same, whatever the release's name.
        assert server.of("StatefulSet")["clipmill-store"]["spec"] == store
        assert server.of("Service")["clipmill-store"]["spec"] == service


def test_another_version_of_the_chart_doesnt_restart_the_store():
    (store,) = [r for r in render(NO_ENDPOINTS) if r["kind"] == "StatefulSet"]
    labels = store["spec"]["template"]["metadata"]["labels"]
    assert not labels.keys() & {"helm.sh/chart", "app.kubernetes.io/version"}
    assert labels == store["spec"]["selector"]["matchLabels"]
