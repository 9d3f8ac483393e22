"""A real API server takes what the chart and the code emit, and holds their rights."""

from collections.abc import Iterator

import pytest
import yaml

from clipmill.engine import kubernetes
from clipmill.engine.kubernetes import POD_VARIABLES, PodEvents
from helpers.api_server import ApiServer, api_server
from helpers.helm_chart import ENDPOINT, PROFILES, ROOT, STORE, deep, lean, over, profile, render

EXAMPLES = sorted((ROOT / "manifests" / "examples").glob("*.yaml"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with api_server(tmp_path_factory.mktemp("api")) as started:
        for name in ("ml", "clipmill", "kubeflow"):
            started.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        yield started


@pytest.mark.parametrize("name", PROFILES)
def test_the_api_takes_the_chart(server, name):
    is_platform = name in {"gke", "eks", "openshift"}
    values = over(profile("gpu"), profile(name)) if is_platform else profile(name)
    values["serving"] = {**values.get("serving", {}), "endpoints": [ENDPOINT]}
    store = values.get("objectStore", {})
    # A role rules out keys.
    values["objectStore"] = store if store.get("useWorkloadIdentity") else {**store, **STORE}
    problems = [p for r in render(values) for p in server.problems(r, "ml")]
    assert problems == []


def test_the_api_takes_an_endpoint_that_scales_to_zero(server):
    values = deep(lean(""), "autoscaling", {"http": {"enabled": True, "domain": "example.com"}})
    endpoint = {**ENDPOINT, "minReplicas": 0}
    resources = render(deep(values, "serving", {"endpoints": [endpoint]}))
    scaled = [r for r in resources if r["kind"] == "HTTPScaledObject"]
    if server.request("GET", "/apis/http.keda.sh/v1alpha1")[0] == 404:
        resources = [r for r in resources if r not in scaled]
    assert len(scaled) == 1
    assert [p for r in resources for p in server.problems(r, "ml")] == []


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_the_api_takes_the_examples(server, file):
    resources = [r for r in yaml.safe_load_all(file.read_text()) if r]
    assert [p for r in resources for p in server.problems(r, "ml")] == []


def test_an_unknown_field_is_refused(server):
    """The server's strictness, on which the tests above depend."""
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "x"},
        "spec": {"ports": [{"port": 80}], "sellector": {}},
    }
    assert "sellector" in server.problems(service)[0]


RIGHTS = [
    # account, verb, resource, group, whether
    ("clipmill-submitter", "create", "trainjobs", "trainer.kubeflow.org", True),
    ("clipmill-submitter", "create", "workflows", "argoproj.io", True),
    ("clipmill-submitter", "patch", "inferenceservices", "serving.kserve.io", True),
    ("clipmill-submitter", "get", "pods/log", "", True),
    ("clipmill-submitter", "get", "secrets", "", False),
    ("clipmill-submitter", "create", "pods", "", False),
    ("clipmill-submitter", "create", "rolebindings", "rbac.authorization.k8s.io", False),
    ("clipmill-data", "create", "workflowtaskresults", "argoproj.io", True),
    ("clipmill-data", "create", "configmaps", "", False),
    ("clipmill-serve", "get", "secrets", "", False),
    ("clipmill-train", "create", "trainjobs", "trainer.kubeflow.org", False),
    ("clipmill-train", "create", "events", "", True),
    ("clipmill-train", "get", "pods", "", False),
]


@pytest.fixture
def accounts(server: ApiServer) -> None:
    """The chart's accounts and their rights."""
    kinds = {"ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"}
    for resource in render(profile("")):
        if resource["kind"] in kinds:
            server.create(resource, "ml")


def test_a_training_creates_events_with_its_accounts_token(
    server, accounts, tmp_path, monkeypatch, caplog
):
    path = "/api/v1/namespaces/ml/serviceaccounts/clipmill-train/token"
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    code, body = server.request("POST", path, request)
    assert code == 201, body
    (tmp_path / "token").write_text(body["status"]["token"])
    (tmp_path / "ca.crt").write_bytes(server.certificate.read_bytes())
    monkeypatch.setattr(kubernetes, "SERVICE_ACCOUNT", tmp_path)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", server.url.rpartition(":")[2])
    for namespace in ("ml", "clipmill"):  # where it has the right, and where it hasn't
        for variable, value in zip(POD_VARIABLES, ("clip-0", namespace, "u-1"), strict=True):
            monkeypatch.setenv(variable, value)
        events = PodEvents.from_environment()
        events.record("TrainingResumed", "clip: resumed from step 3 of 8")
        events.close()
    _, created = server.request("GET", "/api/v1/events?fieldSelector=involvedObject.name=clip-0")
    (event,) = created["items"]
    assert (event["reason"], event["count"]) == ("TrainingResumed", 1)
    assert event["metadata"]["namespace"] == "ml"
    assert event["involvedObject"]["uid"] == "u-1"
    assert "Events can't be reported now" in caplog.text
    assert "403" in caplog.text


def test_accounts_may_do_what_they_need_and_no_more(server, accounts):
    answers = {
        (account, verb, resource): server.allows(
            f"system:serviceaccount:ml:{account}", verb, resource, "ml", group
        )
        for account, verb, resource, group, _ in RIGHTS
    }
    assert answers == {(a, v, r): allowed for a, v, r, _, allowed in RIGHTS}
    user = "system:serviceaccount:ml:clipmill-submitter"
    assert not server.allows(user, "create", "trainjobs", "kubeflow", "trainer.kubeflow.org")
