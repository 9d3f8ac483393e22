"""Promoted models as InferenceServices of KServe 0.21 (Standard mode), rolled out as canaries."""

import io
import json
import math
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from clipmill.cluster.api import INFERENCE_SERVICE, ClusterApi
from clipmill.cluster.constants import DOMAIN, POD_SECURITY, TRACK_LABEL
from clipmill.cluster.monitoring.series import QUEUE_DEPTH, SERVED_REQUESTS
from clipmill.config import Config
from clipmill.errors import ClipmillError, ClusterError, ConfigError, GateError
from clipmill.models.checkpoint import read_metadata
from clipmill.tasks.evaluation import EvaluationResult
from clipmill.tasks.promotion import read_promotion

RUNTIMES = {"cpu": "clipmill-cpu", "gpu": "clipmill-gpu"}
"""ServingRuntimes that the chart makes."""
MODEL_FORMAT = "clipmill"
DIGEST_ANNOTATION = f"{DOMAIN}/model-digest"
_TIMEOUT_SECONDS = 10
_NAME = re.compile(r"[a-z]([-a-z0-9]{0,30}[a-z0-9])?")


@dataclass(frozen=True, kw_only=True, slots=True)
class PromotedModel(Config):
    """A model to serve, and its lineage."""

    uri: str
    """URI of its checkpoint."""
    digest: str
    """Its digest."""
    task: str
    """Name of its task."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Metrics of its evaluation."""
    parents: dict[str, str] = field(default_factory=dict)
    """Digests of its parents by role."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InferenceServiceConfig(Config):
    """An InferenceService, whichever model it serves."""

    name: str
    """Name of the InferenceService, and of the model in URLs."""
    namespace: str = "default"
    """Its namespace."""
    runtime: Literal["cpu", "gpu"] = "cpu"
    """Device that it runs on."""
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
                action="choose another name, such as depth",
            )
        if not 1 <= self.min_replicas <= self.max_replicas:
            raise ConfigError(
                f"replicas were {self.min_replicas} to {self.max_replicas}",
                expected="1 <= min_replicas <= max_replicas",
                action="let at least one pod serve",
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutConfig(Config):
    """Steps and limits of a canary rollout."""

    traffic_percents: tuple[int, ...] = (10, 50)
    """Share of requests that the canary gets, step by step, percent."""
    ready_seconds: float = 900.0
    """Longest that a model may take to be ready, seconds."""
    observation_seconds: float = 300.0
    """Time for which each step is observed, seconds."""
    poll_interval_seconds: float = 10.0
    """Interval of the checks, seconds."""
    max_error_ratio: float = 0.01
    """Largest share of failed requests, 0 to 1."""

    def __post_init__(self) -> None:
        """Refuse values out of range (ConfigError)."""
        steps = self.traffic_percents
        if not steps or list(steps) != sorted(set(steps)) or not 0 < steps[0] <= steps[-1] < 100:
            raise ConfigError(
                f"traffic_percents was {list(steps)}",
                expected="rising whole numbers between 1 and 99, such as [10, 50]",
                action="set traffic_percents to such a list",
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollout:
    """Result of a rollout."""

    endpoint: str
    """Name of the endpoint."""
    digest: str
    """Digest of the model that serves now."""
    changed: bool
    """Whether another model, or none, served before."""


SmokeTest = Callable[[str], None]
"""Sends a request to the server at a base URL; a ClipmillError means that it failed."""
ErrorRatio = Callable[[InferenceServiceConfig, str], float]
"""Returns the recent share of requests (0 to 1) that a track's pods answered with 5xx."""


def deploy_promotion(
    promotion: str,
    endpoint: InferenceServiceConfig,
    config: RolloutConfig,
    *,
    api: ClusterApi | None = None,
) -> Rollout:
    """Roll out a promoted model; without Prometheus only its smoke query is checked.

    Raises:
        NotFoundError: nothing was promoted there.
        GateError: the canary failed; the model before keeps serving.
        ClusterError: the cluster or Prometheus can't be reached.
    """
    result = read_promotion(promotion).evaluation
    server = Prometheus(endpoint.prometheus) if endpoint.prometheus else None
    return rollout(
        endpoint,
        promoted_model(result),
        api=api or ClusterApi(),
        smoke=lambda url: _smoke_query(url, endpoint.name, result),
        error_ratio=server.error_ratio if server else lambda _endpoint, _track: 0.0,
        config=config if server else replace(config, observation_seconds=0.0),
    )


def promoted_model(result: EvaluationResult) -> PromotedModel:
    """Return the evaluated model with its metrics and parents."""
    metadata = read_metadata(result.model.uri)
    return PromotedModel(
        uri=result.model.uri,
        digest=result.model.digest,
        task=result.task,
        metrics=result.metrics,
        parents={parent.role: parent.digest for parent in metadata.parents},
    )


def _smoke_query(url: str, model: str, result: EvaluationResult) -> None:
    import numpy as np
    from PIL import Image

    from clipmill.serve.client import query

    image = Image.open(io.BytesIO(result.read_image(0, "image"))).convert("RGB")
    query(url, model, np.asarray(image))


def rollout(
    endpoint: InferenceServiceConfig,
    model: PromotedModel,
    *,
    api: ClusterApi,
    smoke: SmokeTest,
    error_ratio: ErrorRatio,
    config: RolloutConfig,
) -> Rollout:
    """Serve the model at the endpoint; nothing changes where it does already.

    Raises:
        GateError: the canary wasn't ready, failed the smoke query, or failed too many requests;
            the model before keeps serving, alone.
        ClusterError: the cluster can't be reached or refuses.
    """
    resource = (INFERENCE_SERVICE, endpoint.namespace, endpoint.name)
    current = api.get(*resource)
    if current is None:
        api.create(INFERENCE_SERVICE, endpoint.namespace, inference_service(endpoint, model))
        _wait_until_ready(
            lambda: _is_ready(api.get(*resource)), config, f"endpoint {endpoint.name}"
        )
        smoke(_service_url(endpoint, model))
        return Rollout(endpoint=endpoint.name, digest=model.digest, changed=True)
    if current["metadata"].get("annotations", {}).get(
        DIGEST_ANNOTATION
    ) == model.digest and not current["spec"].get("canary"):
        return Rollout(endpoint=endpoint.name, digest=model.digest, changed=False)
    try:
        for percent in config.traffic_percents:
            api.patch(*resource, {"spec": {"canary": [canary(endpoint, model, percent)]}})
            _wait_until_ready(
                lambda: _canary_is_ready(api.get(*resource), predictor_name(model)),
                config,
                f"the canary of {endpoint.name}",
            )
            smoke(_service_url(endpoint, model))
            _watch(endpoint, config, error_ratio)
    except BaseException as error:
        # For any error, an interrupt too: the old model keeps serving, alone.
        api.patch(*resource, {"spec": {"canary": []}})
        if isinstance(error, ClipmillError) and not isinstance(error, ClusterError):
            raise GateError(
                f"{model.uri} was taken back from {endpoint.name}: {error}",
                expected="a canary that is ready, answers, and fails few requests",
                action=f"read the logs of {endpoint.name}-{predictor_name(model)}-predictor's pods",
            ) from error
        raise
    # KServe points the stable route at the canary's pods, since the name stays: none restarts.
    # null removes what only the model before had.
    annotations: dict[str, str | None] = dict.fromkeys(_lineage_keys(current))
    api.patch(
        *resource,
        {
            "metadata": {"annotations": annotations | lineage_annotations(model)},
            "spec": {"predictor": predictor(endpoint, model), "canary": []},
        },
    )
    return Rollout(endpoint=endpoint.name, digest=model.digest, changed=True)


def _watch(
    endpoint: InferenceServiceConfig, config: RolloutConfig, error_ratio: ErrorRatio
) -> None:
    end = time.monotonic() + config.observation_seconds
    while True:
        ratio = error_ratio(endpoint, "canary")
        if ratio > config.max_error_ratio:
            raise GateError(
                f"the canary failed {ratio:.1%} of its requests",
                expected=f"at most {config.max_error_ratio:.1%}",
                action="read the canary's logs, and fix the model or its server",
            )
        if time.monotonic() >= end:
            return
        time.sleep(config.poll_interval_seconds)


def _wait_until_ready(is_ready: Callable[[], bool], config: RolloutConfig, what: str) -> None:
    end = time.monotonic() + config.ready_seconds
    while not is_ready():
        if time.monotonic() >= end:
            raise GateError(
                f"{what} wasn't ready within {config.ready_seconds:g} seconds",
                expected="pods that load the model",
                action="see its events with kubectl describe inferenceservice",
            )
        time.sleep(config.poll_interval_seconds)


def _is_ready(current: dict[str, Any] | None) -> bool:
    conditions = ((current or {}).get("status") or {}).get("conditions", [])
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def _canary_is_ready(current: dict[str, Any] | None, name: str) -> bool:
    statuses = ((current or {}).get("status") or {}).get("canaryStatuses", [])
    return any(s["name"] == name and s["ready"] for s in statuses)


def _service_url(endpoint: InferenceServiceConfig, model: PromotedModel) -> str:
    """Return the URL of KServe's service of this model, whatever its share of the traffic."""
    return f"http://{endpoint.name}-{predictor_name(model)}-predictor.{endpoint.namespace}"


def _lineage_keys(current: dict[str, Any]) -> list[str]:
    prefix = DIGEST_ANNOTATION.partition("/")[0] + "/"
    return [k for k in current["metadata"].get("annotations", {}) if k.startswith(prefix)]


def predictor_name(model: PromotedModel) -> str:
    """Return the predictor's name, the same as a canary and after, so that no pod restarts.

    KServe names its services ``ENDPOINT-PREDICTOR-predictor``: at most 55 characters of the 63 that
    a DNS label may have. A label begins with a letter, which a digest needn't.
    """
    return f"rev-{model.digest[:8]}"


def inference_service(endpoint: InferenceServiceConfig, model: PromotedModel) -> dict[str, Any]:
    """Return the InferenceService with this model only."""
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


def predictor(endpoint: InferenceServiceConfig, model: PromotedModel) -> dict[str, Any]:
    """Return the predictor of a stable model."""
    spec = {
        **_serving(endpoint, model, "stable"),
        "minReplicas": endpoint.min_replicas,
        "maxReplicas": endpoint.max_replicas,
    }
    if endpoint.prometheus:
        spec["autoScaling"] = {"metrics": [_queue_metric(endpoint)]}
    return spec


def canary(
    endpoint: InferenceServiceConfig, model: PromotedModel, traffic_percent: int
) -> dict[str, Any]:
    """Return an entry of ``spec.canary``, which may set no scaling but the least pods."""
    return {
        "trafficPercent": traffic_percent,
        "predictor": {**_serving(endpoint, model, "canary"), "minReplicas": 1},
    }


def lineage_annotations(model: PromotedModel) -> dict[str, str]:
    """Return annotations with the model's digest, task, metrics and parents."""
    current = {
        DIGEST_ANNOTATION: model.digest,
        f"{DOMAIN}/model-uri": model.uri,
        f"{DOMAIN}/task": model.task,
    }
    current |= {f"{DOMAIN}/metric-{_key(k)}": f"{v:.6g}" for k, v in model.metrics.items()}
    return current | {f"{DOMAIN}/parent-{_key(k)}": v for k, v in model.parents.items()}


def _serving(endpoint: InferenceServiceConfig, model: PromotedModel, track: str) -> dict[str, Any]:
    return {
        "name": predictor_name(model),
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


def _queue_metric(endpoint: InferenceServiceConfig) -> dict[str, Any]:
    selector = f'namespace="{endpoint.namespace}",model="{endpoint.name}"'
    metric = {
        "backend": "prometheus",
        "serverAddress": endpoint.prometheus,
        "query": f"sum({QUEUE_DEPTH}{{{selector}}})",
    }
    target = {"type": "AverageValue", "averageValue": str(endpoint.target_queue_depth)}
    return {"type": "External", "external": {"metric": metric, "target": target}}


def _key(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


class Prometheus:
    """A Prometheus server at a base URL, such as ``http://prometheus-operated.monitoring:9090``."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")

    def error_ratio(self, endpoint: InferenceServiceConfig, track: str) -> float:
        """Return the share of a track's requests in two minutes that got a 5xx; 0 without any.

        Raises:
            ClusterError: the server can't be queried.
        """
        # The PodMonitor turns the pods' label into this one.
        label = TRACK_LABEL.replace(".", "_").replace("/", "_")
        selector = f'model="{endpoint.name}",namespace="{endpoint.namespace}",{label}="{track}"'
        failed = f'sum(rate({SERVED_REQUESTS}{{{selector},code=~"5.."}}[2m]))'
        value = self.value(f"{failed} / sum(rate({SERVED_REQUESTS}{{{selector}}}[2m]))")
        return 0.0 if value is None or math.isnan(value) else value

    def value(self, query: str) -> float | None:
        """Return the only value of an instant query, or None where there is none."""
        address = f"{self._url}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
        try:
            with urllib.request.urlopen(address, timeout=_TIMEOUT_SECONDS) as response:  # noqa: S310
                current = json.load(response)["data"]["result"]
        except (OSError, ValueError, KeyError) as error:
            raise ClusterError(
                f"Prometheus at {self._url} can't be queried: {error}",
                expected="a Prometheus that answers /api/v1/query",
                action="give its address with --prometheus",
            ) from error
        return float(current[0]["value"][1]) if current else None
