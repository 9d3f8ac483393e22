"""A wrong value is one clear message, before anything is installed."""

import pytest
from helm_python.errors import HelmError
from helpers.helm_chart import ENDPOINT, STORE, chart, deep, profile, render

WRONG = {
    "unknown key": ("servng", {}, "servng"),
    "unknown key within": ("training.graceSecond", 30, "graceSecond"),
    "bucket without scheme": ("objectStore.uri", "bucket/prefix", "/objectStore/uri"),
    "endpoint without scheme": ("objectStore.endpoint", "minio:9000", "/objectStore/endpoint"),
    "zero replicas": ("serving.endpoints", [{**ENDPOINT, "minReplicas": 0}], "minReplicas"),
    "model without scheme": ("serving.endpoints", [{**ENDPOINT, "modelUri": "m"}], "modelUri"),
    "endpoint's name": ("serving.endpoints", [{**ENDPOINT, "name": "My_Model"}], "name"),
    "endpoint's runtime": ("serving.endpoints", [{**ENDPOINT, "runtime": "tpu"}], "runtime"),
    "pool without memory": ("pools.gpu", {"cpu": 1, "memoryGibibytes": 0}, "memoryGibibytes"),
    "pool's fabric": ("pools.gpu", {"cpu": 1, "memoryGibibytes": 1, "fabric": "roce"}, "fabric"),
    "negative GPUs": ("pools.gpu", {"cpu": 1, "memoryGibibytes": 1, "gpus": -1}, "gpus"),
    "no time to stop": ("training.graceSeconds", 5, "graceSeconds"),
    "scheduler": ("training.gangScheduler", "yunikorn", "gang"),
    "text for a switch": ("kueue.enabled", "yes", "/kueue/enabled"),
    "image by digest only": ("objectStore.embedded.image", "seaweedfs", "image"),
    "kind of monitor": ("monitoring.kind", "Probe", "kind"),
    "demo's model": ("demo.models", {"depth": "models/depth"}, "depth"),
    "service account": ("serviceAccounts.root", {}, "root"),
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
        deep(profile("laptop"), "serving.endpoints", [{**ENDPOINT, "runtime": "gpu"}]),
        'endpoint "depth" wants a GPU, but pools has no pool gpu',
    ),
    "replicas": (
        deep({}, "serving.endpoints", [{**ENDPOINT, "minReplicas": 5}]),
        'endpoint "depth": minReplicas 5 is above maxReplicas 3',
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
}


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
    for name in ("laptop", "gpu", "openshift"):
        chart().validate_schema(chart().merge_values(profile(name)))
