"""Objects of an endpoint: the InferenceService of KServe 0.21 (Standard mode) and its Service.

The chart writes the same objects (``templates/endpoints.yaml``). A rollout changes the model only:
one annotation, which describes it, and one variable, by which the server reads it from the store.
"""

import copy
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Self

from clipmill.cluster.api import SERVING_RUNTIME, ClusterApi
from clipmill.cluster.constants import DOMAIN, GRPC_PORT, HTTP_PORT, POD_SECURITY, TRACK_LABEL
from clipmill.config import Config
from clipmill.errors import ConfigError

RUNTIMES: Final = {"cpu": "clipmill-cpu", "gpu": "clipmill-gpu"}
"""ServingRuntimes that the chart makes."""
CONTAINER: Final = "kserve-container"
"""Name of the server's container, by which KServe merges it with the runtime's."""
MODEL_FORMAT: Final = "clipmill"
STABLE: Final = "stable"
"""Name of the stable predictor and value of its track label. It never changes: KServe deletes the
Deployment of a predictor that is renamed before the new one is ready."""
CANARY: Final = "canary"

ENDPOINT_LABEL: Final = f"{DOMAIN}/endpoint"
MODEL_ANNOTATION: Final = f"{DOMAIN}/model"
"""JSON of :class:`PromotedModel` on a predictor, which KServe copies to its pods."""
PREDICTOR_ANNOTATION: Final = f"{DOMAIN}/predictor"
"""JSON of a predictor's settings on a ServingRuntime, with ``ENDPOINT`` for the endpoint's name."""
MODEL_VARIABLE: Final = "MODEL_URI"
"""Variable of the server's container, which the runtime puts into its arguments."""
IMAGE_SCHEMES: Final = ("oci://", "oci+native://")
"""Schemes of URIs of container images, which KServe mounts into the server's container."""
MODEL_MOUNT: Final = "/mnt/models"
"""Folder of the container where the files of such an image are."""
AUTOSCALER_ANNOTATION: Final = "serving.kserve.io/autoscalerClass"

PREDICTOR_SETTINGS: Final[Mapping[str, Any]] = {
    "serviceAccountName": "clipmill-serve",
    "automountServiceAccountToken": False,
    # 5 s unready, 60 s for the requests in flight, 10 s to spare.
    "terminationGracePeriodSeconds": 75,
    "securityContext": POD_SECURITY,
}
"""Settings of a predictor where the ServingRuntime names none; those of the chart's defaults."""
_SCALING: Final = frozenset(
    {"minReplicas", "maxReplicas", "scaleTarget", "scaleMetric", "scaleMetricType", "autoScaling"}
)
_NAME: Final = re.compile(r"[a-z]([-a-z0-9]{0,30}[a-z0-9])?")


@dataclass(frozen=True, kw_only=True, slots=True)
class PromotedModel(Config):
    """A model to serve, and its lineage."""

    uri: str
    """URI of its checkpoint, or of the container image that holds it."""
    digest: str = ""
    """Its digest; empty where only the values of the chart named the model."""
    task: str = ""
    """Name of its task; empty where only the values of the chart named the model."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Metrics of its evaluation."""
    parents: dict[str, str] = field(default_factory=dict)
    """Digests of its parents by role."""
    labels: dict[str, str] = field(default_factory=dict)
    """Labels that name its version in a registry."""

    def annotation(self) -> str:
        """Return the value of :data:`MODEL_ANNOTATION`."""
        return json.dumps(self.to_json(), sort_keys=True)

    def is_same_as(self, other: Self) -> bool:
        """Return whether both are one model: by digest where both have one, else by URI.

        A checkpoint and its image are two.
        """
        if self.digest and other.digest and self.is_image == other.is_image:
            return self.digest == other.digest
        return self.uri == other.uri

    @property
    def is_image(self) -> bool:
        """True if its URI is that of a container image."""
        return self.uri.startswith(IMAGE_SCHEMES)


@dataclass(frozen=True, kw_only=True, slots=True)
class InferenceServiceConfig(Config):
    """An endpoint; all but its name and namespace count at its first deployment only."""

    name: str
    """Name of the InferenceService, and of the model in URLs."""
    namespace: str = "default"
    """Its namespace."""
    runtime: Literal["cpu", "gpu"] = "cpu"
    """Device that it runs on."""
    min_replicas: int = 1
    """Fewest pods."""
    max_replicas: int = 4
    """Most pods, where the chart's autoscaling is on."""
    prometheus: str = ""
    """URL of a Prometheus that tells the canary's share of failed requests."""

    def __post_init__(self) -> None:
        """Refuse values out of range (ConfigError)."""
        if not _NAME.fullmatch(self.name):
            raise ConfigError(
                f"{self.name!r} can't name an endpoint",
                expected="at most 32 of a-z, 0-9 and '-', a letter first and no '-' last",
                action="choose another name, such as depth",
            )
        if self.min_replicas == 0:
            raise ConfigError(
                "min_replicas was 0: an endpoint without a pod serves no metrics, so nothing would "
                "start one",
                expected="at least 1",
                action="set min_replicas to 1, or scale to zero with KEDA's HTTP add-on, "
                "docs/endpoints.md",
            )
        if not 1 <= self.min_replicas <= self.max_replicas:
            raise ConfigError(
                f"replicas were {self.min_replicas} to {self.max_replicas}",
                expected="1 <= min_replicas <= max_replicas",
                action="let at least one pod serve",
            )

    @property
    def service_name(self) -> str:
        """Name of the Service that stays whichever model serves; KServe makes none of it."""
        return f"{self.name}-endpoint"

    @property
    def url(self) -> str:
        """Address of the endpoint inside the cluster."""
        return f"http://{self.service_name}.{self.namespace}"


def predictor_settings(endpoint: InferenceServiceConfig, api: ClusterApi) -> dict[str, Any]:
    """Return the settings of a predictor that the endpoint's ServingRuntime names.

    Raises:
        ConfigError: the namespace has no such ServingRuntime.
        ClusterError: the cluster can't be reached or refuses.
    """
    name = RUNTIMES[endpoint.runtime]
    runtime = api.get(SERVING_RUNTIME, endpoint.namespace, name)
    if runtime is None:
        raise ConfigError(
            f"namespace {endpoint.namespace} has no ServingRuntime {name}",
            expected="a namespace in which the chart is installed, with serving.enabled and, for "
            "gpu, a pool gpu",
            action=f"run `kubectl get servingruntimes -A`, and name a namespace that has {name}",
        )
    annotations = runtime["metadata"].get("annotations", {})
    text = annotations.get(PREDICTOR_ANNOTATION, "{}").replace("ENDPOINT", endpoint.name)
    return {**PREDICTOR_SETTINGS, **json.loads(text)}


def inference_service(
    endpoint: InferenceServiceConfig,
    model: PromotedModel,
    settings: Mapping[str, Any] = PREDICTOR_SETTINGS,
) -> dict[str, Any]:
    """Return the InferenceService with this model only."""
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": endpoint.name,
            "namespace": endpoint.namespace,
            "labels": {**_labels(), **model.labels},
            "annotations": {
                "serving.kserve.io/deploymentMode": "Standard",
                # Without a class KServe scales by CPU.
                AUTOSCALER_ANNOTATION: "keda" if "autoScaling" in settings else "none",
            },
        },
        "spec": {
            "predictor": {
                "name": STABLE,
                "labels": {TRACK_LABEL: STABLE, ENDPOINT_LABEL: endpoint.name},
                "annotations": {MODEL_ANNOTATION: model.annotation()},
                **settings,
                "minReplicas": endpoint.min_replicas,
                "maxReplicas": endpoint.max_replicas,
                # KServe allows no name in the stable model, and requires one in a canary.
                "model": {
                    "modelFormat": {"name": MODEL_FORMAT},
                    "runtime": RUNTIMES[endpoint.runtime],
                    "protocolVersion": "v2",
                    **_without_nulls(model_fields({}, model)),
                },
            }
        },
    }


def canary(stable: dict[str, Any], model: PromotedModel, traffic_percent: int) -> dict[str, Any]:
    """Return an entry of ``spec.canary``: the stable predictor with another model, in one pod."""
    predictor = {k: copy.deepcopy(v) for k, v in stable.items() if k not in _SCALING}
    predictor["name"] = canary_name(model)
    predictor["minReplicas"] = 1
    predictor["labels"] = {**predictor.get("labels", {}), TRACK_LABEL: CANARY}
    predictor["annotations"] = {
        **predictor.get("annotations", {}),
        MODEL_ANNOTATION: model.annotation(),
        # KServe would make a KEDA object without any metric, which KEDA refuses.
        AUTOSCALER_ANNOTATION: "none",
    }
    fields = {**predictor["model"], "name": CONTAINER, **model_fields(stable, model)}
    predictor["model"] = _without_nulls(fields)
    return {"trafficPercent": traffic_percent, "predictor": predictor}


def canary_name(model: PromotedModel) -> str:
    """Return the name of a canary's predictor.

    KServe names its Service ``ENDPOINT-PREDICTOR-predictor``: at most 55 characters of the 63 that
    a DNS label may have. A label begins with a letter, which a digest needn't.
    """
    return f"rev-{model.digest[:8]}"


def promoted_fields(stable: dict[str, Any], model: PromotedModel) -> dict[str, Any]:
    """Return the fields of the stable predictor that name its model, with this one."""
    return {
        "annotations": {MODEL_ANNOTATION: model.annotation()},
        "model": model_fields(stable, model),
    }


def model_fields(predictor: dict[str, Any], model: PromotedModel) -> dict[str, Any]:
    """Return the fields of a predictor's ``model`` that name it; null removes one."""
    others = [v for v in predictor.get("model", {}).get("env", []) if v["name"] != MODEL_VARIABLE]
    place = MODEL_MOUNT if model.is_image else model.uri
    return {
        "env": [*others, {"name": MODEL_VARIABLE, "value": place}],
        "storageUri": model.uri if model.is_image else None,
        # The server reads the store itself. Without this KServe takes the endpoint for one of
        # several models, and adds its agent to the pods.
        "storage": None if model.is_image else {},
    }


def _without_nulls(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if value is not None}


def served_model(predictor: dict[str, Any]) -> PromotedModel | None:
    """Return the model that a predictor serves, or None where clipmill made none.

    The variable says which; the annotation's other facts count where it names the same URI.
    """
    variables = {v["name"]: v.get("value", "") for v in predictor.get("model", {}).get("env", [])}
    uri = variables.get(MODEL_VARIABLE)
    if uri == MODEL_MOUNT:
        uri = predictor["model"].get("storageUri")
    if not uri:
        return None
    try:
        model = PromotedModel.from_json(json.loads(model_annotation(predictor)))
    except (ValueError, ConfigError):
        model = PromotedModel(uri="")
    return model if model.uri == uri else PromotedModel(uri=uri)


def model_annotation(owner: dict[str, Any]) -> str:
    """Return :data:`MODEL_ANNOTATION` of a predictor or of a pod's metadata; empty without one."""
    return str((owner.get("annotations") or {}).get(MODEL_ANNOTATION, ""))


def endpoint_service(
    endpoint: InferenceServiceConfig, owner: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return the Service of the endpoint's stable pods; it goes with its owner."""
    metadata: dict[str, Any] = {
        "name": endpoint.service_name,
        "namespace": endpoint.namespace,
        "labels": {**_labels(), ENDPOINT_LABEL: endpoint.name},
    }
    if owner is not None:
        kind = {key: owner[key] for key in ("apiVersion", "kind")}
        named = {key: owner["metadata"][key] for key in ("name", "uid")}
        metadata["ownerReferences"] = [{**kind, **named}]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {
            "selector": {ENDPOINT_LABEL: endpoint.name, TRACK_LABEL: STABLE},
            "ports": [
                {"name": "http", "port": 80, "targetPort": HTTP_PORT, "protocol": "TCP"},
                {
                    "name": "grpc",
                    "port": GRPC_PORT,
                    "targetPort": GRPC_PORT,
                    "protocol": "TCP",
                    "appProtocol": "kubernetes.io/h2c",
                },
            ],
        },
    }


def _labels() -> dict[str, str]:
    return {"app.kubernetes.io/name": "clipmill", "app.kubernetes.io/component": "serve"}
