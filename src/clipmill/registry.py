"""Registries of promoted models: MLflow's, and Kubeflow's (Kubeflow Hub, its Model Registry).

``CLIPMILL_REGISTRY``, or the option ``--registry``, names Kubeflow's as ``kubeflow:URL``. Without
it the registry is that of the tracker, where that is MLflow. A task's models are versions of
``clipmill-TASK``; each version is known by its model's digest.

Kubeflow's is spoken to by its REST API (``v1alpha3``): its Python client patches event loops, and
needs aiohttp for a handful of requests.
"""

import json
import os
import urllib.error
import urllib.parse
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from clipmill.config import flatten
from clipmill.errors import ConfigError, NotFoundError, ServerError
from clipmill.lineage import read_artifact
from clipmill.storage import absolute_uri
from clipmill.tracking import TRACKING_VARIABLE, mlflow_client

REGISTRY_VARIABLE: Final = "CLIPMILL_REGISTRY"
"""Environment variable that names Kubeflow's registry."""
TOKEN_VARIABLE: Final = "CLIPMILL_REGISTRY_TOKEN"  # noqa: S105  # a variable's name
"""Environment variable with a bearer token for it, where it wants one."""
REGISTRY_LABELS: Final = (
    "modelregistry.kubeflow.org/registered-model-id",
    "modelregistry.kubeflow.org/model-version-id",
    "clipmill.io/registered-model",
    "clipmill.io/model-version",
)
"""Labels of an InferenceService that name its version: Kubeflow's own, and any registry's."""
_API: Final = "/api/model_registry/v1alpha3"
_TIMEOUT_SECONDS: Final = 10.0
_PAGE: Final = 100
_MIN_DIGEST: Final = 8
_NOT_FOUND: Final = 404

Fields = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class RegisteredVersion:
    """A version of a registered model."""

    model: str
    """Name of the registered model."""
    version: str
    """Its number (MLflow) or id (Kubeflow)."""
    digest: str
    """Digest of its model."""
    uri: str
    """URI of its checkpoint."""
    evaluation: str
    """URI of the evaluation for which it was promoted."""
    model_id: str = ""
    """Id of the registered model in Kubeflow's registry."""

    @property
    def labels(self) -> dict[str, str]:
        """Labels of the InferenceService that serves it, of :data:`REGISTRY_LABELS`."""
        ids = dict(zip(REGISTRY_LABELS, (self.model_id, self.version), strict=False))
        return {
            **(ids if self.model_id else {}),
            "clipmill.io/registered-model": self.model,
            "clipmill.io/model-version": self.version,
        }


class ModelRegistry(ABC):
    """Versions of registered models."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Its name, with its address, for messages."""

    @abstractmethod
    def versions(self, model: str) -> Sequence[RegisteredVersion]:
        """Return the versions of a registered model, the newest first; none if it isn't there.

        Raises:
            ServerError: the registry doesn't answer, or refuses.
        """

    def find(self, model: str, version: str) -> RegisteredVersion:
        """Return a version by its number, or by its digest or a part of it that tells.

        Raises:
            NotFoundError: there is no such version, or several.
            ServerError: the registry doesn't answer, or refuses.
        """
        known = self.versions(model)
        matches = [v for v in known if v.version == version]
        if not matches and len(version) >= _MIN_DIGEST:
            matches = [v for v in known if v.digest.startswith(version)]
        if len(matches) != 1:
            listed = ", ".join(f"{v.version} ({v.digest[:12]})" for v in known[:10]) or "none"
            raise NotFoundError(
                f"{model} has {'several versions' if matches else 'no version'} {version} in "
                f"{self.name}",
                expected=f"one of: {listed}",
                action=f"give its number, or {_MIN_DIGEST} or more characters of its digest",
            )
        return matches[0]


class MlflowRegistry(ModelRegistry):
    """MLflow's registry, in which promotions are registered by the tracker."""

    def __init__(self, address: str) -> None:
        self._address = address

    @property
    def name(self) -> str:
        """Its name and address."""
        return f"MLflow's registry ({self._address or '$MLFLOW_TRACKING_URI'})"

    def versions(self, model: str) -> list[RegisteredVersion]:
        """Return the versions of a registered model, the newest first."""
        try:
            stored = mlflow_client(self._address).search_model_versions(f"name = '{model}'")
        except Exception as error:  # MLflow raises whatever its store does
            raise _unavailable_error(self.name, error) from error
        stored = sorted(stored, key=lambda version: -int(version.version))
        return [
            RegisteredVersion(
                model=model,
                version=str(version.version),
                digest=version.tags.get("clipmill.digest", ""),
                uri=version.tags.get("clipmill.uri", version.source),
                evaluation=version.tags.get("clipmill.evaluation", ""),
            )
            for version in stored
        ]


class KubeflowRegistry(ModelRegistry):
    """Kubeflow's registry by its REST API."""

    def __init__(self, url: str, token: str = "") -> None:
        self._url = url.rstrip("/")
        self._token = token

    @property
    def name(self) -> str:
        """Its name and address."""
        return f"Kubeflow's registry ({self._url})"

    def versions(self, model: str) -> list[RegisteredVersion]:
        """Return the versions of a registered model, the newest first."""
        registered = self._find("registered_model", name=model)
        if registered is None:
            return []
        query: dict[str, str] = {"pageSize": str(_PAGE), "orderBy": "ID", "sortOrder": "DESC"}
        versions: list[RegisteredVersion] = []
        while True:
            path = f"registered_models/{registered['id']}/versions"
            page = self._call("GET", f"{path}?{urllib.parse.urlencode(query)}")
            versions += [_registered(registered, item) for item in page["items"]]
            if not page.get("nextPageToken"):
                return versions
            query["nextPageToken"] = page["nextPageToken"]

    def register(self, task: str, model: Fields, evaluation: Fields) -> RegisteredVersion:
        """Register an evaluated model of a task as the promoted version; return it.

        ``model`` and ``evaluation`` are their artifacts, with ``uri``. What is there already stays.

        Raises:
            ServerError: the registry doesn't answer, or refuses.
        """
        name, version_name = f"clipmill-{task}", str(model["digest"])[:12]
        registered = self._find("registered_model", name=name) or self._call(
            "POST", "registered_models", {"name": name, "description": f"clipmill's {task} models"}
        )
        identity = {"name": version_name, "parentResourceId": registered["id"]}
        properties = {
            "digest": model["digest"],
            "uri": model["uri"],
            "task": task,
            "evaluation": evaluation["uri"],
            **{f"metric.{key}": value for key, value in flatten(evaluation["metrics"]).items()},
            **_parents(model),
        }
        version = self._find("model_version", **identity) or self._call(
            "POST",
            f"registered_models/{registered['id']}/versions",
            {
                "name": version_name,
                "registeredModelId": registered["id"],
                "customProperties": _custom_properties(properties),
            },
        )
        # Apart from the version: a registration may have ended between the two.
        artifacts = self._call("GET", f"model_versions/{version['id']}/artifacts")["items"]
        if not artifacts:
            artifact = {
                "artifactType": "model-artifact",
                "name": version_name,
                "uri": model["uri"],
                "modelFormatName": "clipmill",
                "modelFormatVersion": "1",
            }
            self._call("POST", f"model_versions/{version['id']}/artifacts", artifact)
        promoted = _custom_properties({"promoted": version["id"], "promoted_version": version_name})
        kept = {**registered.get("customProperties", {}), **promoted}
        if kept != registered.get("customProperties"):
            path = f"registered_models/{registered['id']}"
            self._call("PATCH", path, {"customProperties": kept})
        return _registered(registered, version)

    def _find(self, kind: str, **query: str) -> Fields | None:
        """Return the resource of these properties; None where there is none."""
        try:
            return self._call("GET", f"{kind}?{urllib.parse.urlencode(query)}")
        except _MissingError:
            return None

    def _call(self, method: str, path: str, body: Fields | None = None) -> Fields:
        headers = {"Content-Type": "application/json"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(  # noqa: S310  # http or https, as parsed
            f"{self._url}{_API}/{path}", data, headers, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as response:  # noqa: S310
                value: Fields = json.load(response)
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace").strip()[:300]
            kind = _MissingError if error.code == _NOT_FOUND else ServerError
            raise _unavailable_error(self.name, f"{error.code} {text}", kind) from error
        except (OSError, ValueError) as error:
            raise _unavailable_error(self.name, error) from error
        return value


class _MissingError(ServerError):
    """The registry has no such resource."""


def check_registry() -> None:
    """Raise ConfigError if the environment names a registry that can't be."""
    _kubeflow(os.environ)


def open_registry() -> ModelRegistry | None:
    """Return the registry that the environment names; None for none.

    Raises:
        ConfigError: it names one that can't be.
    """
    registry = _kubeflow(os.environ)
    if registry is not None:
        return registry
    kind, _, address = os.environ.get(TRACKING_VARIABLE, "").partition(":")
    return MlflowRegistry(address) if kind == "mlflow" else None


def is_kubeflow() -> bool:
    """Return whether the environment names Kubeflow's registry."""
    return bool(os.environ.get(REGISTRY_VARIABLE))


def register_promotion(promotion: Mapping[str, Any]) -> None:
    """Register a promotion's model in Kubeflow's registry.

    Raises:
        ServerError: the registry doesn't answer, or refuses; the promotion is written already.
    """
    registry = _kubeflow(os.environ)
    if registry is None:
        return
    parents = {parent["role"]: parent["uri"] for parent in promotion["parents"]}
    model, evaluation = (
        read_artifact(parents[role]) | {"uri": absolute_uri(parents[role])}
        for role in ("model", "evaluation")
    )
    registry.register(str(promotion["gate"]["task"]), model, evaluation)


def _kubeflow(environment: Mapping[str, str]) -> KubeflowRegistry | None:
    text = environment.get(REGISTRY_VARIABLE, "")
    if not text:
        return None
    kind, _, url = text.partition(":")
    parts = urllib.parse.urlsplit(url)
    if kind != "kubeflow" or parts.scheme not in ("http", "https") or not parts.netloc:
        raise ConfigError(
            f"the registry was {text!r}",
            expected="kubeflow:URL, such as kubeflow:http://model-registry-service.kubeflow:8080; "
            "MLflow's is used where --tracking is mlflow:URI",
            action=f"correct --registry, or {REGISTRY_VARIABLE}",
        )
    return KubeflowRegistry(url, environment.get(TOKEN_VARIABLE, ""))


def _registered(model: Fields, version: Fields) -> RegisteredVersion:
    properties = version.get("customProperties", {})
    texts = {key: str(value.get("string_value", "")) for key, value in properties.items()}
    return RegisteredVersion(
        model=model["name"],
        version=str(version["id"]),
        digest=texts.get("digest", ""),
        uri=texts.get("uri", ""),
        evaluation=texts.get("evaluation", ""),
        model_id=str(model["id"]),
    )


def _parents(model: Fields) -> dict[str, str]:
    parents = [(p["role"], f"{p['uri']} {p['digest']}") for p in model.get("parents", ())]
    roles = [role for role, _ in parents]
    return {
        f"parent.{role}{roles[:index].count(role) or ''}": text
        for index, (role, text) in enumerate(parents)
    }


def _custom_properties(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return values as the registry's: numbers as doubles, all others as texts."""
    return {
        key: {"metadataType": "MetadataDoubleValue", "double_value": float(value)}
        if isinstance(value, int | float)
        else {"metadataType": "MetadataStringValue", "string_value": str(value)}
        for key, value in values.items()
    }


def _unavailable_error(
    name: str, error: object, kind: type[ServerError] = ServerError
) -> ServerError:
    return kind(
        f"{name} can't be used: {error}",
        expected="a registry that answers",
        action="check its address and token, and run the same command again: what is there stays",
    )
