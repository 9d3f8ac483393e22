"""A model takes over an endpoint, or is taken back, on an API that answers over HTTP."""

import re
from contextlib import suppress

import pytest

from clipmill.cluster.kserve import (
    DIGEST_ANNOTATION,
    InferenceServiceConfig,
    PromotedModel,
    RolloutConfig,
    canary,
    inference_service,
    predictor_name,
    rollout,
)
from clipmill.errors import ClusterError, ConfigError, GateError, ServerError
from helpers.strict_schemas import findings

ENDPOINT = InferenceServiceConfig(name="depth", namespace="ml")
OLD = PromotedModel(
    uri="s3://b/models/old", digest="0" * 64, task="depth", parents={"encoder": "e" * 64}
)
NEW = PromotedModel(uri="s3://b/models/new", digest="1" * 64, task="depth", metrics={"rmse": 0.5})
QUICK = RolloutConfig(ready_seconds=1.0, observation_seconds=0.0, poll_interval_seconds=0.01)
PATH = "/apis/serving.kserve.io/v1beta1/namespaces/ml/inferenceservices/depth"


def kserve(resource):
    """What KServe's controller says once pods are up."""
    canaries = [
        {"name": c["predictor"]["name"], "ready": True, "trafficPercent": c["trafficPercent"]}
        for c in resource["spec"].get("canary", [])
    ]
    ready = {"type": "Ready", "status": "True"}
    resource["status"] = {"conditions": [ready], "canaryStatuses": canaries}


def go(cluster, model, *, smoke=lambda url: None, ratio=lambda endpoint, track: 0.0, config=QUICK):
    return rollout(
        ENDPOINT, model, api=cluster.api(), smoke=smoke, error_ratio=ratio, config=config
    )


@pytest.fixture
def serving_old(cluster):
    cluster.on_change = kserve
    assert go(cluster, OLD).changed
    return cluster


def serves(cluster):
    spec = cluster.resources[PATH]["spec"]
    return spec["predictor"]["model"]["storageUri"], spec.get("canary", [])


def test_the_first_model_is_asked_once_it_is_ready(cluster):
    cluster.on_change = kserve
    asked = []
    go(cluster, OLD, smoke=asked.append)
    assert asked == ["http://depth-rev-00000000-predictor.ml"]
    made = {k: v for k, v in cluster.resources[PATH].items() if k != "status"}
    assert findings(made) == []
    assert made["metadata"]["annotations"]["clipmill.io/parent-encoder"] == "e" * 64


def test_a_better_model_gets_more_and_more_requests_and_then_all(serving_old):
    asked = []
    assert go(serving_old, NEW, smoke=asked.append).changed
    steps = [
        [c["trafficPercent"] for c in past["spec"].get("canary", [])]
        for past in serving_old.history
    ]
    assert steps == [[], [10], [50], []]
    assert asked == ["http://depth-rev-11111111-predictor.ml"] * 2
    for past in serving_old.history:
        assert findings({k: v for k, v in past.items() if k != "status"}) == []
    assert serves(serving_old) == (NEW.uri, [])
    # The name stays, so KServe moves the route and restarts nothing.
    assert serving_old.resources[PATH]["spec"]["predictor"]["name"] == predictor_name(NEW)
    annotations = serving_old.resources[PATH]["metadata"]["annotations"]
    assert annotations[DIGEST_ANNOTATION] == NEW.digest
    assert annotations["clipmill.io/metric-rmse"] == "0.5"
    assert "clipmill.io/parent-encoder" not in annotations


def test_what_serves_already_is_left_alone(serving_old):
    serving_old.requests.clear()
    assert not go(serving_old, OLD).changed
    assert serving_old.requests == [("GET", PATH)]


def broken(url):
    raise ServerError("it answered 500", expected="200", action="mend it")


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        ({"smoke": broken}, "it answered 500"),
        ({"ratio": lambda endpoint, track: 0.2}, "failed 20.0% of its requests"),
    ],
)
def test_a_canary_that_fails_is_taken_back(serving_old, trouble, words):
    with pytest.raises(GateError, match=words):
        go(serving_old, NEW, **trouble)
    assert serves(serving_old) == (OLD.uri, [])
    annotations = serving_old.resources[PATH]["metadata"]["annotations"]
    assert annotations[DIGEST_ANNOTATION] == OLD.digest


def test_a_canary_that_never_loads_is_taken_back(serving_old):
    serving_old.on_change = lambda resource: None
    serving_old.resources[PATH]["status"]["canaryStatuses"] = [
        {"name": predictor_name(NEW), "ready": False, "trafficPercent": 10}
    ]
    with pytest.raises(GateError, match="wasn't ready within 1 seconds"):
        go(serving_old, NEW)
    assert serves(serving_old) == (OLD.uri, [])


def test_a_predictor_that_0_1_named_serves_on_after_a_rollback(serving_old):
    serving_old.resources[PATH]["spec"]["predictor"]["name"] = "m0000000000"
    with pytest.raises(GateError):
        go(serving_old, NEW, smoke=broken)
    assert serving_old.resources[PATH]["spec"]["predictor"]["name"] == "m0000000000"
    assert serves(serving_old) == (OLD.uri, [])
    assert not go(serving_old, OLD).changed
    assert go(serving_old, NEW).changed
    assert serving_old.resources[PATH]["spec"]["predictor"]["name"] == "rev-11111111"


def test_services_of_predictors_have_names_that_dns_takes():
    longest = InferenceServiceConfig(name="a" * 32)
    name = f"{longest.name}-{predictor_name(NEW)}-predictor"
    assert len(name) <= 63
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name)


def test_an_interrupt_takes_the_canary_back_too(serving_old):
    def interrupt(url):
        raise KeyboardInterrupt

    with suppress(KeyboardInterrupt):
        go(serving_old, NEW, smoke=interrupt)
    assert serves(serving_old) == (OLD.uri, [])


def test_prometheus_that_is_gone_takes_it_back_and_says_so(serving_old):
    def gone(endpoint, track):
        raise ClusterError("Prometheus can't be queried", expected="it", action="start it")

    with pytest.raises(ClusterError, match="Prometheus can't be queried"):
        go(serving_old, NEW, ratio=gone)
    assert serves(serving_old) == (OLD.uri, [])


def test_a_canary_that_was_left_behind_is_replaced(serving_old):
    left = {"spec": {"canary": [canary(ENDPOINT, NEW, 10)]}}
    serving_old.resources[PATH]["spec"].update(left["spec"])
    assert go(serving_old, OLD).changed
    assert serves(serving_old) == (OLD.uri, [])


@pytest.mark.parametrize("steps", [(), (50, 10), (0, 10), (10, 100), (10, 10)])
def test_steps_that_make_no_sense_are_refused(steps):
    with pytest.raises(ConfigError, match="traffic_percents"):
        RolloutConfig(traffic_percents=steps)


@pytest.mark.parametrize("wrong", [{"name": "My.Depth"}, {"min_replicas": 0}, {"max_replicas": 0}])
def test_an_endpoint_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(ConfigError):
        InferenceServiceConfig(**{"name": "a", **wrong})


def test_an_endpoint_scales_by_its_queue_where_prometheus_is_known():
    from dataclasses import replace

    made = inference_service(replace(ENDPOINT, prometheus="http://p:9090"), NEW)
    assert findings(made) == []
    (metric,) = made["spec"]["predictor"]["autoScaling"]["metrics"]
    assert 'model="depth"' in metric["external"]["metric"]["query"]
    assert made["metadata"]["annotations"]["serving.kserve.io/autoscalerClass"] == "keda"
    # KServe refuses a canary that says how it scales.
    assert "autoScaling" not in canary(ENDPOINT, NEW, 10)["predictor"]
