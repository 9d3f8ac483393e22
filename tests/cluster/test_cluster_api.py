"""Our side of the Kubernetes API, against a server that speaks it over HTTP."""

import socket

import pytest

from clipmill.cluster.api import TRAIN_JOB, ClusterApi
from clipmill.errors import ClusterError
from helpers.kubernetes_api import client_at


def job(name, **labels):
    return {"metadata": {"name": name, "labels": labels}, "spec": {}}


def test_resources_come_and_go(cluster):
    api = cluster.api()
    assert api.get(TRAIN_JOB, "ml", "a") is None
    api.create(TRAIN_JOB, "ml", job("a", team="x"))
    api.create(TRAIN_JOB, "ml", job("b", team="y"))
    assert [r["metadata"]["name"] for r in api.find(TRAIN_JOB, "ml", "team=y")] == ["b"]
    api.patch(TRAIN_JOB, "ml", "a", {"spec": {"suspend": True}, "metadata": {"labels": None}})
    found = api.get(TRAIN_JOB, "ml", "a")
    assert found == {"metadata": {"name": "a"}, "spec": {"suspend": True}}
    api.delete(TRAIN_JOB, "ml", "a")
    api.delete(TRAIN_JOB, "ml", "a")
    assert api.get(TRAIN_JOB, "ml", "a") is None


def test_what_the_api_says_is_passed_on(cluster):
    api = cluster.api()
    api.create(TRAIN_JOB, "ml", job("a"))
    with pytest.raises(ClusterError, match=r"409 to POST .*: a already exists"):
        api.create(TRAIN_JOB, "ml", job("a"))
    with pytest.raises(ClusterError, match="404 to PATCH"):
        api.patch(TRAIN_JOB, "ml", "b", {})
    cluster.forbidden = {"POST"}
    with pytest.raises(ClusterError, match=r"cannot do that(.|\n)*ask for it, or use one"):
        api.create(TRAIN_JOB, "ml", job("c"))


@pytest.mark.parametrize(
    ("message", "expected", "action"),
    [
        (
            'admission webhook "v.kserve" denied the request: minReplicas (2) must not exceed 1',
            "a resource that the webhook v.kserve accepts",
            "minReplicas (2) must not exceed 1",
        ),
        (
            'pods "x" is forbidden: violates PodSecurity "restricted:latest": runAsNonRoot',
            "the namespace's policies",
            "change what the message names",
        ),
        (
            'jobs "x" is forbidden: exceeded quota: team, requested: cpu=8, limited: cpu=4',
            "the namespace's policies",
            "change what the message names",
        ),
        (
            'trainjobs "x" is forbidden: User "system:serviceaccount:ml:a" cannot create resource',
            "the right to do that",
            "service accounts",
        ),
    ],
)
def test_a_403_of_a_webhook_a_policy_and_rbac_are_told_apart(cluster, message, expected, action):
    cluster.interfere = lambda method, path: (403, message)
    with pytest.raises(ClusterError) as caught:
        cluster.api().create(TRAIN_JOB, "ml", job("c"))
    assert message in caught.value.what
    assert expected in caught.value.expected
    assert action in caught.value.action


def test_nobody_there_is_said_with_the_address():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    api = ClusterApi(client_at(f"http://127.0.0.1:{port}"))
    with pytest.raises(ClusterError, match=f"http://127.0.0.1:{port} can't be reached"):
        api.get(TRAIN_JOB, "ml", "a")


def test_no_kubeconfig_is_said(monkeypatch, tmp_path):
    from kubernetes.config import kube_config

    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"))
    with pytest.raises(ClusterError, match="no cluster is configured"):
        ClusterApi()
