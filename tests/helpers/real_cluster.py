"""The cluster that KUBECONFIG names, for tests with the marker ``cluster``."""

import os
import secrets
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from clipmill.cluster.api import ClusterApi
from clipmill.cluster.doctor.checks import Part, examine
from clipmill.cluster.doctor.snapshot import Snapshot, collect
from clipmill.errors import ClusterError
from helpers.helm_chart import profile, render

IMAGE = os.environ.get("CLIPMILL_TEST_IMAGE", "busybox:1.37")
"""An image with ``sh``, and ``httpd`` or ``python3``, that the nodes have or can pull."""
NAMESPACED = (
    "ConfigMap",
    "ServiceAccount",
    "Role",
    "RoleBinding",
    "ServingRuntime",
    "TrainingRuntime",
)
"""Kinds of the chart that jobs and rights need."""
POOLS = {
    "cpu": {"cpu": "50m", "memoryGibibytes": 2, "sharedMemoryGibibytes": 1},
    "gpu": None,
    "gpu-8x": None,
}


def connect() -> ClusterApi:
    """A client at the cluster; a skipped test where none answers."""
    if not os.environ.get("KUBECONFIG"):
        pytest.skip("no cluster: KUBECONFIG names none")
    try:
        api = ClusterApi()
        api.request("GET", "/version", timeout_seconds=5)
    except ClusterError as error:
        pytest.skip(f"no cluster: {error.what}")
    return api


def as_user(user: str) -> ClusterApi:
    """A client that impersonates a user without groups but those of everyone."""
    from kubernetes import config

    client = config.new_client_from_config()
    client.configuration.retries = False
    client.set_default_header("Impersonate-User", user)
    client.set_default_header("Impersonate-Group", "system:authenticated")
    return ClusterApi(client)


@contextmanager
def namespace(api: ClusterApi, **labels: str) -> Iterator[str]:
    """A namespace of its own, removed in the end."""
    name = f"clipmill-test-{secrets.token_hex(3)}"
    metadata = {"name": name, "labels": labels}
    created(api, "/api/v1/namespaces", {"metadata": metadata})
    try:
        yield name
    finally:
        api.request("DELETE", f"/api/v1/namespaces/{name}")


def install(
    api: ClusterApi, name: str, values: dict[str, Any], kinds: Collection[str] = NAMESPACED
) -> list[dict[str, Any]]:
    """Create the chart's objects of these kinds in a namespace, and return them."""
    paths = Paths(api)
    installed = []
    for resource in render({**profile(""), "pools": POOLS, **values}, namespace=name):
        is_own = resource["metadata"].get("namespace", name) == name
        path = paths.of(resource, name)
        if is_own and resource["kind"] in kinds and path:
            created(api, path, resource)
            installed.append(resource)
    return installed


def created(api: ClusterApi, path: str, resource: dict[str, Any]) -> None:
    """Create a resource; one whose webhook isn't up is left out."""
    status, body = api.request("POST", f"{path}?fieldValidation=Strict", body=resource)
    message = body.get("message", "")
    if "failed calling webhook" not in message:
        assert status == 201, f"{resource.get('kind')}: {status}: {message}"


class Paths:
    """Paths of kinds, by the API's discovery."""

    def __init__(self, api: ClusterApi) -> None:
        self._api = api
        self._kinds: dict[str, dict[str, tuple[str, bool]]] = {}

    def of(self, resource: dict[str, Any], namespace: str) -> str:
        """Path at which the resource's kind is created; empty where the API lacks the kind."""
        version = resource["apiVersion"]
        base = f"/apis/{version}" if "/" in version else f"/api/{version}"
        if version not in self._kinds:
            status, body = self._api.request("GET", base)
            entries = body["resources"] if status == 200 else []
            self._kinds[version] = {
                e["kind"]: (e["name"], e["namespaced"]) for e in entries if "/" not in e["name"]
            }
        plural, namespaced = self._kinds[version].get(resource["kind"], ("", False))
        if not plural:
            return ""
        return f"{base}/namespaces/{namespace}/{plural}" if namespaced else f"{base}/{plural}"


def parts(api: ClusterApi, namespace: str = "default") -> tuple[Snapshot, dict[str, Part]]:
    """Return doctor's parts of the cluster by name."""
    snapshot = collect(api, namespace)
    return snapshot, {part.name: part for part in examine(snapshot)}


def require_part(api: ClusterApi, name: str) -> None:
    """Skip the test where a part isn't installed or its controller doesn't run."""
    part = parts(api)[1][name]
    faults = [
        p.message
        for p in part.problems
        if "not installed" in p.message or "no available pod" in p.message or "runs" in p.message
    ]
    if faults:
        pytest.skip(f"{name}: {faults[0]}")
