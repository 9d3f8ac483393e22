"""What kube-linter and polaris would say, as far as it matters here."""

import re

import pytest
from helpers.helm_chart import ENDPOINT, PROFILES, deep, pod_specs, profile, render

CONTAINER_KINDS = ("containers", "initContainers")


def resources(name):
    values = deep(profile(name), "serving.endpoints", [ENDPOINT])
    models = {"depth": ENDPOINT["modelUri"]}
    return render(deep(values, "demo", {"enabled": True, "models": models}))


def containers(rendered):
    """Every container with who describes it, serving's too, whose pod is KServe's to make."""
    for who, spec in pod_specs(rendered):
        for kind in CONTAINER_KINDS:
            for container in spec.get(kind, []):
                yield who, container
    for resource in rendered:
        if resource["kind"] == "ServingRuntime":
            for container in resource["spec"]["containers"]:
                yield resource["metadata"]["name"], container


@pytest.mark.parametrize("name", PROFILES)
def test_pods_are_restricted(name):
    rendered = resources(name)
    seen = list(pod_specs(rendered))
    seen += [
        (r["metadata"]["name"], r["spec"]["predictor"])
        for r in rendered
        if r["kind"] == "InferenceService"
    ]
    assert len(seen) > 2
    for who, spec in seen:
        security = spec["securityContext"]
        assert security["runAsNonRoot"] is True, who
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, who
        assert ("runAsUser" in security) == (name != "openshift"), who
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys(), who
        assert spec["automountServiceAccountToken"] is False, who
        assert not [v for v in spec.get("volumes", []) if "hostPath" in v], who


@pytest.mark.parametrize("name", PROFILES)
def test_containers_are_restricted_and_bounded(name):
    seen = list(containers(resources(name)))
    assert len(seen) > 2
    for who, container in seen:
        security = container["securityContext"]
        assert security["allowPrivilegeEscalation"] is False, who
        assert security["capabilities"] == {"drop": ["ALL"]}, who
        assert security["readOnlyRootFilesystem"] is True, who
        assert not security.get("privileged"), who
        for bound in ("requests", "limits"):
            assert {"cpu", "memory"} <= container["resources"][bound].keys(), who
        registry, _, tag = container["image"].rpartition(":")
        assert registry and tag not in {"", "latest"}, who
        plain = [e["name"] for e in container.get("env", []) if "value" in e]
        assert not [n for n in plain if "SECRET" in n or "PASSWORD" in n or "TOKEN" in n], who


def test_whatever_serves_is_probed():
    rendered = resources("kind")
    servers = [c for who, c in containers(rendered) if re.search("store|cpu|demo", who)]
    servers = [c for c in servers if c["name"] in {"seaweedfs", "kserve-container", "serve"}]
    assert len(servers) == 3
    for container in servers:
        assert {"readinessProbe", "livenessProbe"} <= container.keys()


@pytest.mark.parametrize("name", PROFILES)
def test_roles_have_no_wildcard_and_read_no_secret(name):
    roles = [r for r in resources(name) if r["kind"] in {"Role", "ClusterRole"}]
    names = {role["metadata"]["name"] for role in roles}
    assert names == {
        "clipmill-submitter",
        "clipmill-data",
        "clipmill-train",
        "clipmill-task-events",
    }
    for role in roles:
        assert role["kind"] == "Role"
        for rule in role["rules"]:
            assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
            assert not {"secrets", "roles", "rolebindings", "pods/exec"} & {*rule["resources"]}
            assert not {"escalate", "bind", "impersonate"} & {*rule["verbs"]}


def test_pods_use_service_accounts_that_the_chart_makes():
    rendered = resources("gpu")
    made = {r["metadata"]["name"] for r in rendered if r["kind"] == "ServiceAccount"}
    named = {spec.get("serviceAccountName") for _, spec in pod_specs(rendered)} - {None}
    subjects = [s for r in rendered if r["kind"] == "RoleBinding" for s in r["subjects"]]
    # Kubeflow Pipelines has its own in its namespace.
    bound = {s["name"] for s in subjects if s["namespace"] == "ml"}
    assert named and named | bound <= made


def test_selectors_find_the_pods_that_they_are_for():
    rendered = resources("kind")
    (store,) = [r for r in rendered if r["kind"] == "StatefulSet"]
    labels = store["spec"]["template"]["metadata"]["labels"].items()
    assert store["spec"]["selector"]["matchLabels"].items() <= labels
    services = {r["metadata"]["name"]: r for r in rendered if r["kind"] == "Service"}
    assert services["clipmill-store"]["spec"]["selector"].items() <= labels
    (demo,) = [r for r in rendered if r["kind"] == "Deployment"]
    labels = demo["spec"]["template"]["metadata"]["labels"].items()
    assert demo["spec"]["selector"]["matchLabels"].items() <= labels
    assert services["clipmill-demo"]["spec"]["selector"].items() <= labels


def test_names_are_unique_and_every_resource_is_labeled():
    rendered = resources("gpu")
    keys = [(r["kind"], r["metadata"].get("namespace"), r["metadata"]["name"]) for r in rendered]
    assert len(keys) == len(set(keys))
    assert all("app.kubernetes.io/name" in r["metadata"]["labels"] for r in rendered)
