"""State of a cluster as its API describes it, read in two rounds of parallel requests.

An answer keeps its HTTP status, so that a part that isn't installed (404) differs from one that the
user may not read (403).
"""

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Any
from urllib.parse import quote, urlencode

from clipmill.cluster.api import ClusterApi
from clipmill.cluster.constants import STORE_SECRET
from clipmill.cluster.doctor.values import EnabledParts, installed_parts
from clipmill.cluster.pools import POOLS_CONFIG_MAP
from clipmill.errors import ClusterError

_NUM_THREADS = 32
"""As many as a round has requests, so that its duration is that of the slowest one."""
_TIMEOUT_SECONDS = 3.0
"""Limit of one request: the first one and two rounds stay within ten seconds."""
MAX_NODES = 50
"""Nodes that are read, of all and of each pool."""
_DISCOVERY = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
_METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
_METADATA_LIST = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"

DEPLOYMENTS = (
    "ml-pipeline",
    "kubeflow-pipelines-profile-controller",
    "workflow-controller",
    "kserve-controller-manager",
    "kubeflow-trainer-controller-manager",
    "jobset-controller-manager",
    "kueue-controller-manager",
    "keda-operator",
    "keda-add-ons-http-interceptor",
    "cert-manager",
    "metrics-server",
)
"""Deployments of the components' controllers, read in all namespaces by name."""
WORKFLOW_ACCOUNT = "clipmill-data"
"""Service account of data workflows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """Answer to one request."""

    status: int
    """HTTP status."""
    body: Mapping[str, Any]
    """Object, list, or ``{"message": ...}`` of an error."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """Answers by the name of the request."""

    namespace: str
    """Namespace of the installation."""
    parts: EnabledParts | None
    """Parts that the values turn on; None without an installation."""
    answers: Mapping[str, Answer]
    """Answers of the API."""

    def body(self, name: str) -> Mapping[str, Any] | None:
        """Return the object; None if it doesn't exist or can't be read."""
        answer = self.answers.get(name)
        return answer.body if answer is not None and 200 <= answer.status < 300 else None

    def items(self, name: str) -> list[Mapping[str, Any]]:
        """Return the objects of a list; none if it can't be read."""
        return list((self.body(name) or {}).get("items") or [])

    def is_forbidden(self, name: str) -> bool:
        """Return whether the user may not read it."""
        answer = self.answers.get(name)
        return answer is not None and answer.status in (401, 403)

    def failure(self, name: str) -> str:
        """Return the message of an answer that is neither a result, 403 nor 404; else empty."""
        answer = self.answers.get(name)
        if answer is None or answer.status < 300 or answer.status in (401, 403, 404):
            return ""
        return f"HTTP {answer.status}: {answer.body.get('message', '')}"

    def has(self, resource: str) -> bool:
        """Return whether the API serves a resource, such as ``workflows.argoproj.io``."""
        plural, _, group = resource.partition(".")
        return any(
            served["resource"] == plural
            for item in self.items("discovery")
            if item["metadata"]["name"] == group
            for version in item["versions"]
            for served in version.get("resources", [])
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Request:
    path: str
    accept: str = "application/json"
    body: dict[str, Any] | None = None


def collect(api: ClusterApi, namespace: str, parts: EnabledParts | None = None) -> Snapshot:
    """Read everything that the checks need.

    ``parts`` are those of the installation in the namespace, unless they are given.

    Raises:
        ClusterError: the cluster can't be reached.
    """
    with ThreadPoolExecutor(_NUM_THREADS) as executor:
        # Alone first: where the API doesn't answer, this is one error rather than forty.
        version = _send(api, _Request(path="/version"))
        first = _send_all(executor, api, _first_round(namespace))
        config_map = first["installation"]
        if parts is None and config_map.status == HTTPStatus.OK:
            parts = installed_parts(config_map.body)
        snapshot = Snapshot(namespace=namespace, parts=parts, answers={"version": version, **first})
        second = _send_all(executor, api, _second_round(snapshot))
    return replace(snapshot, answers={**snapshot.answers, **second})


def _send_all(
    executor: ThreadPoolExecutor, api: ClusterApi, requests: Mapping[str, _Request]
) -> dict[str, Answer]:
    def answer(request: _Request) -> Answer:
        try:
            return _send(api, request)
        except ClusterError as error:
            # One that takes too long: the others may tell enough.
            return Answer(status=HTTPStatus.GATEWAY_TIMEOUT, body={"message": error.what})

    answers = executor.map(answer, requests.values())
    return dict(zip(requests, answers, strict=True))


def _send(api: ClusterApi, request: _Request) -> Answer:
    status, body = api.request(
        "GET" if request.body is None else "POST",
        request.path,
        body=request.body,
        accept=request.accept,
        timeout_seconds=_TIMEOUT_SECONDS,
    )
    return Answer(status=status, body=body)


def _first_round(namespace: str) -> dict[str, _Request]:
    own = {"labelSelector": "app.kubernetes.io/name=clipmill"}
    monitoring = "/apis/monitoring.coreos.com/v1"
    lists = {
        "storageclasses": "/apis/storage.k8s.io/v1/storageclasses",
        "gatewayclasses": "/apis/gateway.networking.k8s.io/v1/gatewayclasses",
        "gateways": "/apis/gateway.networking.k8s.io/v1/gateways",
        "prometheuses": f"{monitoring}/prometheuses",
        "podmonitors": _query(f"{monitoring}/namespaces/{namespace}/podmonitors", own),
        "servicemonitors": _query(f"{monitoring}/namespaces/{namespace}/servicemonitors", own),
        "prometheusrules": _query(f"{monitoring}/namespaces/{namespace}/prometheusrules", own),
        "localqueues": _query(
            f"/apis/kueue.x-k8s.io/v1beta2/namespaces/{namespace}/localqueues", own
        ),
        "deployment/kube-state-metrics": _query(
            "/apis/apps/v1/deployments",
            {"labelSelector": "app.kubernetes.io/name=kube-state-metrics"},
        ),
        "namespace": f"/api/v1/namespaces/{namespace}",
        "installation": f"/api/v1/namespaces/{namespace}/configmaps/{POOLS_CONFIG_MAP}",
    }
    for name in DEPLOYMENTS:
        lists[f"deployment/{name}"] = _query(
            "/apis/apps/v1/deployments", {"fieldSelector": f"metadata.name={name}"}
        )
    requests = {name: _Request(path=path) for name, path in lists.items()}
    requests["discovery"] = _Request(path="/apis", accept=_DISCOVERY)
    requests["crds"] = _Request(
        path="/apis/apiextensions.k8s.io/v1/customresourcedefinitions", accept=_METADATA_LIST
    )
    requests["nodes"] = _Request(path=_query("/api/v1/nodes", {"limit": str(MAX_NODES)}))
    return requests


def _second_round(snapshot: Snapshot) -> dict[str, _Request]:
    """Return the requests that depend on the first answers: settings, nodes, pipelines' rights."""
    requests = {}
    for deployment, config_map in (
        ("kserve-controller-manager", "inferenceservice-config"),
        ("kueue-controller-manager", "kueue-manager-config"),
    ):
        for namespace in namespaces_of(snapshot.items(f"deployment/{deployment}")):
            requests[f"configmap/{namespace}/{config_map}"] = _Request(
                path=f"/api/v1/namespaces/{namespace}/configmaps/{config_map}"
            )
    parts = snapshot.parts
    if parts is None:
        return requests
    for namespace in {snapshot.namespace, *([parts.task_namespace] if parts.pipelines else [])}:
        requests[f"secret/{namespace}"] = _Request(
            path=f"/api/v1/namespaces/{namespace}/secrets/{STORE_SECRET}", accept=_METADATA
        )
    requests["access/workflow"] = _access(
        snapshot.namespace,
        f"system:serviceaccount:{snapshot.namespace}:{WORKFLOW_ACCOUNT}",
        ("argoproj.io", "workflowtaskresults"),
    )
    requests["access/tasks"] = _access(
        snapshot.namespace, parts.task_user, ("serving.kserve.io", "inferenceservices")
    )
    for name, pool in parts.pools.items():
        selector = ",".join(f"{k}={v}" for k, v in sorted(pool.node_selector.items()))
        query = {"labelSelector": selector, "limit": str(MAX_NODES)}
        requests[f"nodes/{name}"] = _Request(path=_query("/api/v1/nodes", query))
    return requests


def namespaces_of(resources: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the namespaces of objects, without duplicates."""
    return sorted({resource["metadata"]["namespace"] for resource in resources})


def _query(path: str, parameters: Mapping[str, str]) -> str:
    return f"{path}?{urlencode(parameters, quote_via=quote)}"


def _access(namespace: str, user: str, resource: tuple[str, str]) -> _Request:
    """Return the question whether a user may create a resource in a namespace."""
    group, plural = resource
    return _Request(
        path=f"/apis/authorization.k8s.io/v1/namespaces/{namespace}/localsubjectaccessreviews",
        body={
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "LocalSubjectAccessReview",
            "metadata": {"namespace": namespace},
            "spec": {
                "user": user,
                "groups": ["system:serviceaccounts", "system:authenticated"],
                "resourceAttributes": {
                    "namespace": namespace,
                    "verb": "create",
                    "group": group,
                    "resource": plural,
                },
            },
        },
    )
