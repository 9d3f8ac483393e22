"""A promoted model as an InferenceService of KServe 0.21, in Standard mode."""

import re
from dataclasses import dataclass, field
from typing import Any, Literal

from clipmill.cluster.monitoring.expressions import QUEUE_DEPTH
from clipmill.cluster.names import DOMAIN, POD_SECURITY, TRACK_LABEL
from clipmill.config import Config
from clipmill.errors import ConfigError

RUNTIMES = {"cpu": "clipmill-cpu", "gpu": "clipmill-gpu"}
"""ServingRuntimes that the chart makes."""
MODEL_FORMAT = "clipmill"
DIGEST_ANNOTATION = f"{DOMAIN}/model-digest"
_NAME = re.compile(r"[a-z]([-a-z0-9]{0,30}[a-z0-9])?")


@dataclass(frozen=True, kw_only=True, slots=True)
class ServedModel(Config):
    """A model that may be served, and where it comes from."""

    uri: str
    """Where its checkpoint lies."""
    digest: str
    """Its digest."""
    task: str
    """Name of its task."""
    metrics: dict[str, float] = field(default_factory=dict)
    """What its evaluation found."""
    parents: dict[str, str] = field(default_factory=dict)
    """Digest of what it was made from, by role."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EndpointConfig(Config):
    """An endpoint, whichever model it serves."""

    name: str
    """Name of the InferenceService, and of the model in URLs."""
    namespace: str = "default"
    """Its namespace."""
    runtime: Literal["cpu", "gpu"] = "cpu"
    """What it computes on."""
    min_replicas: int = 1
    """Fewest pods."""
    max_replicas: int = 4
    """Most pods."""
    service_account: str = "clipmill-serve"
    """Service account of the pods; it may read the models' bucket."""
    prometheus: str = ""
    """URL of a Prometheus by which KEDA scales the pods; empty for a fixed number of pods."""
    target_queue_depth: int = 8
    """Images that wait in one pod before another is started."""

    def __post_init__(self) -> None:
        """Refuse values out of range (ConfigError)."""
        if not _NAME.fullmatch(self.name):
            raise ConfigError(
                f"{self.name!r} can't name an endpoint",
                expected="at most 32 of a-z, 0-9 and '-', a letter first and no '-' last",
                action="give the endpoint such a name",
            )
        if not 1 <= self.min_replicas <= self.max_replicas:
            raise ConfigError(
                f"replicas were {self.min_replicas} to {self.max_replicas}",
                expected="1 <= min_replicas <= max_replicas",
                action="let at least one pod serve",
            )


def track_name(model: ServedModel) -> str:
    """Name of the predictor that serves the model, as a canary and after: no pod restarts."""
    return f"m{model.digest[:10]}"


def inference_service(endpoint: EndpointConfig, model: ServedModel) -> dict[str, Any]:
    """The endpoint with the model alone."""
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": endpoint.name,
            "namespace": endpoint.namespace,
            "labels": {
                "app.kubernetes.io/name": "clipmill",
                "app.kubernetes.io/component": "serve",
            },
            "annotations": {
                "serving.kserve.io/deploymentMode": "Standard",
                "serving.kserve.io/autoscalerClass": "keda" if endpoint.prometheus else "none",
                **lineage_annotations(model),
            },
        },
        "spec": {"predictor": predictor(endpoint, model)},
    }


def predictor(endpoint: EndpointConfig, model: ServedModel) -> dict[str, Any]:
    """What serves the model once it is stable."""
    made = {
        **_serving(endpoint, model, "stable"),
        "minReplicas": endpoint.min_replicas,
        "maxReplicas": endpoint.max_replicas,
    }
    if endpoint.prometheus:
        made["autoScaling"] = {"metrics": [_queue_metric(endpoint)]}
    return made


def canary(endpoint: EndpointConfig, model: ServedModel, traffic_percent: int) -> dict[str, Any]:
    """An entry of ``spec.canary``, which may say nothing about scaling but its least pods."""
    return {
        "trafficPercent": traffic_percent,
        "predictor": {**_serving(endpoint, model, "canary"), "minReplicas": 1},
    }


def lineage_annotations(model: ServedModel) -> dict[str, str]:
    """From which captions, encoder and data the served model came."""
    found = {
        DIGEST_ANNOTATION: model.digest,
        f"{DOMAIN}/model-uri": model.uri,
        f"{DOMAIN}/task": model.task,
    }
    found |= {f"{DOMAIN}/metric-{_key(k)}": f"{v:.6g}" for k, v in model.metrics.items()}
    return found | {f"{DOMAIN}/parent-{_key(k)}": v for k, v in model.parents.items()}


def _serving(endpoint: EndpointConfig, model: ServedModel, track: str) -> dict[str, Any]:
    return {
        "name": track_name(model),
        "labels": {TRACK_LABEL: track, f"{DOMAIN}/endpoint": endpoint.name},
        "annotations": {DIGEST_ANNOTATION: model.digest},
        "serviceAccountName": endpoint.service_account,
        "automountServiceAccountToken": False,
        "securityContext": POD_SECURITY,
        "model": {
            # A canary's definition wants the container's name; it is the runtime's.
            "name": "kserve-container",
            "modelFormat": {"name": MODEL_FORMAT},
            "runtime": RUNTIMES[endpoint.runtime],
            "protocolVersion": "v2",
            "storageUri": model.uri,
        },
    }


def _queue_metric(endpoint: EndpointConfig) -> dict[str, Any]:
    chosen = f'namespace="{endpoint.namespace}",model="{endpoint.name}"'
    metric = {
        "backend": "prometheus",
        "serverAddress": endpoint.prometheus,
        "query": f"sum({QUEUE_DEPTH}{{{chosen}}})",
    }
    target = {"type": "AverageValue", "averageValue": str(endpoint.target_queue_depth)}
    return {"type": "External", "external": {"metric": metric, "target": target}}


def _key(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
