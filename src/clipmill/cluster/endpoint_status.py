"""Status of an endpoint: its pods, the reasons why they don't start, and its route."""

from typing import Any, Final

from clipmill.cluster.api import HTTP_ROUTE, INFERENCE_SERVICE, SERVICE, ClusterApi
from clipmill.cluster.constants import HTTP_PORT, TRACK_LABEL
from clipmill.cluster.kserve import CONTAINER, ENDPOINT_LABEL, InferenceServiceConfig
from clipmill.cluster.kserve import model_annotation as annotation_of
from clipmill.cluster.pod_status import containers, is_ended, is_ready, is_started, pod_problem

_MAX_RESTARTS: Final = 3
"""Restarts of a container after which it isn't waited for any longer."""


def live_pods(
    api: ClusterApi, endpoint: InferenceServiceConfig, track: str
) -> list[dict[str, Any]]:
    """Return the pods of a track that run or start; those that are stopping or ended don't count.

    Raises:
        ClusterError: the cluster can't be reached or refuses.
    """
    pods = _running_pods(api, endpoint, track)
    return [pod for pod in pods if not pod["metadata"].get("deletionTimestamp")]


def stopping_pods(
    api: ClusterApi, endpoint: InferenceServiceConfig, track: str
) -> list[dict[str, Any]]:
    """Return the pods of a track that are stopping, which may still answer requests.

    Raises:
        ClusterError: the cluster can't be reached or refuses.
    """
    pods = _running_pods(api, endpoint, track)
    return [pod for pod in pods if pod["metadata"].get("deletionTimestamp")]


def are_serving(pods: list[dict[str, Any]], model_annotation: str) -> bool:
    """Return whether at least one pod is ready, and none has another model's annotation."""
    is_current = all(annotation_of(pod["metadata"]) == model_annotation for pod in pods)
    return is_current and any(is_ready(pod) for pod in pods)


def is_given_up(pods: list[dict[str, Any]], model_annotation: str) -> bool:
    """Return whether a container with this model has restarted too often to be waited for."""
    return any(
        container.get("restartCount", 0) >= _MAX_RESTARTS
        and not container.get("ready")
        and "waiting" in container.get("state", {})
        for pod in pods
        if annotation_of(pod["metadata"]) == model_annotation
        for container in containers(pod)
    )


def describe_failure(
    api: ClusterApi, endpoint: InferenceServiceConfig, pods: list[dict[str, Any]]
) -> str:
    """Return why the pods aren't ready, one reason a pod, or KServe's reason where there is none.

    Raises:
        ClusterError: the cluster can't be reached or refuses.
    """
    reasons = [
        f"pod {pod['metadata']['name']}: {pod_problem(pod) or _waiting_for(pod)}"
        for pod in pods
        if not is_ready(pod)
    ]
    if not reasons:
        current = api.get(INFERENCE_SERVICE, endpoint.namespace, endpoint.name) or {}
        reasons = [
            f"{condition['type']}: {condition.get('message') or condition.get('reason')}"
            for condition in (current.get("status") or {}).get("conditions", [])
            if condition["status"] != "True"
            and (condition.get("message") or condition.get("reason"))
        ]
    return "; ".join(reasons) or "it has no pod, and KServe names no reason"


def logs_command(endpoint: InferenceServiceConfig, track: str) -> str:
    """Return the command that shows the logs of a track's pods."""
    selector = f"{ENDPOINT_LABEL}={endpoint.name},{TRACK_LABEL}={track}"
    return f"kubectl -n {endpoint.namespace} logs -l {selector} -c {CONTAINER} --tail=50"


def predictor_url(api: ClusterApi, endpoint: InferenceServiceConfig, predictor: str) -> str:
    """Return the URL of KServe's Service of one predictor, whatever its share of the traffic."""
    name = f"{endpoint.name}-{predictor}-predictor"
    service = api.get(SERVICE, endpoint.namespace, name) or {}
    # Without an address of its own (serviceClusterIPNone) its port 80 leads nowhere.
    is_headless = service.get("spec", {}).get("clusterIP") == "None"
    return f"http://{name}.{endpoint.namespace}" + (f":{HTTP_PORT}" if is_headless else "")


def accepted_route(api: ClusterApi, endpoint: InferenceServiceConfig) -> dict[str, Any] | None:
    """Return the HTTPRoute that KServe made, where a gateway has accepted it.

    Raises:
        ClusterError: the cluster can't be reached or refuses.
    """
    route = api.get(HTTP_ROUTE, endpoint.namespace, endpoint.name) or {}
    parents = (route.get("status") or {}).get("parents", [])
    conditions = [c for parent in parents for c in parent.get("conditions", [])]
    is_accepted = any(c["type"] == "Accepted" for c in conditions)
    return route if is_accepted and all(c["status"] != "False" for c in conditions) else None


def traffic_percent(route: dict[str, Any], service: str) -> int:
    """Return the share of requests that a route sends to a Service, percent: its rules' least."""
    shares = []
    for rule in route["spec"].get("rules", []):
        backends = {b["name"]: b.get("weight", 1) for b in rule.get("backendRefs", [])}
        total = sum(backends.values())
        shares.append(round(100 * backends.get(service, 0) / total) if total else 0)
    return min(shares, default=0)


def _running_pods(
    api: ClusterApi, endpoint: InferenceServiceConfig, track: str
) -> list[dict[str, Any]]:
    selector = f"{ENDPOINT_LABEL}={endpoint.name},{TRACK_LABEL}={track}"
    return [pod for pod in api.pods(endpoint.namespace, selector) if not is_ended(pod)]


def _waiting_for(pod: dict[str, Any]) -> str:
    return "its readiness probe fails" if is_started(pod) else "its containers haven't started"
