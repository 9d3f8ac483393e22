"""States of an endpoint and what a rollout makes of each: the table of docs/endpoints.md."""

import copy
import os
import signal
import threading
from dataclasses import replace

import pytest

from clipmill.cluster import rollout as rollout_module
from clipmill.cluster.kserve import (
    MODEL_ANNOTATION,
    InferenceServiceConfig,
    PromotedModel,
    canary,
    canary_name,
    served_model,
)
from clipmill.cluster.rollout import RolloutConfig, rollout
from clipmill.errors import ClusterError, ConfigError, GateError, ServerError
from helpers.kserve_cluster import ISVC, ROUTE, RUNTIME, SERVICE, KServe

ENDPOINT = InferenceServiceConfig(name="depth", namespace="ml")
OLD = PromotedModel(
    uri="s3://b/models/old", digest="0" * 64, task="depth", parents={"encoder": "e" * 64}
)
NEW = PromotedModel(uri="s3://b/models/new", digest="1" * 64, task="depth", metrics={"rmse": 0.5})
QUICK = RolloutConfig(
    ready_seconds=1.0,
    answer_seconds=0.1,
    route_seconds=0.05,
    observation_seconds=0.0,
    poll_interval_seconds=0.01,
)
PATH = ISVC + "depth"
URL = "http://depth-endpoint.ml"
CANARY_URL = "http://depth-rev-11111111-predictor.ml"


def answers(url):
    return "all images"


def go(cluster, model, *, check=answers, ratio=None, config=QUICK, endpoint=ENDPOINT):
    return rollout(
        endpoint, model, api=cluster.api(), check_answers=check, error_ratio=ratio, config=config
    )


@pytest.fixture
def kserve(cluster):
    return KServe(cluster)


@pytest.fixture
def serving_old(cluster, kserve):
    assert go(cluster, OLD).changed
    cluster.requests.clear()
    cluster.history.clear()
    return kserve


def serves(kserve):
    """The only model of the endpoint, as its spec, its annotation and its ready pods say."""
    resource = kserve.endpoint()
    assert not resource["spec"].get("canary")
    model = served_model(resource["spec"]["predictor"])
    pods = kserve.service_pods()
    assert {pod["metadata"]["annotations"][MODEL_ANNOTATION] for pod in pods} == {
        model.annotation()
    }
    assert not [
        p for p in kserve.server.pods if p["metadata"]["labels"]["clipmill.io/track"] != "stable"
    ]
    assert not kserve.was_down
    return model


def test_a_stopping_pod_of_the_model_before_doesnt_answer_for_the_new_one(cluster, serving_old):
    """It is no pod of the Service any more, but nodes take a second to know."""
    stopping = copy.deepcopy(cluster.pods[0])
    stopping["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"

    def reconcile(resource):
        serving_old._reconcile(resource)
        if served_model(serving_old.endpoint()["spec"]["predictor"]) == NEW:
            cluster.pods.append(stopping)
            threading.Timer(0.3, cluster.pods.remove, (stopping,)).start()

    cluster.on_change = reconcile
    asked = []
    go(cluster, NEW, check=lambda url: asked.append((url, stopping in cluster.pods)) or "fine")
    assert asked == [(CANARY_URL, False), (URL, False)]


def test_a_pod_that_never_stops_is_waited_for_no_longer(cluster, serving_old, monkeypatch):
    monkeypatch.setattr(rollout_module, "_STOP_SECONDS", 0.1)
    lost = copy.deepcopy(cluster.pods[0])
    lost["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"

    def reconcile(resource):
        serving_old._reconcile(resource)
        cluster.pods.append(lost)

    cluster.on_change = reconcile
    assert go(cluster, NEW).changed


def shares(cluster):
    resources = [r for r in cluster.history if r.get("kind") == "InferenceService"]
    return [[c["trafficPercent"] for c in r["spec"].get("canary", [])] for r in resources]


# First deployment.


def test_an_absent_endpoint_is_created_with_its_service_and_queried(cluster, kserve):
    asked = []
    done = go(cluster, OLD, check=lambda url: asked.append(url) or "fine")
    assert (done.url, done.digest, done.changed) == (URL, OLD.digest, True)
    assert asked == [URL]
    assert done.evidence == (f"{URL}: fine", "KServe's route: none")
    assert serves(kserve) == OLD
    (owner,) = cluster.resources[SERVICE + "depth-endpoint"]["metadata"]["ownerReferences"]
    assert owner["uid"] == kserve.endpoint()["metadata"]["uid"]


def test_a_first_deployment_doesnt_wait_for_a_gateway_that_isnt_there(cluster, kserve):
    def reconcile(resource):
        kserve._reconcile(resource)
        if resource.get("kind") == "InferenceService":
            waiting = {
                "type": "IngressReady",
                "status": "False",
                "message": "ParentStatusNotAvailable",
            }
            resource["status"]["conditions"] = [{"type": "Ready", "status": "False"}, waiting]

    cluster.on_change = reconcile
    done = go(cluster, OLD)
    assert "inside the cluster only: ParentStatusNotAvailable" in done.evidence[1]


def test_a_first_deployment_that_fails_names_the_pods_reason_and_fails_again(cluster, kserve):
    kserve.broken.add(OLD.uri)
    for _ in range(2):
        with pytest.raises(GateError) as caught:
            go(cluster, OLD)
        assert "exit code 2: no checkpoint at that URI" in caught.value.what
        assert "kubectl -n ml logs -l clipmill.io/endpoint=depth" in caught.value.action
    kserve.broken.clear()
    kserve._reconcile(kserve.endpoint())
    assert not go(cluster, OLD).changed


def test_another_model_takes_the_place_of_one_that_never_started(cluster, kserve):
    kserve.broken.add(OLD.uri)
    with pytest.raises(GateError):
        go(cluster, OLD)
    assert go(cluster, NEW).changed
    assert serves(kserve) == NEW


def test_an_endpoint_that_starts_too_slowly_is_no_success(cluster, kserve):
    cluster.on_change = lambda resource: None
    with pytest.raises(GateError, match=r"wasn't ready within 0\.05 seconds: it has no pod"):
        go(cluster, OLD, config=RolloutConfig(ready_seconds=0.05, poll_interval_seconds=0.01))


# The same model again.


def test_what_serves_already_is_left_alone(cluster, serving_old):
    assert not go(cluster, OLD).changed
    assert {method for method, _ in cluster.requests} == {"GET"}


def test_a_chart_endpoint_with_that_model_is_left_alone(cluster, serving_old):
    predictor = serving_old.endpoint()["spec"]["predictor"]
    predictor["annotations"][MODEL_ANNOTATION] = '{"uri":"s3://b/models/old"}'
    serving_old._reconcile(serving_old.endpoint())
    cluster.resources[PATH] = serving_old.endpoint()
    assert not go(cluster, OLD).changed
    assert {method for method, _ in cluster.requests} == {"GET"}


def test_a_repeated_call_waits_for_pods_that_arent_ready(cluster, serving_old):
    for pod in cluster.pods:
        pod["status"]["conditions"] = [{"type": "Ready", "status": "False"}]
    with pytest.raises(GateError, match="its readiness probe fails"):
        go(cluster, OLD, config=RolloutConfig(ready_seconds=0.05, poll_interval_seconds=0.01))


def test_a_canary_that_a_killed_rollout_left_is_removed(cluster, serving_old):
    resource = serving_old.endpoint()
    entry = canary(resource["spec"]["predictor"], NEW, 10)
    cluster.api().patch(*isvc(), {"spec": {"canary": [entry]}})
    assert not go(cluster, OLD).changed
    assert serves(serving_old) == OLD


def isvc():
    from clipmill.cluster.api import INFERENCE_SERVICE

    return INFERENCE_SERVICE, "ml", "depth"


def test_a_service_that_is_missing_or_selects_others_is_mended(cluster, serving_old):
    wanted = cluster.resources[SERVICE + "depth-endpoint"]["spec"]["selector"]
    cluster.resources[SERVICE + "depth-endpoint"]["spec"]["selector"] = {"app": "other"}
    go(cluster, OLD)
    assert cluster.resources[SERVICE + "depth-endpoint"]["spec"]["selector"] == wanted
    del cluster.resources[SERVICE + "depth-endpoint"]
    go(cluster, OLD)
    assert cluster.resources[SERVICE + "depth-endpoint"]["spec"]["selector"] == wanted


# Another model.


def test_without_a_gateway_a_canary_is_judged_by_its_own_answers(cluster, serving_old):
    asked = []
    done = go(cluster, NEW, check=lambda url: asked.append(url) or "fine", ratio=lambda *a: 0.0)
    assert asked == [CANARY_URL, URL]
    assert shares(cluster) == [[0], []]
    assert "no gateway accepted the route" in done.evidence[1]
    assert serves(serving_old) == NEW


def test_without_prometheus_a_canary_gets_no_requests(cluster, serving_old):
    serving_old.gateway = True
    done = go(cluster, NEW)
    assert shares(cluster) == [[0], []]
    assert "without a Prometheus" in done.evidence[1]


def test_with_a_gateway_it_gets_more_and_more_requests_and_then_all(cluster, serving_old):
    serving_old.gateway = True
    done = go(cluster, NEW, ratio=lambda endpoint, track: 0.001)
    assert shares(cluster) == [[0], [10], [50], [0], []]
    assert [s for s in done.evidence if "0.1% failed" in s] == list(done.evidence[1:3])
    assert serves(serving_old) == NEW


def test_a_step_without_any_request_is_said(cluster, serving_old):
    serving_old.gateway = True
    done = go(cluster, NEW, ratio=lambda endpoint, track: None)
    assert "10 % of the gateway's requests for 0 s: Prometheus counted none" in done.evidence[1]


def test_a_route_that_isnt_accepted_splits_nothing(cluster, serving_old):
    serving_old.gateway = True
    reconcile = serving_old._route

    def refused(name, resource):
        route = reconcile(name, resource)
        route["status"]["parents"][0]["conditions"][0]["status"] = "False"
        return route

    serving_old._route = refused
    done = go(cluster, NEW, ratio=lambda endpoint, track: 0.0)
    assert shares(cluster) == [[0], []]
    assert "no gateway accepted the route" in done.evidence[1]


def test_a_gateway_that_stops_splitting_ends_the_rollout(cluster, serving_old):
    serving_old.gateway = True
    go(cluster, OLD)
    cluster.api().patch(*isvc(), {"spec": {"canary": []}})
    serving_old.gateway = False
    assert ROUTE + "depth" in cluster.resources
    with pytest.raises(GateError, match="didn't give the canary 10 % of the requests"):
        go(cluster, NEW, ratio=lambda endpoint, track: 0.0)
    assert serves(serving_old) == OLD


def test_a_promotion_keeps_replicas_labels_and_the_charts_annotations(cluster, serving_old):
    chart = {
        "metadata": {"annotations": {"clipmill.io/installed-model": OLD.uri}},
        "spec": {"predictor": {"minReplicas": 2, "maxReplicas": 9}},
    }
    cluster.api().patch(*isvc(), chart)
    before = serving_old.endpoint()
    go(cluster, NEW)
    after = serving_old.endpoint()
    assert after["metadata"] == before["metadata"]
    for key in ("name", "labels", "minReplicas", "maxReplicas"):
        assert after["spec"]["predictor"][key] == before["spec"]["predictor"][key]


def test_a_predictor_keeps_whichever_name_it_has(cluster, serving_old):
    serving_old.endpoint()["spec"]["predictor"]["name"] = ""
    assert go(cluster, NEW).changed
    assert serving_old.endpoint()["spec"]["predictor"]["name"] == ""


def test_rolling_back_is_a_rollout_of_the_model_before(cluster, serving_old):
    go(cluster, NEW)
    assert go(cluster, OLD).changed
    assert serves(serving_old) == OLD


def test_an_image_that_fails_leaves_the_checkpoint_that_served(cluster, serving_old):
    image = PromotedModel(uri="oci://registry.example.com/depth:1", digest="2" * 64, task="depth")
    with pytest.raises(GateError):
        go(cluster, image, check=failing_once_stable)
    assert serves(serving_old) == OLD
    assert go(cluster, image).changed
    assert serves(serving_old) == image
    with pytest.raises(GateError):
        go(cluster, NEW, check=failing_once_stable)
    assert serves(serving_old) == image


LABELS = {
    "modelregistry.kubeflow.org/registered-model-id": "1",
    "modelregistry.kubeflow.org/model-version-id": "3",
    "clipmill.io/registered-model": "clipmill-depth",
    "clipmill.io/model-version": "3",
}


def registry_labels(kserve):
    labels = kserve.endpoint()["metadata"]["labels"]
    return {key: value for key, value in labels.items() if key in LABELS}


def test_the_endpoint_has_the_labels_of_the_registered_version_that_serves(cluster, kserve):
    first = replace(OLD, labels={**LABELS, "clipmill.io/model-version": "2"})
    go(cluster, first)
    assert registry_labels(kserve) == first.labels
    second = replace(NEW, labels=LABELS)
    with pytest.raises(GateError):
        go(cluster, second, check=failing_once_stable)
    assert registry_labels(kserve) == first.labels
    with pytest.raises(GateError):
        go(cluster, second, check=failing)
    assert registry_labels(kserve) == first.labels
    assert go(cluster, second).changed
    assert registry_labels(kserve) == LABELS
    # A model that isn't registered has none, and other labels stay.
    assert go(cluster, OLD).changed
    assert registry_labels(kserve) == {}
    assert kserve.endpoint()["metadata"]["labels"]["app.kubernetes.io/name"] == "clipmill"


SCALED = "/apis/http.keda.sh/v1alpha1/namespaces/ml/httpscaledobjects/depth"


@pytest.fixture
def to_zero(cluster, serving_old):
    """The endpoint without a pod, which only its HTTPScaledObject starts; its least pods."""
    serving_old.endpoint()["metadata"]["annotations"]["serving.kserve.io/autoscalerClass"] = (
        "external"
    )
    cluster.resources[SCALED] = {"kind": "HTTPScaledObject", "spec": {"replicas": {"min": 0}}}

    def least():
        return cluster.resources[SCALED]["spec"]["replicas"]["min"]

    return least


@pytest.mark.parametrize("model", [OLD, NEW])
def test_an_endpoint_that_scales_to_zero_keeps_a_pod_meanwhile(
    cluster, serving_old, to_zero, model
):
    seen = []

    def check(url):
        seen.append(to_zero())
        return "all images"

    assert go(cluster, model, check=check).changed == (model is NEW)
    assert set(seen) == {1}
    assert to_zero() == 0
    assert serves(serving_old) == model


def test_a_refused_rollout_lets_it_scale_to_zero_again(cluster, serving_old, to_zero):
    with pytest.raises(GateError):
        go(cluster, NEW, check=failing)
    assert to_zero() == 0
    assert serves(serving_old) == OLD


# Refusals.


def failing(url):
    raise ServerError("it answered 500", expected="200", action="mend it")


def failing_once_stable(url):
    if url == URL:
        failing(url)
    return "fine"


def test_a_canary_that_answers_wrongly_is_taken_back(cluster, serving_old):
    with pytest.raises(GateError, match="it answered 500"):
        go(cluster, NEW, check=failing)
    assert shares(cluster) == [[0], []]
    assert serves(serving_old) == OLD


def test_a_canary_that_fails_requests_gets_none_before_it_goes(cluster, serving_old):
    serving_old.gateway = True
    with pytest.raises(GateError, match=r"failed 20\.0% of its requests"):
        go(cluster, NEW, ratio=lambda endpoint, track: 0.2)
    assert shares(cluster) == [[0], [10], [0], []]
    assert serves(serving_old) == OLD


def test_a_canary_that_never_loads_is_taken_back_with_its_reason(cluster, serving_old):
    serving_old.broken.add(NEW.uri)
    with pytest.raises(GateError, match="canary predictor of depth does not start") as caught:
        go(cluster, NEW)
    assert "no checkpoint at that URI" in str(caught.value)
    assert "clipmill.io/track=canary" in caught.value.action
    assert serves(serving_old) == OLD


def test_a_model_that_fails_in_the_stable_place_is_replaced_by_the_one_before(cluster, serving_old):
    with pytest.raises(GateError, match="it answered 500"):
        go(cluster, NEW, check=failing_once_stable)
    assert serves(serving_old) == OLD


def test_stable_pods_that_dont_start_leave_the_old_ones_serving(cluster, serving_old):
    def check(url):
        serving_old.broken.add(NEW.uri)  # from the canary's last query on
        return "fine"

    with pytest.raises(GateError, match="stable predictor of depth does not start"):
        go(cluster, NEW, check=check)
    assert serves(serving_old) == OLD


def test_another_tasks_model_is_refused_with_both_names(cluster, serving_old):
    from dataclasses import replace

    with pytest.raises(ConfigError, match="serves the task depth, and the model's is segmentation"):
        go(cluster, replace(NEW, task="segmentation"))
    assert {method for method, _ in cluster.requests} == {"GET"}


def test_an_inference_service_of_someone_else_is_refused(cluster, kserve):
    spec = {"predictor": {"model": {"storageUri": "s3://b/m"}}}
    cluster.resources[PATH] = {"metadata": {"name": "depth", "annotations": {}}, "spec": spec}
    with pytest.raises(ConfigError, match="isn't clipmill's"):
        go(cluster, NEW)


def test_an_endpoint_without_pods_is_refused_before_kserve_does(cluster, serving_old):
    cluster.api().patch(*isvc(), {"spec": {"predictor": {"minReplicas": 0}}})
    with pytest.raises(ConfigError, match="minReplicas 0"):
        go(cluster, NEW)


def test_a_model_that_helm_changed_meanwhile_stays(cluster, serving_old):
    other = PromotedModel(uri="s3://b/models/third")

    def check(url):
        env = [{"name": "MODEL_URI", "value": other.uri}]
        annotations = {MODEL_ANNOTATION: other.annotation()}
        predictor = {"model": {"env": env}, "annotations": annotations}
        cluster.api().patch(*isvc(), {"spec": {"predictor": predictor}})
        return "fine"

    with pytest.raises(GateError, match="changed by someone else"):
        go(cluster, NEW, check=check)
    assert serves(serving_old) == other


# Failures of the API, and interrupts: the canary never stays.


def fail_patches(cluster, code, message, *, after, times):
    """Let some PATCH requests fail, after so many that don't."""
    count = iter(range(1000))

    def interfere(method, path):
        if method != "PATCH":
            return None
        return (code, message) if after <= next(count) < after + times else None

    cluster.interfere = interfere


DENIED = 'admission webhook "v.kserve" denied the request: the model is too old'


@pytest.mark.parametrize("after", [0, 1])
def test_a_refused_patch_leaves_no_canary_and_names_the_webhooks_reason(
    cluster, serving_old, after
):
    fail_patches(cluster, 403, DENIED, after=after, times=1)
    with pytest.raises(ClusterError, match="the model is too old") as caught:
        go(cluster, NEW)
    assert "the webhook v.kserve accepts" in caught.value.expected
    assert serves(serving_old) == OLD


def test_an_api_that_fails_for_a_while_is_tried_again(cluster, serving_old):
    fail_patches(cluster, 500, "etcd is elsewhere", after=1, times=4)
    with pytest.raises(ClusterError, match="etcd is elsewhere"):
        go(cluster, NEW)
    assert serves(serving_old) == OLD


def test_a_canary_that_cant_be_taken_back_is_said_with_the_command(cluster, serving_old):
    fail_patches(cluster, 500, "gone", after=1, times=100)
    with pytest.raises(ClusterError, match="the canary still stands; remove it with `kubectl"):
        go(cluster, NEW)


def interrupt(url):
    raise KeyboardInterrupt


def terminate(url):
    os.kill(os.getpid(), signal.SIGTERM)
    signal.pause()


@pytest.mark.parametrize(
    ("check", "error"), [(interrupt, KeyboardInterrupt), (terminate, SystemExit)]
)
def test_an_interrupt_takes_the_canary_back(cluster, serving_old, check, error):
    with pytest.raises(error):
        go(cluster, NEW, check=check)
    assert serves(serving_old) == OLD


def test_prometheus_that_is_gone_takes_it_back_and_says_so(cluster, serving_old):
    def gone(endpoint, track):
        raise ClusterError("Prometheus can't be queried", expected="it", action="start it")

    serving_old.gateway = True
    with pytest.raises(ClusterError, match="Prometheus can't be queried"):
        go(cluster, NEW, ratio=gone)
    assert serves(serving_old) == OLD


@pytest.mark.parametrize("steps", [(), (50, 10), (0, 10), (10, 100), (10, 10)])
def test_steps_that_make_no_sense_are_refused(steps):
    with pytest.raises(ConfigError, match="traffic_percents"):
        RolloutConfig(traffic_percents=steps)


def test_settings_of_the_charts_runtime_count(cluster, kserve):
    from clipmill.cluster.kserve import PREDICTOR_ANNOTATION

    annotations = {PREDICTOR_ANNOTATION: '{"terminationGracePeriodSeconds": 99}'}
    cluster.resources[RUNTIME + "clipmill-cpu"]["metadata"]["annotations"] = annotations
    go(cluster, OLD)
    assert kserve.endpoint()["spec"]["predictor"]["terminationGracePeriodSeconds"] == 99


def test_the_canarys_service_is_asked_at_the_pods_port_where_it_has_no_address(
    cluster, serving_old
):
    asked = []
    reconcile = cluster.on_change

    def headless(resource):
        reconcile(resource)
        service = SERVICE + f"depth-{canary_name(NEW)}-predictor"
        cluster.resources.setdefault(service, {})["spec"] = {"clusterIP": "None"}

    cluster.on_change = headless
    go(cluster, NEW, check=lambda url: asked.append(url) or "fine")
    assert asked[0] == CANARY_URL + ":8080"
