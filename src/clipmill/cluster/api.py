"""The part of the Kubernetes API that clipmill uses, with errors that say what to do."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clipmill.errors import ClusterError

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

_TIMEOUT_SECONDS = 30
_MERGE_PATCH = "application/merge-patch+json"
_FIELD_MANAGER = "clipmill"
_WEBHOOK = re.compile(r'admission webhook "([^"]+)" denied the request: (.*)', re.DOTALL)


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """A kind of resource."""

    group: str
    """API group; empty for Kubernetes' core."""
    version: str
    """Version of the group."""
    plural: str
    """Its name in the API's paths."""


TRAIN_JOB = Kind(group="trainer.kubeflow.org", version="v1alpha1", plural="trainjobs")
INFERENCE_SERVICE = Kind(group="serving.kserve.io", version="v1beta1", plural="inferenceservices")
HTTP_SCALED_OBJECT = Kind(group="http.keda.sh", version="v1alpha1", plural="httpscaledobjects")
SERVING_RUNTIME = Kind(group="serving.kserve.io", version="v1alpha1", plural="servingruntimes")
HTTP_ROUTE = Kind(group="gateway.networking.k8s.io", version="v1", plural="httproutes")
SERVICE = Kind(group="", version="v1", plural="services")
WORKLOAD = Kind(group="kueue.x-k8s.io", version="v1beta2", plural="workloads")
WORKFLOW = Kind(group="argoproj.io", version="v1alpha1", plural="workflows")


class ClusterApi:
    """A cluster, reached with kubectl's configuration, or from inside it."""

    def __init__(self, client: "ApiClient | None" = None) -> None:
        self._client = client if client is not None else _client()

    def get(self, kind: Kind, namespace: str, name: str) -> dict[str, Any] | None:
        """Return the resource, or None where there is none."""
        return self._call("GET", _path(kind, namespace, name), missing_is_none=True)

    def find(self, kind: Kind, namespace: str, selector: str = "") -> list[dict[str, Any]]:
        """Return the resources of a namespace with the selected labels."""
        query = [("labelSelector", selector)] if selector else []
        body = self._call("GET", _path(kind, namespace), query=query)
        return list((body or {}).get("items", []))

    def create(self, kind: Kind, namespace: str, resource: dict[str, Any]) -> dict[str, Any]:
        """Create the resource; unknown fields are an error."""
        query = [("fieldValidation", "Strict"), ("fieldManager", _FIELD_MANAGER)]
        return self._call("POST", _path(kind, namespace), body=resource, query=query) or {}

    def patch(self, kind: Kind, namespace: str, name: str, patch: dict[str, Any]) -> dict[str, Any]:
        """Merge fields into the resource (RFC 7396); lists are replaced."""
        query = [("fieldValidation", "Strict"), ("fieldManager", _FIELD_MANAGER)]
        path = _path(kind, namespace, name)
        return self._call("PATCH", path, body=patch, query=query, content=_MERGE_PATCH) or {}

    def delete(self, kind: Kind, namespace: str, name: str) -> None:
        """Remove the resource, and what belongs to it in the background; nothing where it isn't.

        In the foreground an owner outlives its parts, and its controller makes them again.
        """
        query = [("propagationPolicy", "Background")]
        self._call("DELETE", _path(kind, namespace, name), query=query, missing_is_none=True)

    def config_map(self, namespace: str, name: str) -> dict[str, Any] | None:
        """Return the ConfigMap, or None where there is none."""
        path = f"/api/v1/namespaces/{namespace}/configmaps/{name}"
        return self._call("GET", path, missing_is_none=True)

    def has_secret(self, namespace: str, name: str) -> bool | None:
        """Return whether the secret exists; None where this account may not read secrets."""
        path = f"/api/v1/namespaces/{namespace}/secrets/{name}"
        try:
            return self._call("GET", path, missing_is_none=True) is not None
        except _ForbiddenError:
            return None

    def pods(self, namespace: str, selector: str) -> list[dict[str, Any]]:
        """Return the pods with the selected labels."""
        path = f"/api/v1/namespaces/{namespace}/pods"
        body = self._call("GET", path, query=[("labelSelector", selector)])
        return list((body or {}).get("items", []))

    def request(
        self,
        method: str,
        path: str,
        *,
        body: dict[str, Any] | None = None,
        accept: str = "application/json",
        timeout_seconds: float = _TIMEOUT_SECONDS,
    ) -> tuple[int, dict[str, Any]]:
        """Return status and body of an answer, whatever its status.

        Raises:
            ClusterError: the cluster can't be reached.
        """
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        try:
            response = self._client.call_api(
                path,
                method,
                header_params={"Accept": accept, "Content-Type": "application/json"},
                body=body,
                auth_settings=["BearerToken"],
                _preload_content=False,
                _return_http_data_only=True,
                _request_timeout=timeout_seconds,
            )
            return response.status, json.loads(response.data)
        except ApiException as error:
            return error.status, {"message": _message(error.body)}
        except (HTTPError, OSError) as error:
            raise self._unreachable_error(error) from error

    def warnings(self, namespace: str, name: str) -> list[dict[str, Any]]:
        """Return the warnings about a resource of that name; none without the right to."""
        path = f"/api/v1/namespaces/{namespace}/events"
        query = [("fieldSelector", f"involvedObject.name={name},type=Warning")]
        try:
            return list((self._call("GET", path, query=query) or {}).get("items", []))
        except _ForbiddenError:
            return []

    def log(
        self, namespace: str, pod: str, container: str, *, follow: bool = False
    ) -> Iterator[str]:
        """Yield a container's lines, without their ends; with ``follow``, until it ends."""
        path = f"/api/v1/namespaces/{namespace}/pods/{pod}/log"
        query = [("container", container), ("follow", str(follow).lower())]
        response = self._raw("GET", path, query=query, timeout=None if follow else _TIMEOUT_SECONDS)
        rest = ""
        for chunk in response.stream(decode_content=True):
            *lines, rest = (rest + chunk.decode("utf-8", "replace")).split("\n")
            yield from lines
        if rest:
            yield rest

    def _call(
        self,
        method: str,
        path: str,
        *,
        query: list[tuple[str, str]] | None = None,
        body: dict[str, Any] | None = None,
        content: str = "application/json",
        missing_is_none: bool = False,
    ) -> dict[str, Any] | None:
        try:
            response = self._raw(
                method,
                path,
                query=query or [],
                body=body,
                content=content,
                timeout=_TIMEOUT_SECONDS,
            )
        except _NotFoundError:
            if missing_is_none:
                return None
            raise
        value: dict[str, Any] = json.loads(response.data)
        return value

    def _raw(
        self,
        method: str,
        path: str,
        *,
        query: list[tuple[str, str]],
        timeout: float | None,
        body: dict[str, Any] | None = None,
        content: str = "application/json",
    ) -> Any:
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        try:
            return self._client.call_api(
                path,
                method,
                query_params=query,
                header_params={"Accept": "application/json, */*", "Content-Type": content},
                body=body,
                auth_settings=["BearerToken"],
                _preload_content=False,
                _return_http_data_only=True,
                _request_timeout=timeout,
            )
        except ApiException as error:
            raise _api_error(method, path, error.status, error.body) from error
        except (HTTPError, OSError) as error:
            raise self._unreachable_error(error) from error

    def _unreachable_error(self, error: Exception) -> ClusterError:
        return ClusterError(
            f"the cluster at {self._client.configuration.host} can't be reached: {error}",
            expected="a Kubernetes API that answers",
            action="check `kubectl cluster-info`, and the context that KUBECONFIG has current",
        )


class _NotFoundError(ClusterError):
    """The API answered 404."""


class _ForbiddenError(ClusterError):
    """The API answered 403."""


def _path(kind: Kind, namespace: str, name: str = "") -> str:
    root = f"/apis/{kind.group}" if kind.group else "/api"
    base = f"{root}/{kind.version}/namespaces/{namespace}/{kind.plural}"
    return f"{base}/{name}" if name else base


def _client() -> "ApiClient":
    from kubernetes import client, config

    configuration = client.Configuration()
    try:
        config.load_incluster_config(client_configuration=configuration)
    except config.ConfigException:
        try:
            config.load_kube_config(client_configuration=configuration)
        except config.ConfigException as error:
            raise ClusterError(
                f"no cluster is configured: {error}",
                expected="a service account inside a cluster, or a kubeconfig",
                action="log in to the cluster, or set KUBECONFIG",
            ) from error
    # One try: urllib3's own retries would hide for a minute that no server answers.
    configuration.retries = False
    return client.ApiClient(configuration)


def _forbidden(message: str) -> tuple[str, str]:
    """Tell apart what answers 403: an admission webhook, a policy of the namespace, RBAC."""
    if webhook := _WEBHOOK.search(message):
        name, reason = webhook.groups()
        return f"a resource that the webhook {name} accepts", f"change what it names: {reason}"
    if re.search(r"violates PodSecurity|exceeded quota|(min|max)imum .* usage", message):
        return "a resource within the namespace's policies", "change what the message names"
    return "the right to do that", "ask for it, or use one of the chart's service accounts"


def _message(body: str | bytes | None) -> str:
    """Return the message of an error's body, or the beginning of another body."""
    try:
        return str(json.loads(body or "")["message"])
    except (ValueError, KeyError, TypeError):
        return str(body or "")[:300]


def _api_error(method: str, path: str, status: int, body: str | bytes | None) -> ClusterError:
    message = _message(body)
    expected, action = {
        401: ("credentials that the cluster knows", "log in to the cluster again"),
        403: _forbidden(message),
        404: ("a resource of that name, and its CRD", "check the name, and what is installed"),
        409: ("a name that isn't taken", "delete the old one, or choose another name"),
    }.get(status, ("an answer of 2xx", "fix what the message names"))
    kind = {404: _NotFoundError, 403: _ForbiddenError}.get(status, ClusterError)
    return kind(
        f"the cluster answered {status} to {method} {path}: {message}",
        expected=expected,
        action=action,
    )
