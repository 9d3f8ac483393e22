"""A wrong value is one clear message, before anything is installed."""

import pytest
from helm_python.errors import HelmError
from helpers.helm_chart import ENDPOINT, PROFILES, STORE, chart, deep, profile, render

WRONG = {
    "unknown key": ("servng", {}, "servng"),
    "unknown key within": ("training.graceSecond", 30, "graceSecond"),
    "bucket without scheme": ("objectStore.uri", "bucket/prefix", "/objectStore/uri"),
    "endpoint without scheme": ("objectStore.endpoint", "minio:9000", "/objectStore/endpoint"),
    "negative replicas": ("serving.endpoints", [{**ENDPOINT, "minReplicas": -1}], "minReplicas"),
    "model without scheme": ("serving.endpoints", [{**ENDPOINT, "modelUri": "m"}], "modelUri"),
    "image without a registry": (
        "serving.endpoints",
        [{**ENDPOINT, "modelUri": "oci://depth"}],
        "modelUri",
    ),
    "image of another scheme": (
        "serving.endpoints",
        [{**ENDPOINT, "modelUri": "docker://r.example.com/depth:1"}],
        "modelUri",
    ),
    "registry without a URL": ("tracking.registry", "kubeflow:registry", "/tracking/registry"),
    "registry of MLflow": ("tracking.registry", "mlflow:http://a", "/tracking/registry"),
    "endpoint's name": ("serving.endpoints", [{**ENDPOINT, "name": "My_Model"}], "name"),
    "endpoint's runtime": ("serving.endpoints", [{**ENDPOINT, "runtime": "tpu"}], "runtime"),
    "pool without memory": ("pools.gpu", {"cpu": 1, "memoryGibibytes": 0}, "memoryGibibytes"),
    "pool's fabric": ("pools.gpu", {"cpu": 1, "memoryGibibytes": 1, "fabric": "roce"}, "fabric"),
    "price without a currency": ("pools.cpu.devicePrice", "2.50", "devicePrice"),
    "negative GPUs": ("pools.gpu", {"cpu": 1, "memoryGibibytes": 1, "gpus": -1}, "gpus"),
    "no time to stop": ("training.graceSeconds", 5, "graceSeconds"),
    "scheduler": ("training.gangScheduler", "yunikorn", "gang"),
    "text for a switch": ("kueue.enabled", "yes", "/kueue/enabled"),
    "image by digest only": ("objectStore.embedded.image", "seaweedfs", "image"),
    "kind of monitor": ("monitoring.kind", "Probe", "kind"),
    "demo's model": ("demo.models", {"depth": "models/depth"}, "depth"),
    "service account": ("serviceAccounts.root", {}, "root"),
    "store with a space": ("objectStore.uri", "s3://bucket/my store", "/objectStore/uri"),
    "model with a space": ("demo.models", {"depth": "s3://bucket/my depth"}, "/demo/models/depth"),
    "endpoint's runtime null": ("serving.endpoints", [{**ENDPOINT, "runtime": None}], "runtime"),
    "empty interval": ("monitoring.scrapeInterval", "", "scrapeInterval"),
    "interval without unit": ("monitoring.scrapeInterval", "15", "scrapeInterval"),
    "network without a length": ("networkPolicies.clientCidrs", ["10.0.0.1"], "clientCidrs"),
    "namespace": ("networkPolicies.userNamespaces", ["Team A"], "userNamespaces"),
    "version of the keys": ("objectStore.embedded.keysVersion", 0, "keysVersion"),
    "topology level twice": ("kueue.topologyLevels", ["zone", "zone"], "topologyLevels"),
}


@pytest.mark.parametrize("case", WRONG)
def test_the_schema_names_what_is_wrong(case):
    path, value, words = WRONG[case]
    with pytest.raises(HelmError) as caught:
        chart().validate_schema(chart().merge_values(deep({}, path, value)))
    assert words in str(caught.value)


IMPOSSIBLE = {
    "queue of a pool that isn't there": (
        deep({}, "kueue", {"enabled": True, "nodeQuota": {"tpu": 1}}),
        'kueue.nodeQuota needs the pool "tpu", which isn\'t in pools; there are: cpu, gpu, gpu-8x',
    ),
    "endpoint on GPUs that aren't there": (
        deep(profile("kind"), "serving.endpoints", [{**ENDPOINT, "runtime": "gpu"}]),
        'endpoint "depth" wants a GPU, but pools has no pool gpu',
    ),
    "replicas": (
        deep({}, "serving.endpoints", [{**ENDPOINT, "minReplicas": 5}]),
        'endpoint "depth": minReplicas 5 is above maxReplicas 3',
    ),
    "zero replicas": (
        deep({}, "serving.endpoints", [{**ENDPOINT, "minReplicas": 0}]),
        'endpoint "depth": minReplicas is 0, but an endpoint without a pod serves no metrics',
    ),
    "secret without keys": (
        deep({}, "objectStore", {**STORE, "secretKey": ""}),
        "accessKey or secretKey is empty",
    ),
    "embedded store without a secret": (
        deep({}, "objectStore.embedded", {"enabled": True}),
        "objectStore.createSecret must be true",
    ),
    "role with keys": (
        deep({}, "objectStore", {**STORE, "useWorkloadIdentity": True}),
        "objectStore.useWorkloadIdentity is true, so there are no keys",
    ),
    "demo of nothing": (
        deep({}, "demo", {"enabled": True}),
        "demo.models is empty",
    ),
    "endpoint on a runtime that isn't there": (
        deep(deep({}, "serving.endpoints", [ENDPOINT]), "serving.resources.cpu", None),
        'endpoint "depth" runs on the cpu, but serving.resources.cpu is null',
    ),
    "endpoint twice": (
        deep({}, "serving.endpoints", [ENDPOINT, ENDPOINT]),
        'serving.endpoints names "depth" twice',
    ),
    "endpoint with the demo's name": (
        deep({}, "serving.endpoints", [{**ENDPOINT, "name": "demo"}]),
        'serving.endpoints has the name "demo", which is the chart\'s own',
    ),
    "two autoscalers": (
        deep({}, "autoscaling", {"enabled": True, "http": {"enabled": True}}),
        "autoscaling.enabled and autoscaling.http.enabled are both true",
    ),
    "variables of no tracker": (
        deep({}, "tracking.environment", {"WANDB_API_KEY": "x"}),
        "tracking.environment is set, but tracking.uri is empty",
    ),
    "endpoint with a service's name": (
        deep({}, "serving.endpoints", [{**ENDPOINT, "name": "clipmill-store"}]),
        'serving.endpoints has the name "clipmill-store", which is the chart\'s own',
    ),
    "endpoints without serving": (
        deep({}, "serving", {"enabled": False, "endpoints": [ENDPOINT]}),
        "serving.endpoints isn't empty, but serving.enabled is false",
    ),
    "cores requested above the limit": (
        deep({}, "serving.resources.cpu.requests.cpu", "4500m"),
        "serving.resources.cpu.requests.cpu is 4500m, above limits.cpu 4",
    ),
    "memory requested above the limit": (
        deep({}, "demo.resources.limits.memory", "1000Mi"),
        "demo.resources.requests.memory is 1Gi, above limits.memory 1000Mi",
    ),
    "store's request above the limit": (
        deep({}, "objectStore.embedded.resources.requests.cpu", 2),
        "objectStore.embedded.resources.requests.cpu is 2, above limits.cpu 1",
    ),
    "registry with a slash at the end": (
        deep({}, "images.registry", "localhost/"),
        'images.registry is "localhost/"',
    ),
    "registry with a scheme": (
        deep({}, "images.registry", "https://registry.example.com"),
        'images.registry is "https://registry.example.com": write HOST',
    ),
    "route without a gateway": (
        deep({}, "demo.route.host", "mill.example.com"),
        "demo.route has a host or gatewayNamespace, but no gateway",
    ),
    "fabric without devices": (
        deep({}, "pools.gpu-8x.fabric", "efa"),
        "pools.gpu-8x.fabric is efa, but fabricDevices is 0",
    ),
    "devices without a fabric": (
        deep({}, "pools.gpu-8x.fabricDevices", 4),
        "pools.gpu-8x.fabricDevices is 4, but fabric is none",
    ),
    "GPU pool without GPUs": (deep({}, "pools.gpu.gpus", 0), "pools.gpu has no GPU"),
    "shared memory above the memory": (
        deep({}, "pools.cpu.sharedMemoryGibibytes", 16),
        "pools.cpu.sharedMemoryGibibytes is 16 of a pod's 16 GiB",
    ),
    "toleration of an equal value without a key": (
        deep({}, "pools.cpu.tolerations", [{"operator": "Equal", "value": "a"}]),
        "a toleration of pools.cpu compares with Equal, but has no key",
    ),
    "toleration without operator and key": (
        deep({}, "pools.cpu.tolerations", [{"effect": "NoSchedule"}]),
        "a toleration of pools.cpu compares with Equal, but has no key",
    ),
    "toleration of any value with one": (
        deep({}, "pools.cpu.tolerations", [{"key": "a", "operator": "Exists", "value": "b"}]),
        "a toleration of pools.cpu has operator Exists and a value",
    ),
    "embedded store that nobody uses": (
        deep(profile("kind"), "objectStore.endpoint", "http://minio:9000"),
        "objectStore.embedded is on, but objectStore.endpoint is http://minio:9000",
    ),
    "keys that are ignored": (
        deep({}, "objectStore", {"accessKey": "key", "secretKey": "secret"}),
        "objectStore.accessKey or secretKey is set, but createSecret is false",
    ),
    "queue of no pool": (
        deep({}, "kueue", {"enabled": True, "nodeQuota": dict.fromkeys(("cpu", "gpu", "gpu-8x"))}),
        "kueue.nodeQuota has no pool",
    ),
    "pools that a queue can't tell apart": (
        deep(
            deep({}, "pools.small", {"cpu": 1, "memoryGibibytes": 2}),
            "kueue",
            {"enabled": True, "nodeQuota": {"small": 2}},
        ),
        "kueue.nodeQuota has the pools cpu and small without a nodeSelector",
    ),
    "node above a wider domain": (
        deep({}, "kueue", {"enabled": True, "topologyLevels": ["kubernetes.io/hostname", "zone"]}),
        "kueue.topologyLevels has kubernetes.io/hostname",
    ),
    "scaling by figures that nobody collects": (
        deep(deep({}, "autoscaling.enabled", True), "monitoring.enabled", False),
        "autoscaling.enabled is true, but monitoring.enabled is false",
    ),
    "globals": (deep({}, "global.registry", "r"), "global isn't read by this chart"),
    "another name": (deep({}, "nameOverride", "mill"), "nameOverride was removed in 0.2"),
    "pipelines without a pool": (
        deep({}, "pools", {"cpu": None, "gpu": None}),
        'needs the pool "gpu", which isn\'t in pools; there are: gpu-8x',
    ),
}

ALLOWED = {
    "registries": [
        deep({}, "images.registry", text)
        for text in ("", "localhost:5000", "ghcr.io/team", "r.example.com:5000/a/b-c_d")
    ],
    "an embedded store's full name": [
        deep(profile("kind"), "objectStore.endpoint", "http://clipmill-store.ml:8333")
    ],
    "requests without a limit, in other units": [
        deep(
            {},
            "serving.resources.cpu",
            {"requests": {"cpu": 1, "memory": "1024Mi"}, "limits": {"memory": "1Gi"}},
        )
    ],
    "a toleration of everything": [deep({}, "pools.cpu.tolerations", [{"operator": "Exists"}])],
    "pools of other names": [
        deep({"pipelines": {"enabled": False}}, "pools",
             {"cpu": None, "gpu": None, "big": {"cpu": 2, "memoryGibibytes": 8}})
    ],
    "intervals": [deep({}, "monitoring.scrapeInterval", text) for text in ("1h", "1m30s", "500ms")],
}  # fmt: skip


@pytest.mark.parametrize("case", ALLOWED)
def test_values_that_look_odd_and_are_right(case):
    for values in ALLOWED[case]:
        chart().validate_schema(chart().merge_values(values))
        # Pipelines take most of the time.
        assert render({**values, "crds": "require", "pipelines": {"enabled": False}})


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_values_that_contradict_end_the_rendering_with_one_message(case):
    values, words = IMPOSSIBLE[case]
    with pytest.raises(HelmError) as caught:
        render({**values, "crds": "require"})
    assert words in str(caught.value)


RENAMED = {
    "objectStore.role": (True, "objectStore.useWorkloadIdentity"),
    "serviceAccounts.operator": ({"annotations": {"a": "b"}}, "serviceAccounts.submitter"),
    "training.gang": ("volcano", "training.gangScheduler"),
    "kueue.nodes": ({"cpu": 1}, "kueue.nodeQuota"),
    "playground": ({"enabled": False}, "demo"),
    "networkPolicies.allowedNamespaces": (
        ["edge"],
        "networkPolicies.gatewayNamespaces, prometheusNamespaces or userNamespaces",
    ),
}


@pytest.mark.parametrize("name", RENAMED)
def test_a_value_of_0_1_ends_the_rendering_with_its_new_name(name):
    value, new = RENAMED[name]
    with pytest.raises(HelmError) as caught:
        render({**deep({}, name, value), "crds": "require"})
    assert f"{name} is called {new} since 0.2" in str(caught.value)


def test_the_way_to_treat_crds_has_new_words():
    with pytest.raises(HelmError, match="crds: assume is written crds: require since 0.2"):
        render({"crds": "assume"})


def test_the_profiles_are_valid():
    for name in PROFILES[1:]:
        chart().validate_schema(chart().merge_values(profile(name)))
