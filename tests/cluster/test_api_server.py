"""A real API server takes what the chart and the code emit, and holds their rights."""

from collections.abc import Iterator

import pytest
import yaml

from helpers.api_server import ApiServer, api_server
from helpers.helm_chart import ENDPOINT, PROFILES, ROOT, STORE, profile, render

EXAMPLES = sorted((ROOT / "manifests" / "examples").glob("*.yaml"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with api_server(tmp_path_factory.mktemp("api")) as started:
        for name in ("ml", "clipmill", "kubeflow"):
            started.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        yield started


@pytest.mark.parametrize("name", PROFILES)
def test_the_api_takes_the_chart(server, name):
    values = profile(name)
    values["serving"] = {**values.get("serving", {}), "endpoints": [ENDPOINT]}
    store = values.get("objectStore", {})
    # A role rules out keys.
    values["objectStore"] = store if store.get("useWorkloadIdentity") else {**store, **STORE}
    problems = [p for r in render(values) for p in server.problems(r, "ml")]
    assert problems == []


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
]


def test_accounts_may_do_what_they_need_and_no_more(server):
    kinds = {"ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"}
    for resource in render(profile("")):
        if resource["kind"] in kinds:
            server.create(resource, "ml")
    answers = {
        (account, verb, resource): server.allows(
            f"system:serviceaccount:ml:{account}", verb, resource, "ml", group
        )
        for account, verb, resource, group, _ in RIGHTS
    }
    assert answers == {(a, v, r): allowed for a, v, r, _, allowed in RIGHTS}
    user = "system:serviceaccount:ml:clipmill-submitter"
    assert not server.allows(user, "create", "trainjobs", "kubeflow", "trainer.kubeflow.org")
