"""Endpoints that the chart makes: those of a rollout in shape, and accepted by KServe's webhook."""

import json

import pytest
from helpers.helm_chart import ENDPOINT, PROFILES, deep, lean, render
from helpers.kserve_cluster import refusal
from helpers.strict_schemas import findings

from clipmill.cluster.kserve import (
    PREDICTOR_ANNOTATION,
    PREDICTOR_SETTINGS,
    InferenceServiceConfig,
    PromotedModel,
    endpoint_service,
    inference_service,
    served_model,
)

AUTOSCALED = deep(lean(""), "autoscaling", {"enabled": True})


def rendered(values, kind, name="depth"):
    resources = render(deep(values, "serving.endpoints", [ENDPOINT]))
    return next(r for r in resources if (r["kind"], r["metadata"]["name"]) == (kind, name))


@pytest.mark.parametrize("values", [lean(""), AUTOSCALED], ids=["fixed", "autoscaled"])
def test_the_chart_and_a_rollout_make_the_same_objects(values):
    config = InferenceServiceConfig(name="depth", namespace="ml", max_replicas=3)
    model = PromotedModel(uri=ENDPOINT["modelUri"])
    runtime = rendered(values, "ServingRuntime", "clipmill-cpu")
    text = runtime["metadata"]["annotations"][PREDICTOR_ANNOTATION]
    settings = json.loads(text.replace("ENDPOINT", "depth"))
    made = inference_service(config, model, settings)
    chart = rendered(values, "InferenceService")
    assert served_model(chart["spec"]["predictor"]) == model
    for resource in (made, chart):
        del resource["spec"]["predictor"]["annotations"]
    assert chart["spec"] == made["spec"]
    same = made["metadata"]
    assert same["annotations"].items() <= chart["metadata"]["annotations"].items()
    assert same["labels"].items() <= chart["metadata"]["labels"].items()
    service = rendered(values, "Service", "depth-endpoint")
    wanted = endpoint_service(config)
    assert service["spec"] == wanted["spec"]
    assert wanted["metadata"]["labels"].items() <= service["metadata"]["labels"].items()


@pytest.mark.parametrize("scheme", ["oci", "oci+native"])
def test_the_chart_and_a_rollout_mount_the_same_image(scheme):
    uri = f"{scheme}://registry.example.com:5000/vision/depth:1"
    config = InferenceServiceConfig(name="depth", namespace="ml", max_replicas=3)
    made = inference_service(config, PromotedModel(uri=uri))
    values = deep(lean(""), "serving.endpoints", [{**ENDPOINT, "modelUri": uri}])
    resources = render(values)
    (chart,) = [r for r in resources if r["kind"] == "InferenceService"]
    assert chart["spec"]["predictor"]["model"] == made["spec"]["predictor"]["model"]
    assert refusal(chart, None) == ""


def test_settings_of_a_rollout_without_the_charts_are_the_charts_defaults():
    runtime = rendered(lean(""), "ServingRuntime", "clipmill-cpu")
    annotation = runtime["metadata"]["annotations"][PREDICTOR_ANNOTATION]
    assert json.loads(annotation) == PREDICTOR_SETTINGS


@pytest.mark.parametrize("values", [*map(lean, PROFILES), AUTOSCALED])
def test_kserve_accepts_the_charts_endpoints(values):
    assert refusal(rendered(values, "InferenceService"), None) == ""


def test_an_endpoint_that_doesnt_scale_has_no_autoscaler_of_kserves():
    annotations = rendered(lean(""), "InferenceService")["metadata"]["annotations"]
    assert annotations["serving.kserve.io/autoscalerClass"] == "none"
    annotations = rendered(AUTOSCALED, "InferenceService")["metadata"]["annotations"]
    assert annotations["serving.kserve.io/autoscalerClass"] == "keda"


TO_ZERO = {
    **deep(lean(""), "autoscaling", {"http": {"enabled": True, "domain": "example.com"}}),
    "serving": {"endpoints": [{**ENDPOINT, "minReplicas": 0}]},
}


def test_an_endpoint_scales_to_zero_by_the_add_ons_requests():
    resources = {(r["kind"], r["metadata"]["name"]): r for r in render(TO_ZERO)}
    service = resources["InferenceService", "depth"]
    # KServe leaves the number of pods alone, and allows a canary only with one.
    assert service["metadata"]["annotations"]["serving.kserve.io/autoscalerClass"] == "external"
    assert service["spec"]["predictor"]["minReplicas"] == 1
    assert refusal(service, None) == ""
    spec = resources["HTTPScaledObject", "depth"]["spec"]
    assert spec == {
        "hosts": [
            "depth-proxy.ml",
            "depth-proxy.ml.svc.cluster.local",
            "depth-endpoint.ml",
            "depth-endpoint.ml.svc.cluster.local",
            "depth.example.com",
        ],
        "scaleTargetRef": {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "name": "depth-stable-predictor",
            "service": "depth-endpoint",
            "port": 80,
        },
        "replicas": {"min": 0, "max": 3},
        "scaledownPeriod": 300,
        "scalingMetric": {"concurrency": {"targetValue": 8}},
        "timeouts": {"conditionWait": "300s", "responseHeader": "60s"},
    }
    proxy = resources["Service", "depth-proxy"]["spec"]
    assert proxy["externalName"] == "keda-add-ons-http-interceptor-proxy.keda.svc.cluster.local"
    (rule,) = resources["NetworkPolicy", "clipmill-allow-inference"]["spec"]["ingress"]
    names = [f["namespaceSelector"]["matchLabels"] for f in rule["from"] if "namespaceSelector" in f]
    assert {"kubernetes.io/metadata.name": "keda"} in names


def test_the_add_ons_definition_takes_its_object():
    (scaled,) = [r for r in render(TO_ZERO) if r["kind"] == "HTTPScaledObject"]
    found = findings(scaled)
    if any("no definition" in text for text in found):
        pytest.skip("CLIPMILL_CRDS has no definition of http.keda.sh/v1alpha1")
    assert found == []


def test_without_the_add_ons_crd_endpoints_keep_their_pods():
    values = deep(TO_ZERO, "serving.endpoints", [ENDPOINT])
    kinds = {r["kind"] for r in render({**values, "crds": "auto"})}
    assert "HTTPScaledObject" not in kinds


@pytest.mark.parametrize("seconds", [60, 300])
def test_a_servers_limits_fit_into_its_pods_grace(seconds):
    values = deep(lean(""), "serving.graceSeconds", seconds)
    (container,) = rendered(values, "ServingRuntime", "clipmill-cpu")["spec"]["containers"]
    limits = dict(a.removeprefix("--set=").split("=") for a in container["args"] if "--set" in a)
    needed = sum(map(float, limits.values()))
    assert set(limits) == {"unready_before_shutdown_seconds", "shutdown_timeout_seconds"}
    # Nodes learn within a few seconds that a pod is going.
    assert float(limits["unready_before_shutdown_seconds"]) >= 3
    predictor = rendered(values, "InferenceService")["spec"]["predictor"]
    assert needed < predictor["terminationGracePeriodSeconds"] <= needed + 30
    demo = deep(values, "demo", {"enabled": True, "models": {"depth": ENDPOINT["modelUri"]}})
    pod = rendered(demo, "Deployment", "clipmill-demo")["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == predictor["terminationGracePeriodSeconds"]


def test_servers_read_the_store_themselves_and_say_why_they_fail():
    runtime = rendered(lean(""), "ServingRuntime", "clipmill-cpu")
    (container,) = runtime["spec"]["containers"]
    # Without storageUri KServe adds no initializer, which namespaces that are restricted refuse.
    assert "storageUri" not in json.dumps(rendered(lean(""), "InferenceService"))
    assert "{{.Name}}=$(MODEL_URI)" in container["args"]
    assert container["envFrom"] == [{"secretRef": {"name": "clipmill-store", "optional": True}}]
    assert container["terminationMessagePolicy"] == "FallbackToLogsOnError"
    ports = {p["name"]: p["containerPort"] for p in container["ports"]}
    assert ports == {"http1": 8080, "grpc": 8081}
    assert f"--grpc-port={ports['grpc']}" in container["args"]


def test_the_role_that_deploys_may_do_what_a_rollout_does():
    role = rendered(lean(""), "Role", "clipmill-submitter")
    allowed = {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    needed = {
        *(("serving.kserve.io", "inferenceservices", verb) for verb in ("get", "create", "patch")),
        *(("", "services", verb) for verb in ("get", "create", "patch")),
        ("serving.kserve.io", "servingruntimes", "get"),
        ("gateway.networking.k8s.io", "httproutes", "get"),
        *(("http.keda.sh", "httpscaledobjects", verb) for verb in ("get", "patch")),
        ("", "pods", "list"),
    }
    assert needed <= allowed


def test_the_installations_test_asks_the_address_that_stays():
    pod = rendered(lean(""), "Pod", "mill-ask")
    (container,) = pod["spec"]["containers"]
    script, *names = container["args"]
    assert names == ["depth"]
    assert 'f"http://{name}-endpoint"' in script
    compile(script, "test", "exec")
