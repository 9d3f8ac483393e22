"""Kueue, a gateway and KEDA of the cluster that KUBECONFIG names, with pods that only pretend.

``pytest -m cluster tests/cluster``, as test_real_cluster.py. CLIPMILL_TEST_GATEWAY is the address
of KServe's gateway, CLIPMILL_TEST_PROMETHEUS that of a Prometheus; both must resolve where the
tests run.
"""

import json
import os
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter

import pytest

from clipmill.cluster.api import INFERENCE_SERVICE, TRAIN_JOB, Kind
from clipmill.cluster.endpoint_status import accepted_route, live_pods, traffic_percent
from clipmill.cluster.kserve import (
    CANARY,
    STABLE,
    InferenceServiceConfig,
    PromotedModel,
    canary_name,
    inference_service,
    predictor_settings,
    served_model,
)
from clipmill.cluster.pools import load_installation
from clipmill.cluster.rollout import RolloutConfig, rollout
from clipmill.cluster.submit import cancel, status, torchx_runner
from clipmill.cluster.trainer_scheduler import NAME, train_job
from clipmill.cluster.training_job import TrainingJobConfig, training_app
from helpers.real_cluster import (
    IMAGE,
    NAMESPACED,
    Paths,
    connect,
    install,
    namespace,
    require_part,
)

pytestmark = [
    pytest.mark.cluster,
    # kubernetes reads its configuration file without closing it in some versions.
    pytest.mark.filterwarnings("default::ResourceWarning"),
]
GATEWAY = os.environ.get("CLIPMILL_TEST_GATEWAY", "http://traefik.traefik")
PROMETHEUS = os.environ.get("CLIPMILL_TEST_PROMETHEUS", "http://prometheus.monitoring:9090")
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}
QUEUE = "clipmill"
SCALED_OBJECT = Kind(group="keda.sh", version="v1alpha1", plural="scaledobjects")
SERVER = """
mkdir -p /tmp/www/v2/health && cd /tmp/www
echo "$MODEL_URI" | tee index.html v2/health/ready v2/health/live
if command -v python3 >/dev/null; then python3 -m http.server 8080 & else httpd -f -p 8080 & fi
trap 'sleep 10; exit' TERM; wait
"""
"""Answers with the URI of the model that it should serve, and 10 s long after SIGTERM."""


@pytest.fixture(scope="module")
def api():
    return connect()


def wait_for(condition, seconds=120.0):
    """The condition's first true result; the assertion shows the last one."""
    end = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < end, result
        time.sleep(1)
    return result


def answer(url, host=""):
    """The body of a GET; a string that begins with "failed" where there is none."""
    request = urllib.request.Request(url, headers={"Host": host} if host else {})
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.read().decode().strip()
    except OSError as error:
        return f"failed: {error}"


@pytest.fixture
def queues(api):
    """A namespace with the chart's queue, whose quota is one node."""
    require_part(api, "Kueue")
    require_part(api, "Kubeflow Trainer")
    clusterwide = ("ClusterQueue", "ResourceFlavor")
    values = {
        "objectStore": {"useWorkloadIdentity": True},
        "kueue": {
            "enabled": True,
            "queue": QUEUE,
            "nodeQuota": {"cpu": 1, "gpu": None, "gpu-8x": None},
        },
    }
    with namespace(api, **RESTRICTED) as name:
        objects = install(api, name, values, (*NAMESPACED, *clusterwide, "LocalQueue"))
        yield name
        paths = Paths(api)
        for resource in objects:
            if resource["kind"] in clusterwide:
                api.request("DELETE", f"{paths.of(resource, '')}/{resource['metadata']['name']}")


def test_kueue_admits_a_job_when_the_one_before_is_cancelled(api, queues):
    table = load_installation(queues, api=api)
    pool = table.pool("cpu")
    job = TrainingJobConfig(
        name="queued", command=("--version",), pool="cpu", queue=QUEUE, image=IMAGE
    )
    handles = []
    for name in ("first", "second"):
        app = training_app(job, pool, IMAGE)
        manifest = train_job(app, job, pool, name=name, namespace=queues)
        manifest["spec"]["trainer"]["command"] = ["sh", "-c"]
        manifest["spec"]["trainer"]["args"] = ["trap exit TERM; sleep 600 & wait"]
        api.create(TRAIN_JOB, queues, manifest)
        handles.append(f"{NAME}://clipmill/{queues}:{name}")
        if name == "first":
            with torchx_runner() as torchx:
                wait_for(lambda: state(handles[0], torchx)[0] == "RUNNING")
    with torchx_runner() as torchx:
        wait_for(lambda: state(handles[1], torchx)[1].startswith("in the queue"), 30)
        assert state(handles[1], torchx)[0] == "SUBMITTED"
        reason = state(handles[1], torchx)[1]
        assert reason.startswith(f"in the queue {QUEUE}: ")
        assert "insufficient unused quota" in reason
        cancel(handles[0], torchx=torchx)
        start = time.monotonic()
        wait_for(lambda: state(handles[1], torchx)[0] == "RUNNING")
        print(f"{reason!r}; it ran {time.monotonic() - start:.0f} s after the first was cancelled")
        cancel(handles[1], torchx=torchx)


def state(handle, torchx):
    app_status = status(handle, torchx=torchx)
    return app_status.state.name, app_status.msg


def install_serving(api, name, values):
    """The chart's objects for endpoints, with a server that answers with its model's URI."""
    for resource in install(api, name, values, (*NAMESPACED, "NetworkPolicy")):
        if resource["kind"] == "ServingRuntime":
            container = resource["spec"]["containers"][0]
            container |= {"image": IMAGE, "command": ["sh", "-c", SERVER], "args": []}
            container["resources"] = {"requests": {"cpu": "10m", "memory": "32Mi"}}
            path = f"{Paths(api).of(resource, name)}/{resource['metadata']['name']}"
            current = api.request("GET", path)[1]
            body = {**resource, "metadata": {**current["metadata"], **resource["metadata"]}}
            code, message = api.request("PUT", path, body=body)
            assert code == 200, message


class Load:
    """Requests through the gateway, four a second, until it is closed."""

    def __init__(self, host):
        self.bodies = Counter()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(host,))

    def _run(self, host):
        while not self._end.wait(0.25):
            self.bodies[answer(f"{GATEWAY}/", host)] += 1

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._end.set()
        self._thread.join()


def test_a_gateway_splits_traffic_and_no_request_fails(api):
    require_part(api, "KServe")
    require_part(api, "Gateway API")
    if answer(GATEWAY).startswith("failed: <urlopen"):
        pytest.skip(f"no gateway answers at {GATEWAY}")
    gateway_namespace = urllib.parse.urlsplit(GATEWAY).hostname.split(".")[-1]
    old = PromotedModel(uri="s3://b/old", digest="0" * 64, task="depth")
    new = PromotedModel(uri="s3://b/new", digest="1" * 64, task="depth")
    with namespace(api, **RESTRICTED) as name:
        install_serving(api, name, {"networkPolicies": {"gatewayNamespaces": [gateway_namespace]}})
        endpoint = InferenceServiceConfig(name="depth", namespace=name)

        def checked(url):
            wait_for(lambda: not answer(url).startswith("failed"), 30)
            return answer(url)

        def deploy(model, error_ratio=None):
            config = RolloutConfig(
                traffic_percents=(50,), observation_seconds=1, poll_interval_seconds=1
            )
            return rollout(
                endpoint,
                model,
                api=api,
                check_answers=checked,
                error_ratio=error_ratio,
                config=config,
            )

        first = deploy(old)
        assert first.evidence[0].endswith(old.uri)
        assert first.evidence[1].startswith("KServe's route: http://")
        host = first.evidence[1].split("//")[1]
        wait_for(lambda: answer(GATEWAY, host) == old.uri)
        shares = []

        def observed(_, track):
            """Half of the requests reach the canary, while its share is observed."""
            assert track == CANARY
            route = accepted_route(api, endpoint)
            shares.append(traffic_percent(route, f"depth-{canary_name(new)}-predictor"))
            wait_for(lambda: answer(GATEWAY, host) == new.uri)
            bodies = Counter(answer(GATEWAY, host) for _ in range(100))
            assert set(bodies) == {old.uri, new.uri}
            assert 30 <= bodies[new.uri] <= 70, bodies
            return 0.0

        with Load(host) as load:
            second = deploy(new, observed)
            wait_for(lambda: {answer(GATEWAY, host) for _ in range(20)} == {new.uri})
        assert second.changed
        assert set(shares) == {50}
        assert second.evidence[0].endswith(new.uri)
        assert second.evidence[-1] == f"{endpoint.url}: {new.uri}"
        # Whatever failed would be counted under its own name.
        assert set(load.bodies) == {old.uri, new.uri}
        assert sum(load.bodies.values()) > 20
        current = api.get(INFERENCE_SERVICE, name, "depth")
        assert not current["spec"].get("canary")
        assert served_model(current["spec"]["predictor"]) == new
        assert traffic_percent(accepted_route(api, endpoint), "depth-stable-predictor") == 100
        print(f"{load.bodies.total()} requests during the rollout, 0 failed")


def test_keda_takes_the_queries_of_an_endpoint_and_prometheus_too(api):
    require_part(api, "KServe")
    require_part(api, "KEDA")
    if answer(f"{PROMETHEUS}/-/ready").startswith("failed"):
        pytest.skip(f"no Prometheus answers at {PROMETHEUS}")
    values = {"autoscaling": {"enabled": True, "prometheus": PROMETHEUS}}
    with namespace(api, **RESTRICTED) as name:
        install_serving(api, name, values)
        endpoint = InferenceServiceConfig(name="depth", namespace=name, prometheus=PROMETHEUS)
        settings = predictor_settings(endpoint, api)
        model = PromotedModel(uri="s3://b/m", digest="0" * 64, task="depth")
        api.create(INFERENCE_SERVICE, name, inference_service(endpoint, model, settings))
        wait_for(lambda: any(live_pods(api, endpoint, STABLE)))
        scaled = wait_for(lambda: ready_object(api, name, "depth-stable-predictor"))
        triggers = [trigger["metadata"] for trigger in scaled["spec"]["triggers"]]
        metrics = [m["external"] for m in settings["autoScaling"]["metrics"]]
        assert [t["query"] for t in triggers] == [m["metric"]["query"] for m in metrics]
        assert [t["threshold"] for t in triggers] == [m["target"]["value"] for m in metrics]
        assert {t["serverAddress"] for t in triggers} == {PROMETHEUS}
        for trigger in triggers:
            assert f'namespace="{name}"' in trigger["query"]
            assert 'model="depth"' in trigger["query"]
            query = urllib.parse.urlencode({"query": trigger["query"]})
            body = answer(f"{PROMETHEUS}/api/v1/query?{query}")
            assert json.loads(body)["status"] == "success", body


def ready_object(api, name, scaled):
    """The ScaledObject, once KEDA has taken it."""
    resource = api.get(SCALED_OBJECT, name, scaled) or {}
    conditions = resource.get("status", {}).get("conditions", [])
    is_ready = any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
    return resource if is_ready else None
