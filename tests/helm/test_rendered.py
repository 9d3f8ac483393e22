"""Every rendered resource is what its schema allows, in all profiles, each option on and off."""

import pytest
from helpers.helm_chart import ENDPOINT, PROFILES, STORE, chart, deep, kinds, lean, notes, profile, render

from clipmill.cluster.constants import TRACKING_SECRET, TRACKING_VARIABLES
from clipmill.cluster.monitoring.rules import ALERTS, rules
from clipmill.pipelines.registry import PIPELINES
from helpers.strict_schemas import findings

OPTIONS = {
    "pipelines.enabled": (True, False),
    "training.enabled": (True, False),
    "training.gangScheduler": ("none", "volcano", "coscheduling"),
    "dataPlane.enabled": (True, False),
    "serving.enabled": (True, False),
    "serving.endpoints": ([], [ENDPOINT]),
    "autoscaling.enabled": (True, False),
    "kueue.enabled": (True, False),
    "kueue.topologyLevels": ([], ["kubernetes.io/hostname"]),
    "kueue.cohort": ("", "all"),
    "monitoring.enabled": (True, False),
    "monitoring.alerts": (True, False),
    "monitoring.alertsFrom": ({"kubeStateMetrics": True, "argo": True},),
    "monitoring.dashboards": (True, False),
    "monitoring.kind": ("PodMonitor", "ServiceMonitor"),
    "demo": (
        {"enabled": True, "models": {"depth": "s3://bucket/models/depth-1"}},
        {
            "enabled": True,
            "models": {"depth": "s3://bucket/models/depth-1"},
            "route": {"host": "mill.example.com", "gateway": "public", "gatewayNamespace": "edge"},
        },
    ),
    "networkPolicies.enabled": (True, False),
    "networkPolicies.clientCidrs": (["10.1.0.0/16", "fd00::/8"],),
    "openshift": (True, False),
    "images.registry": ("", "registry.example.com:5000/ml"),
    "images.pullSecrets": ([], [{"name": "pull"}]),
    "objectStore.embedded.storageClass": ("", "fast"),
    "serviceAccounts.train.annotations": (
        {},
        {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/r"},
    ),
}

NEEDED = {
    ("serving.enabled", False): ("serving.endpoints", []),
    ("monitoring.enabled", False): ("autoscaling.enabled", False),
}
"""Values that an option rules out."""

LEAN = lean("")


def checked(values: dict) -> list[dict]:
    resources = render(values)
    found = [finding for resource in resources for finding in findings(resource)]
    assert found == []
    return resources


@pytest.mark.parametrize("name", PROFILES)
def test_each_profile_with_all_parts(name):
    values = deep(profile(name), "serving.endpoints", [ENDPOINT])
    for part in ("autoscaling", "kueue"):
        values = deep(values, f"{part}.enabled", True)
    resources = checked(values)
    assert {"PipelineVersion", "TrainingRuntime", "InferenceService"} <= kinds(resources)
    assert {"ClusterQueue", "PodMonitor", "PrometheusRule", "ServingRuntime"} <= kinds(resources)


@pytest.mark.parametrize(
    ("path", "value"), [(path, value) for path, values in OPTIONS.items() for value in values]
)
def test_each_option(path, value):
    values = deep(lean("gpu"), "serving.endpoints", [ENDPOINT])
    values = deep(values, "objectStore", {**STORE, "embedded": {"enabled": True}})
    if isinstance(value, bool) and (path, value) in NEEDED:
        values = deep(values, *NEEDED[path, value])
    checked(deep(values, path, value))


def test_nothing_of_a_missing_crd_is_rendered_and_the_notes_say_so():
    values = deep({}, "kueue.enabled", True)
    resources = render(values)
    assert kinds(resources) <= {
        "ServiceAccount", "Role", "RoleBinding", "ConfigMap", "NetworkPolicy",
    }  # fmt: skip
    text = notes(values)
    for part in ("pipelines", "training", "serving", "monitoring", "kueue"):
        assert f"{part} (needs " in text
    assert "Left out" not in notes(profile(""))


def test_a_service_monitor_finds_the_services_that_find_the_pods():
    resources = render(deep(profile(""), "monitoring.kind", "ServiceMonitor"))
    services = [r for r in resources if r["kind"] == "Service"]
    monitors = [r for r in resources if r["kind"] == "ServiceMonitor"]
    assert len(services) == len(monitors) == 4
    assert "PodMonitor" not in kinds(resources)
    for monitor in monitors:
        wanted = monitor["spec"]["selector"]["matchLabels"].items()
        (found,) = [s for s in services if wanted <= s["metadata"]["labels"].items()]
        assert found["spec"]["ports"][0]["name"] == monitor["spec"]["endpoints"][0]["port"]
        chosen = found["spec"]["selector"]
        tasks = {"clipmill.io/metrics": "pipeline"}
        component = "pipeline" if chosen == tasks else chosen["app.kubernetes.io/component"]
        assert found["metadata"]["name"] == f"clipmill-{component}-metrics"
        namespaces = monitor["spec"].get("namespaceSelector", {"matchNames": ["ml"]})
        assert namespaces == {"matchNames": [found["metadata"]["namespace"]]}
        assert (namespaces == {"matchNames": ["kubeflow"]}) == (component == "pipeline")


@pytest.mark.parametrize("gpu_name", ["nvidia.com/gpu", "amd.com/gpu"])
def test_a_serving_runtime_requests_what_the_values_say(gpu_name):
    amounts = {
        kind: {
            "requests": {"cpu": "2", "memory": f"{8 + i}Gi"},
            "limits": {"cpu": "7", "memory": f"{16 + i}Gi"},
        }
        for i, kind in enumerate(("cpu", "gpu"))
    }
    values = deep(LEAN, "serving.resources", amounts)
    resources = render(deep(values, "pools.gpu.gpuResource", gpu_name))
    runtimes = {
        r["metadata"]["name"]: r["spec"]["containers"][0]["resources"]
        for r in resources
        if r["kind"] == "ServingRuntime"
    }
    device = {gpu_name: "1"}
    assert runtimes["clipmill-cpu"] == amounts["cpu"]
    assert runtimes["clipmill-gpu"] == {k: v | device for k, v in amounts["gpu"].items()}


def test_a_queue_covers_all_that_its_pods_request():
    pools = {
        "gpu-8x": {"fabric": "efa", "fabricDevices": 32},
        "gpu": {"gpuResource": "amd.com/gpu"},
    }
    values = {**LEAN, "pools": pools, "kueue": {"enabled": True}}
    resources = checked(values)
    requested = {
        r["metadata"]["name"].removeprefix("clipmill-"): containers_of(r)[0]["resources"][
            "requests"
        ]
        for r in resources
        if r["kind"] == "TrainingRuntime"
    }
    (queue,) = [r for r in resources if r["kind"] == "ClusterQueue"]
    (group,) = queue["spec"]["resourceGroups"]
    assert group["coveredResources"] == sorted({name for pod in requested.values() for name in pod})
    assert {"vpc.amazonaws.com/efa", "amd.com/gpu", "nvidia.com/gpu"} <= {
        *group["coveredResources"]
    }
    quotas = {
        flavor["name"].removeprefix("ml-clipmill-"): {
            q["name"]: q["nominalQuota"] for q in flavor["resources"]
        }
        for flavor in group["flavors"]
    }
    assert quotas["gpu-8x"] == {
        "cpu": "180", "memory": "2000Gi", "nvidia.com/gpu": "16", "amd.com/gpu": "0",
        "vpc.amazonaws.com/efa": "64",
    }  # fmt: skip
    assert quotas["cpu"] == {
        **dict.fromkeys(group["coveredResources"], "0"), "cpu": "16", "memory": "64Gi",
    }  # fmt: skip


def containers_of(runtime: dict) -> list[dict]:
    (job,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    return job["template"]["spec"]["template"]["spec"]["containers"]


def test_two_installations_share_no_name_of_the_cluster():
    values = deep(deep(profile("gpu"), "serving.endpoints", [ENDPOINT]), "kueue.enabled", True)
    one, two = (
        {(r["kind"], r["metadata"].get("namespace"), r["metadata"]["name"]) for r in resources}
        for resources in (
            render(deep(values, "pipelines.kubeflow.namespace", name), namespace=name)
            for name in ("ml", "vision")
        )
    )
    assert len(one) == len(two)
    assert not one & two
    assert {kind for kind, namespace, _ in one if namespace is None} == {
        "ClusterQueue", "ResourceFlavor", "Topology",
    }  # fmt: skip


def test_a_job_is_admitted_to_its_own_pools_quota_only():
    """Kueue compares its pods' node selectors and tolerations with each flavor."""
    resources = checked({**LEAN, "kueue": {"enabled": True}})
    flavors = {r["metadata"]["name"]: r["spec"] for r in resources if r["kind"] == "ResourceFlavor"}
    gpu = {"key": "nvidia.com/gpu", "value": "", "effect": "NoSchedule"}
    assert flavors == {
        "ml-clipmill-cpu": {},
        "ml-clipmill-gpu": {"nodeLabels": {"clipmill.io/pool": "gpu"}, "nodeTaints": [gpu]},
        "ml-clipmill-gpu-8x": {"nodeLabels": {"clipmill.io/pool": "gpu-8x"}, "nodeTaints": [gpu]},
    }


def test_a_cluster_needs_no_pool_of_a_fixed_name():
    pools = {"cpu": None, "gpu": None, "gpu-8x": None, "big": {"cpu": 2, "memoryGibibytes": 8}}
    values = {
        **profile(""),
        "pools": pools,
        "pipelines": {"enabled": False},
        "kueue": {"enabled": True, "nodeQuota": {"big": 3, **dict.fromkeys(pools, None)}},
    }
    values["kueue"]["nodeQuota"]["big"] = 3
    resources = checked(values)
    assert [r["metadata"]["name"] for r in resources if r["kind"] == "TrainingRuntime"] == [
        "clipmill-big"
    ]
    assert "ServingRuntime" in kinds(resources)


def alerts(values: dict) -> set[str]:
    (found,) = [r for r in checked(values) if r["kind"] == "PrometheusRule"]
    return {
        rule["alert"] for g in found["spec"]["groups"] for rule in g["rules"] if "alert" in rule
    }


@pytest.mark.parametrize(
    ("pipelines", "namespaces"), [(True, "ml|kubeflow"), (False, "ml")], ids=("pipelines", "none")
)
def test_rules_see_the_series_of_their_installation_only(pipelines, namespaces):
    """Else an alert fires once for each installation in the cluster."""
    sources = {"kubeStateMetrics": True, "argo": True}
    values = deep(profile(""), "monitoring.alertsFrom", sources)
    resources = render(deep(values, "pipelines.enabled", pipelines))
    (resource,) = [r for r in resources if r["kind"] == "PrometheusRule"]
    assert resource["spec"]["groups"] == rules(namespaces)["groups"]


def test_alerts_on_the_metrics_of_others_are_opted_into():
    default = alerts(LEAN)
    argo = alerts(deep(LEAN, "monitoring.alertsFrom.argo", True))
    state = alerts(deep(LEAN, "monitoring.alertsFrom.kubeStateMetrics", True))
    assert default == {a.name for a in ALERTS if not a.source}
    assert argo - default == {"PipelineFailed"}
    assert state - default == {"EndpointRestarts"}


def allowed(resources: list[dict], component: str, port: int) -> set[str]:
    """Namespaces and networks that may reach a port of the pods of a component."""
    labels = {"app.kubernetes.io/name": "clipmill", "app.kubernetes.io/component": component}
    peers = set()
    for policy in resources:
        if policy["kind"] != "NetworkPolicy":
            continue
        if not policy["spec"]["podSelector"]["matchLabels"].items() <= labels.items():
            continue
        for rule in policy["spec"].get("ingress", []):
            if not any(
                p["port"] <= port <= p.get("endPort", p["port"]) for p in rule.get("ports", [])
            ):
                continue
            for peer in rule["from"]:
                selector = peer.get("namespaceSelector", {}).get("matchLabels", {})
                peers |= {*selector.values(), peer.get("ipBlock", {}).get("cidr", "own")} - {None}
    return peers


def test_policies_let_in_the_peers_that_the_values_name():
    policies = {
        "gatewayNamespaces": ["edge"],
        "clientCidrs": ["10.1.0.0/16"],
        "prometheusNamespaces": ["metrics"],
        "userNamespaces": ["team-a"],
    }
    values = {**profile(""), "networkPolicies": policies}
    values["pipelines"] = {"kubeflow": {"namespace": "profile"}}
    resources = checked(values)
    own = {"own"}
    for port in (8080, 8081):
        queriers = allowed(resources, "serve", port) - {"metrics"}
        assert queriers == own | {"edge", "10.1.0.0/16", "profile", "team-a"}
    assert allowed(resources, "store", 8333) == own | {"profile", "team-a"}
    # A process per GPU serves its own metrics.
    for component, port in (("train", 9090), ("train", 9097), ("data", 9090), ("serve", 8080)):
        assert "metrics" in allowed(resources, component, port)
    assert "edge" not in allowed(resources, "train", 9090)
    assert allowed(resources, "store", 8888) == set()


@pytest.mark.parametrize("part", ["pipelines", "serving", "kueue"])
def test_notes_name_only_parts_that_are_on(part):
    values = deep(
        deep(profile(""), "serving.endpoints", [ENDPOINT]), "training.gangScheduler", "volcano"
    )
    text = notes(values)
    assert "open end-to-end in the Kubeflow UI" in text
    assert "Its last tasks deploy" in text
    assert "helm -n ml test mill" in text
    off = notes(deep(profile(""), part, {"enabled": False}))
    assert ("in the Kubeflow UI" in off) == (part != "pipelines")
    assert ("Its last tasks deploy" in off) == (part == "kueue")
    assert "helm -n ml test" not in off
    # Nothing to start or to query where the CRDs are missing.
    bare = notes({key: value for key, value in values.items() if key != "crds"})
    assert "in the Kubeflow UI" not in bare
    assert "helm -n ml test" not in bare


def secret(values: dict) -> dict[str, str]:
    """Keys of the store, the same where endpoints and jobs run and where pipelines do."""
    secrets = [
        r
        for r in checked(values)
        if r["metadata"]["name"] == "clipmill-store" and r["kind"] == "Secret"
    ]
    assert {s["metadata"]["namespace"] for s in secrets} == {"ml", "kubeflow"}
    keys, others = (s["stringData"] for s in secrets)
    assert keys == others
    return keys


def test_with_a_role_there_are_no_keys():
    values = deep(
        profile("gpu"), "objectStore", {"useWorkloadIdentity": True, "region": "eu-west-1"}
    )
    found = secret(values)
    assert found["AWS_ACCESS_KEY_ID"] == found["AWS_SECRET_ACCESS_KEY"] == ""
    assert found["AWS_REGION"] == "eu-west-1"


def test_an_embedded_store_draws_its_keys():
    first, second = secret(profile("kind")), secret(profile("kind"))
    assert len(first["AWS_SECRET_ACCESS_KEY"]) == 40
    assert first["AWS_SECRET_ACCESS_KEY"] != second["AWS_SECRET_ACCESS_KEY"]


def test_a_version_of_a_pipeline_is_named_by_what_it_is():
    def names(values):
        return {r["metadata"]["name"] for r in render(values) if r["kind"] == "PipelineVersion"}

    first, again = names(profile("")), names(profile(""))
    other = names(deep(profile(""), "images.train", {"repository": "mine/train", "tag": "2"}))
    assert first == again
    assert len(first) == len(other) == len(PIPELINES)
    assert not first & other


def test_the_pools_of_the_values_reach_pipelines_runtimes_and_queues():
    pool = {
        "gpus": 4, "cpu": 40, "memoryGibibytes": 400, "sharedMemoryGibibytes": 99,
        "nodeSelector": {"cloud/pool": "a100", "clipmill.io/pool": None},
        "tolerations": [{"key": "a100", "operator": "Exists", "effect": "NoSchedule"}],
    }  # fmt: skip
    values = deep(deep(profile(""), "pools.gpu", pool), "kueue.enabled", True)
    by_name = {(r["kind"], r["metadata"]["name"]): r for r in render(values)}
    (version,) = [r for (k, n), r in by_name.items() if k == "PipelineVersion" and "end" in n]
    placed = version["spec"]["platformSpec"]["platforms"]["kubernetes"]["deploymentSpec"]
    executor = placed["executors"]["exec-pretrain"]
    assert executor["nodeSelector"] == {"labels": {"cloud/pool": "a100"}}
    assert executor["tolerations"] == pool["tolerations"]
    assert executor["emptyDirMounts"][0]["sizeLimit"] == "99Gi"
    container = version["spec"]["pipelineSpec"]["deploymentSpec"]["executors"]["exec-pretrain"]
    assert container["container"]["resources"]["accelerator"] == {
        "resourceType": "nvidia.com/gpu",
        "resourceCount": "4",
    }
    assert "nodeSelector" not in placed["executors"]["exec-shard"]
    runtime = by_name["TrainingRuntime", "clipmill-gpu"]
    pod = runtime["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]
    assert pod["spec"]["nodeSelector"] == {"cloud/pool": "a100"}
    flavour = by_name["ResourceFlavor", "ml-clipmill-gpu"]
    assert flavour["spec"]["nodeLabels"] == {"cloud/pool": "a100"}


def test_placeholders_of_pipelines_survive_the_chart():
    (version,) = [
        r for r in render(profile("")) if r["metadata"]["name"].startswith("train-and-report-")
    ]
    commands = version["spec"]["pipelineSpec"]["deploymentSpec"]["executors"]
    assert "{{$}}" in commands["exec-shard"]["container"]["args"]


def test_an_upgrade_keeps_what_serves_and_what_ran():
    values = deep(profile(""), "serving.endpoints", [ENDPOINT])
    kept = {
        r["kind"]
        for r in render(values)
        if r["metadata"].get("annotations", {}).get("helm.sh/resource-policy") == "keep"
    }
    assert kept == {
        "InferenceService", "PipelineVersion", "Service", "ServiceAccount", "ServingRuntime",
    }  # fmt: skip


def test_the_lint_is_clean():
    from helm_python.chart import lint

    for name in PROFILES:
        report = lint(str(chart_path()), profile(name), strict=True, namespace="clipmill")
        assert report["errors"] == []
        assert [m for m in report["messages"] if m["severity"] > 1] == []


def chart_path():
    from helpers.helm_chart import CHART

    assert chart().name == "clipmill"
    return CHART


def test_the_tracker_reaches_tasks_by_a_secret():
    """In the chart's namespace, and in the pipelines'; jobs and workflows read it too."""
    uri = "mlflow:http://mlflow.mlflow:5000"
    token = {"MLFLOW_TRACKING_TOKEN": "secret"}
    values = deep(profile(""), "tracking", {"uri": uri, "environment": token})
    secrets = [r for r in render(values) if r["metadata"]["name"] == TRACKING_SECRET]
    assert {r["metadata"]["namespace"] for r in secrets} == {"ml", "kubeflow"}
    for secret in secrets:
        assert secret["stringData"] == {"CLIPMILL_TRACKING": uri, **token}
        assert secret["stringData"].keys() <= set(TRACKING_VARIABLES)
    assert TRACKING_SECRET not in {r["metadata"]["name"] for r in render(profile(""))}


def test_kubeflows_registry_reaches_tasks_without_a_tracker():
    registry = "kubeflow:http://model-registry-service.kubeflow:8080"
    token = {"CLIPMILL_REGISTRY_TOKEN": "secret"}
    values = deep(LEAN, "tracking", {"registry": registry, "environment": token})
    (secret,) = [r for r in checked(values) if r["metadata"]["name"] == TRACKING_SECRET]
    assert secret["stringData"] == {"CLIPMILL_REGISTRY": registry, **token}
    assert secret["stringData"].keys() <= set(TRACKING_VARIABLES)
