"""Values of GKE, EKS, OpenShift and kind: what each platform's nodes, identities and rules want."""

import json

import pytest
import yaml
from helpers.helm_chart import CHART, ENDPOINT, deep, over, pod_specs, profile, render
from helpers.strict_schemas import findings

from clipmill.cluster.api import ClusterApi
from clipmill.cluster.argo import DataWorkflowConfig, data_workflow
from clipmill.cluster.doctor import self_test
from clipmill.cluster.pools import POOLS_CONFIG_MAP, Installation, load_installation
from clipmill.cluster.training_job import TrainingJobConfig, training_app

PLATFORMS = ("gke", "eks", "openshift")


def platform(name: str) -> list[dict]:
    """Resources of the platform's values over those of GPU clusters, with all parts."""
    values = deep(over(profile("gpu"), profile(name)), "serving.endpoints", [ENDPOINT])
    values = deep(values, "demo", {"enabled": True, "models": {"depth": ENDPOINT["modelUri"]}})
    return render({**values, "pipelines": {"enabled": False}})


def named(resources, kind, name):
    return next(r for r in resources if (r["kind"], r["metadata"]["name"]) == (kind, name))


def nodes_of(resources, pool):
    runtime = named(resources, "TrainingRuntime", f"clipmill-{pool}")
    ((_, spec),) = pod_specs([runtime])
    return spec


@pytest.mark.parametrize("name", PLATFORMS)
def test_a_platform_goes_with_the_values_of_gpu_clusters(name):
    resources = platform(name)
    assert [f for r in resources for f in findings(r)] == []
    assert named(resources, "ClusterQueue", "ml-clipmill")


SELECTORS = {
    "gke": {
        "gpu": {"cloud.google.com/gke-accelerator": "nvidia-l4"},
        "gpu-8x": {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"},
    },
    "eks": {
        "gpu": {"node.kubernetes.io/instance-type": "g6.4xlarge"},
        "gpu-8x": {"node.kubernetes.io/instance-type": "p5.48xlarge"},
    },
    "openshift": {
        "gpu": {"nvidia.com/gpu.count": "1"},
        "gpu-8x": {"nvidia.com/gpu.count": "8"},
    },
}


@pytest.mark.parametrize("name", PLATFORMS)
def test_pods_find_the_platforms_gpu_nodes(name):
    resources = platform(name)
    for pool, labels in SELECTORS[name].items():
        spec = nodes_of(resources, pool)
        assert spec["nodeSelector"] == labels
        assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in spec[
            "tolerations"
        ]
        flavor = named(resources, "ResourceFlavor", f"ml-clipmill-{pool}")
        assert flavor["spec"]["nodeLabels"] == labels


IDENTITIES = {
    "gke": ("iam.gke.io/gcp-service-account", "@my-project.iam.gserviceaccount.com"),
    "eks": ("eks.amazonaws.com/role-arn", "arn:aws:iam::111122223333:role/clipmill"),
}


@pytest.mark.parametrize("name", IDENTITIES)
def test_service_accounts_have_the_clouds_identity(name):
    key, text = IDENTITIES[name]
    for account in ("data", "train", "serve"):
        resource = named(platform(name), "ServiceAccount", f"clipmill-{account}")
        assert text in resource["metadata"]["annotations"][key]


def test_eks_has_no_keys_and_its_largest_nodes_the_fabric():
    resources = platform("eks")
    secret = named(resources, "Secret", "clipmill-store")["stringData"]
    assert secret["AWS_ACCESS_KEY_ID"] == secret["AWS_SECRET_ACCESS_KEY"] == ""
    (container,) = nodes_of(resources, "gpu-8x")["containers"]
    assert container["resources"]["limits"]["vpc.amazonaws.com/efa"] == "32"
    (container,) = nodes_of(resources, "gpu")["containers"]
    assert "vpc.amazonaws.com/efa" not in container["resources"]["limits"]


def test_gke_reads_cloud_storage_with_keys_that_are_made_apart():
    resources = platform("gke")
    assert not [r for r in resources if r["kind"] == "Secret"]
    uri = yaml.safe_load((CHART / "values-gke.yaml").read_text())["objectStore"]["endpoint"]
    assert uri == "https://storage.googleapis.com"
    policy = named(resources, "NetworkPolicy", "clipmill-allow-inference")
    blocks = [f["ipBlock"]["cidr"] for f in policy["spec"]["ingress"][0]["from"] if "ipBlock" in f]
    assert blocks == ["130.211.0.0/22", "35.191.0.0/16"]


CLASSES = {"gke": "premium-rwo", "eks": "gp3", "openshift": "ocs-storagecluster-ceph-rbd"}


@pytest.mark.parametrize("name", PLATFORMS)
def test_the_embedded_store_has_the_platforms_storage_class(name):
    values = profile(name)
    store = {"createSecret": True, "useWorkloadIdentity": False, "endpoint": ""}
    embedded = {**values["objectStore"]["embedded"], "enabled": True}
    values["objectStore"] = {**values["objectStore"], **store, "embedded": embedded}
    (claim,) = named(render(values), "StatefulSet", "clipmill-store")["spec"][
        "volumeClaimTemplates"
    ]
    assert claim["spec"]["storageClassName"] == CLASSES[name]


def test_kind_asks_for_less_than_a_laptop_has():
    values = deep(profile("kind"), "serving.endpoints", [ENDPOINT])
    resources = render({**values, "pipelines": {"enabled": False}})
    assert named(resources, "StatefulSet", "clipmill-store")
    containers = [c for _, spec in pod_specs(resources) for c in spec["containers"]]
    containers += named(resources, "ServingRuntime", "clipmill-cpu")["spec"]["containers"]
    requests = [c["resources"]["requests"] for c in containers]
    assert not [r for r in requests if "nvidia.com/gpu" in r]
    cores = [str(r["cpu"]) for r in requests]
    assert sum(float(c[:-1]) / 1000 if c.endswith("m") else float(c) for c in cores) <= 2
    memory = [str(r["memory"]) for r in requests]
    assert sum(float(m[:-2]) / (1024 if m.endswith("Mi") else 1) for m in memory) <= 6


ALLOWED_VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim",
    "projected", "secret",
}  # fmt: skip


def restricted_v2_problems(spec: dict) -> list[str]:
    """Objections of OpenShift's SCC ``restricted-v2`` to a pod, by its published fields."""
    problems = [f"{field} is set" for field in ("hostNetwork", "hostPID", "hostIPC") if spec.get(field)]
    contexts = [("pod", spec.get("securityContext", {}))]
    for container in [*spec.get("initContainers", []), *spec["containers"]]:
        security = container.get("securityContext", {})
        contexts.append((container["name"], security))
        if security.get("privileged") or security.get("allowPrivilegeEscalation") is not False:
            problems.append(f"{container['name']} may gain privileges")
        capabilities = security.get("capabilities", {})
        if capabilities.get("drop") != ["ALL"] or set(capabilities.get("add", [])) - {
            "NET_BIND_SERVICE"
        }:
            problems.append(f"{container['name']} has capabilities {capabilities}")
        problems += [f"{p} is a port of the host" for p in container.get("ports", []) if "hostPort" in p]
    for who, security in contexts:
        # The namespace's ranges begin at 1000000000 or more: no fixed id lies in all of them.
        problems += [
            f"{who} has {field} {security[field]}"
            for field in ("runAsUser", "runAsGroup", "fsGroup", "supplementalGroups")
            if field in security
        ]
        if security.get("seccompProfile", {}).get("type", "RuntimeDefault") != "RuntimeDefault":
            problems.append(f"{who} has another seccomp profile")
        if security.get("seLinuxOptions"):
            problems.append(f"{who} has SELinux options")
    for volume in spec.get("volumes", []):
        problems += [f"volume {kind}" for kind in set(volume) - {"name"} - ALLOWED_VOLUMES]
    return problems


def installed(resources) -> Installation:
    """The installation as the code reads it from the namespace."""

    class Api(ClusterApi):
        def __init__(self) -> None:
            pass

        def config_map(self, namespace, name):
            assert (namespace, name) == ("ml", POOLS_CONFIG_MAP)
            return named(resources, "ConfigMap", name)

    return load_installation("ml", api=Api(), environment={})


def pods_of_the_code(installation):
    """Pods that clipmill itself makes there, with who makes them."""
    config = DataWorkflowConfig(stage="score", subject="s3://b/d", pool="cpu", namespace="ml")
    workflow = data_workflow(config, 10, installation)["spec"]
    containers = [t["container"] | {"name": "main"} for t in workflow["templates"] if "container" in t]
    yield "workflow", {
        "securityContext": workflow["securityContext"],
        "containers": containers,
        "volumes": workflow["volumes"],
    }
    job = TrainingJobConfig(name="clip", command=("recipes",), pool="gpu")
    app = training_app(
        job, installation.pool("gpu"), "i", pod_security=installation.pod_security
    )
    overlay = json.dumps(app.roles[0].metadata, default=str)
    yield "Volcano job", {"securityContext": _security(app.roles[0].metadata), "containers": []}
    assert "securityContext" in overlay
    pod = self_test._pod("train", installation, "ml")
    yield "self-test", pod["spec"]


def _security(value):
    """The pod's security context within TorchX's overlay."""
    if isinstance(value, dict):
        if "terminationGracePeriodSeconds" in value:
            return value["securityContext"]
        return next((s for v in value.values() if (s := _security(v)) is not None), None)
    return None


def every_pod(resources):
    yield from pod_specs(resources)
    for resource in resources:
        if resource["kind"] == "ServingRuntime":
            service = named(resources, "InferenceService", "depth")["spec"]["predictor"]
            yield resource["metadata"]["name"], {**service, **resource["spec"]}
    yield from pods_of_the_code(installed(resources))


def test_openshift_takes_every_pod_under_restricted_v2():
    pods = list(every_pod(platform("openshift")))
    assert len(pods) >= 8
    assert {who: p for who, spec in pods if (p := restricted_v2_problems(spec))} == {}


def test_elsewhere_pods_have_a_fixed_user_which_restricted_v2_refuses():
    for who, spec in every_pod(platform("gke")):
        assert "pod has runAsUser 10001" in restricted_v2_problems(spec), who
