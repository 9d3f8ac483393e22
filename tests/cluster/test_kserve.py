"""Objects of an endpoint, held against KServe's definitions and the rules of its webhook."""

import copy
import re
from dataclasses import replace

import pytest

from clipmill.cluster.kserve import (
    MODEL_ANNOTATION,
    PREDICTOR_ANNOTATION,
    InferenceServiceConfig,
    PromotedModel,
    canary,
    canary_name,
    endpoint_service,
    inference_service,
    predictor_settings,
    promoted_fields,
    served_model,
)
from clipmill.errors import ConfigError
from helpers.kserve_cluster import RUNTIME, KServe, refusal
from helpers.kubernetes_api import merged
from helpers.strict_schemas import findings

ENDPOINT = InferenceServiceConfig(name="depth", namespace="ml")
OLD = PromotedModel(uri="s3://b/models/old", digest="0" * 64, task="depth")
NEW = PromotedModel(uri="s3://b/models/new", digest="1" * 64, task="depth", metrics={"rmse": 0.5})
KEDA = {
    "autoScaling": {
        "metrics": [
            {
                "type": "External",
                "external": {
                    "metric": {"backend": "prometheus", "serverAddress": "http://p", "query": "q"},
                    "target": {"type": "Value", "value": "8"},
                },
            }
        ]
    }
}


def rolled_out(settings=None):
    made = inference_service(ENDPOINT, OLD, settings or {})
    stable = made["spec"]["predictor"]
    with_canary = merged(made, {"spec": {"canary": [canary(stable, NEW, 10)]}})
    promoted = merged(made, {"spec": {"canary": [], "predictor": promoted_fields(stable, NEW)}})
    return made, with_canary, promoted


@pytest.mark.parametrize("settings", [{}, KEDA])
def test_kserve_accepts_every_step_of_a_rollout(settings):
    before = None
    for step in rolled_out(settings):
        assert refusal(step, before) == ""
        assert findings(step) == []
        before = step


def broken(path, value):
    """An endpoint with a canary, and one field set otherwise."""
    _, resource, _ = rolled_out(copy.deepcopy(KEDA))
    owner = resource
    *parents, last = path.split(".")
    for part in parents:
        owner = owner[int(part)] if part.isdigit() else owner[part]
    owner[last] = value
    return resource


METRIC = "spec.predictor.autoScaling.metrics.0.external.target"


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("spec.predictor.model.name", "kserve-container", "'name' field is not allowed"),
        ("spec.predictor.name", "rev-22222222", "predictor.name change requires a model change"),
        (METRIC, {"type": "AverageValue", "averageValue": "8"}, "threshold value should not be"),
        ("spec.canary.0.predictor.autoScaling", KEDA["autoScaling"], "must not set autoScaling"),
        ("spec.canary.0.predictor.maxReplicas", 4, "must not set maxReplicas"),
        ("spec.canary.0.predictor.minReplicas", 2, "must not exceed stable"),
        ("spec.canary.0.predictor.name", "stable", "conflicts with stable predictor name"),
        ("spec.canary.0.predictor.name", "", "predictor.name is required"),
        ("spec.canary.0.predictor.model", {"modelFormat": {"name": "clipmill"}}, "Required value"),
    ],
)
def test_the_webhooks_rules_refuse_what_kserve_refused(path, value, words):
    assert words in refusal(broken(path, value), rolled_out(KEDA)[0])


def test_a_canary_is_the_stable_predictor_with_another_model_in_one_pod():
    made, with_canary, _ = rolled_out(KEDA)
    stable, (entry,) = made["spec"]["predictor"], with_canary["spec"]["canary"]
    predictor = entry["predictor"]
    assert served_model(predictor) == NEW
    assert served_model(stable) == OLD
    assert predictor["labels"]["clipmill.io/track"] == "canary"
    assert predictor["minReplicas"] == 1
    assert "autoScaling" not in predictor
    # KEDA refuses an object without metrics, which KServe would make for the canary.
    assert predictor["annotations"]["serving.kserve.io/autoscalerClass"] == "none"
    same = {"serviceAccountName", "securityContext", "terminationGracePeriodSeconds"}
    assert {k: stable[k] for k in same & stable.keys()} == {
        k: predictor[k] for k in same & stable.keys()
    }


def test_a_promotion_changes_the_model_only():
    made, _, promoted = rolled_out(KEDA)
    predictor = promoted["spec"]["predictor"]
    assert served_model(predictor) == NEW
    for field in ("annotations", "model"):
        del predictor[field]
        del made["spec"]["predictor"][field]
    assert predictor == made["spec"]["predictor"]


def test_other_variables_of_a_predictor_stay():
    stable = inference_service(ENDPOINT, OLD)["spec"]["predictor"]
    stable["model"]["env"].append({"name": "HTTP_PROXY", "value": "http://proxy"})
    names = [v["name"] for v in promoted_fields(stable, NEW)["model"]["env"]]
    assert names == ["HTTP_PROXY", "MODEL_URI"]


def test_the_variable_counts_where_it_and_the_annotation_differ():
    stable = inference_service(ENDPOINT, OLD)["spec"]["predictor"]
    stable["model"]["env"][0]["value"] = "s3://b/models/by-hand"
    assert served_model(stable) == PromotedModel(uri="s3://b/models/by-hand")
    stable["annotations"][MODEL_ANNOTATION] = "not JSON"
    assert served_model(stable) == PromotedModel(uri="s3://b/models/by-hand")
    assert served_model({"model": {"storageUri": "s3://foreign"}}) is None


@pytest.mark.parametrize(
    ("other", "is_same"),
    [
        (replace(OLD, uri="s3://copy"), True),
        (PromotedModel(uri=OLD.uri), True),
        (replace(OLD, digest="2" * 64), False),
        (NEW, False),
    ],
)
def test_models_are_the_same_by_digest_and_else_by_uri(other, is_same):
    assert OLD.is_same_as(other) is is_same


def test_the_service_selects_the_stable_pods_and_goes_with_its_owner():
    owner = inference_service(ENDPOINT, OLD)
    owner["metadata"]["uid"] = "u"
    service = endpoint_service(ENDPOINT, owner)
    assert ENDPOINT.url == f"http://{service['metadata']['name']}.ml"
    labels = owner["spec"]["predictor"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    assert service["metadata"]["ownerReferences"][0]["uid"] == "u"
    ports = {p["name"]: (p["port"], p["targetPort"]) for p in service["spec"]["ports"]}
    assert ports == {"http": (80, 8080), "grpc": (8081, 8081)}
    assert findings(endpoint_service(ENDPOINT)) == []


def test_kserve_makes_no_service_of_that_name_and_dns_takes_all_names():
    longest = InferenceServiceConfig(name="a" * 32)
    by_kserve = {f"{longest.name}-{p}-predictor" for p in ("stable", canary_name(NEW))}
    names = {longest.service_name, *by_kserve}
    assert len(names) == 3
    for name in names:
        assert len(name) <= 63
        assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name)


def test_settings_come_from_the_serving_runtime(cluster):
    KServe(cluster)
    annotation = '{"terminationGracePeriodSeconds": 99, "x": "ENDPOINT"}'
    metadata = cluster.resources[RUNTIME + "clipmill-cpu"]["metadata"]
    assert predictor_settings(ENDPOINT, cluster.api())["terminationGracePeriodSeconds"] == 75
    metadata["annotations"] = {PREDICTOR_ANNOTATION: annotation}
    settings = predictor_settings(ENDPOINT, cluster.api())
    assert settings["terminationGracePeriodSeconds"] == 99
    assert settings["x"] == "depth"
    assert settings["serviceAccountName"] == "clipmill-serve"


def test_a_namespace_without_the_runtime_is_refused(cluster):
    gpu = replace(ENDPOINT, runtime="gpu")
    with pytest.raises(ConfigError, match="namespace ml has no ServingRuntime clipmill-gpu"):
        predictor_settings(gpu, cluster.api())


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"name": "My.Depth"}, "can't name an endpoint"),
        ({"min_replicas": 0}, "without a pod serves no metrics"),
        ({"min_replicas": -1}, "replicas were -1 to 4"),
        ({"max_replicas": 0}, "replicas were 1 to 0"),
    ],
)
def test_an_endpoint_that_makes_no_sense_is_refused(wrong, words):
    with pytest.raises(ConfigError, match=words):
        InferenceServiceConfig(**{"name": "a", **wrong})


IMAGE = PromotedModel(
    uri="oci+native://registry.example.com/depth:1", digest=NEW.digest, task="depth"
)


def test_kserve_mounts_an_image_and_takes_it_away_again():
    made = inference_service(ENDPOINT, IMAGE)
    stable = made["spec"]["predictor"]
    assert stable["model"]["storageUri"] == IMAGE.uri
    assert stable["model"]["env"] == [{"name": "MODEL_URI", "value": "/mnt/models"}]
    assert served_model(stable) == IMAGE
    with_canary = merged(made, {"spec": {"canary": [canary(stable, OLD, 10)]}})
    back = merged(made, {"spec": {"canary": [], "predictor": promoted_fields(stable, OLD)}})
    again = merged(back, {"spec": {"predictor": promoted_fields(back["spec"]["predictor"], IMAGE)}})
    for step in (made, with_canary, back, again):
        assert refusal(step, None) == ""
        assert findings(step) == []
    (entry,) = with_canary["spec"]["canary"]
    assert served_model(entry["predictor"]) == OLD
    assert served_model(back["spec"]["predictor"]) == OLD
    assert "storageUri" not in back["spec"]["predictor"]["model"]
    assert again == made | {"spec": {**made["spec"], "canary": []}}


def test_a_checkpoint_and_its_image_are_two_models():
    assert not IMAGE.is_same_as(NEW)
    assert IMAGE.is_same_as(replace(IMAGE, metrics={"rmse": 1.0}))


def test_an_image_with_a_storage_is_what_kserve_refuses():
    made = inference_service(ENDPOINT, IMAGE)
    made["spec"]["predictor"]["model"]["storage"] = {}
    assert "storageUri" in refusal(made, None)
