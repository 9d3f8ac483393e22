"""A promoted model as an InferenceService of KServe 0.21, in Standard mode."""

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


_TIMEOUT_SECONDS = 10


class Prometheus:
    """A server at a base URL, such as ``http://prometheus-operated.monitoring:9090``."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")

    def error_ratio(self, endpoint: EndpointConfig, track: str) -> float:
        """Share of the track's requests of the last two minutes that got a 5xx; 0 without any.

        Raises:
            ClusterError: the server can't be asked.
        """
        # The PodMonitor turns the pods' label into this one.
        label = TRACK_LABEL.replace(".", "_").replace("/", "_")
        chosen = f'model="{endpoint.name}",namespace="{endpoint.namespace}",{label}="{track}"'
        failed = f'sum(rate({SERVED_REQUESTS}{{{chosen},code=~"5.."}}[2m]))'
        value = self.value(f"{failed} / sum(rate({SERVED_REQUESTS}{{{chosen}}}[2m]))")
        return 0.0 if value is None or math.isnan(value) else value

    def value(self, query: str) -> float | None:
        """The one value of an instant query, or None where there is none."""
        address = f"{self._url}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
        try:
            with urllib.request.urlopen(address, timeout=_TIMEOUT_SECONDS) as response:  # noqa: S310
                found = json.load(response)["data"]["result"]
        except (OSError, ValueError, KeyError) as error:
            raise ClusterError(
                f"Prometheus at {self._url} can't be asked: {error}",
                expected="a Prometheus that answers /api/v1/query",
                action="give its address with --prometheus",
            ) from error
        return float(found[0]["value"][1]) if found else None


Smoke = Callable[[str], None]
"""Asks the server at a base URL about something; any error of ours means that it failed."""
ErrorRatio = Callable[[EndpointConfig, str], float]
"""Share of requests (0 to 1) that a track's pods answered with 5xx of late."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutConfig(Config):
    """How carefully a model takes over."""

    traffic_percents: tuple[int, ...] = (10, 50)
    """Share of requests that the canary gets, step by step, percent."""
    ready_seconds: float = 900.0
    """Longest that a model may take to be ready, seconds."""
    watch_seconds: float = 300.0
    """How long each step is watched, seconds."""
    poll_seconds: float = 10.0
    """Time between two looks, seconds."""
    max_error_ratio: float = 0.01
    """Largest share of failed requests, 0 to 1."""

    def __post_init__(self) -> None:
        """Refuse values out of range (ConfigError)."""
        steps = self.traffic_percents
        if not steps or list(steps) != sorted(set(steps)) or not 0 < steps[0] <= steps[-1] < 100:
            raise ConfigError(
                f"traffic_percents was {list(steps)}",
                expected="rising whole numbers between 1 and 99, such as [10, 50]",
                action="give the canary such shares of the traffic",
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollout:
    """How it went."""

    endpoint: str
    """Name of the endpoint."""
    digest: str
    """Digest of the model that serves now."""
    changed: bool
    """Whether another model, or none, served before."""


def roll_out(
    endpoint: EndpointConfig,
    model: ServedModel,
    *,
    api: ClusterApi,
    smoke: Smoke,
    error_ratio: ErrorRatio,
    config: RolloutConfig,
) -> Rollout:
    """Let the model serve at the endpoint; nothing is touched where it does already.

    Raises:
        GateError: the canary wasn't ready, failed the smoke query, or failed too many requests;
            the model that served before serves on, alone.
        ClusterError: the cluster can't be reached or refuses.
    """
    place = (INFERENCE_SERVICE, endpoint.namespace, endpoint.name)
    found = api.get(*place)
    if found is None:
        api.create(INFERENCE_SERVICE, endpoint.namespace, inference_service(endpoint, model))
        _await(lambda: _is_ready(api.get(*place)), config, f"endpoint {endpoint.name}")
        smoke(_service_url(endpoint, model))
        return Rollout(endpoint=endpoint.name, digest=model.digest, changed=True)
    if found["metadata"].get("annotations", {}).get(
        DIGEST_ANNOTATION
    ) == model.digest and not found["spec"].get("canary"):
        return Rollout(endpoint=endpoint.name, digest=model.digest, changed=False)
    try:
        for percent in config.traffic_percents:
            api.patch(*place, {"spec": {"canary": [canary(endpoint, model, percent)]}})
            _await(
                lambda: _canary_is_ready(api.get(*place), track_name(model)),
                config,
                f"the canary of {endpoint.name}",
            )
            smoke(_service_url(endpoint, model))
            _watch(endpoint, config, error_ratio)
    except BaseException as error:
        # Whatever it was, an interrupt too: the old model serves on, alone.
        api.patch(*place, {"spec": {"canary": []}})
        if isinstance(error, ClipmillError) and not isinstance(error, ClusterError):
            raise GateError(
                f"{model.uri} was taken back from {endpoint.name}: {error}",
                expected="a canary that is ready, answers, and fails few requests",
                action=f"read the logs of {endpoint.name}-{track_name(model)}-predictor's pods",
            ) from error
        raise
    # KServe points the stable route at the canary's pods, since the name stays: none restarts.
    # null removes what only the model before had.
    annotations: dict[str, str | None] = dict.fromkeys(_lineage_of(found))
    api.patch(
        *place,
        {
            "metadata": {"annotations": annotations | lineage_annotations(model)},
            "spec": {"predictor": predictor(endpoint, model), "canary": []},
        },
    )
    return Rollout(endpoint=endpoint.name, digest=model.digest, changed=True)


def _watch(endpoint: EndpointConfig, config: RolloutConfig, error_ratio: ErrorRatio) -> None:
    end = time.monotonic() + config.watch_seconds
    while True:
        ratio = error_ratio(endpoint, "canary")
        if ratio > config.max_error_ratio:
            raise GateError(
                f"the canary failed {ratio:.1%} of its requests",
                expected=f"at most {config.max_error_ratio:.1%}",
                action="mend the model or its server",
            )
        if time.monotonic() >= end:
            return
        time.sleep(config.poll_seconds)


def _await(is_ready: Callable[[], bool], config: RolloutConfig, what: str) -> None:
    end = time.monotonic() + config.ready_seconds
    while not is_ready():
        if time.monotonic() >= end:
            raise GateError(
                f"{what} wasn't ready within {config.ready_seconds:g} seconds",
                expected="pods that load the model",
                action="see its events with kubectl describe inferenceservice",
            )
        time.sleep(config.poll_seconds)


def _is_ready(found: dict[str, Any] | None) -> bool:
    conditions = ((found or {}).get("status") or {}).get("conditions", [])
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def _canary_is_ready(found: dict[str, Any] | None, name: str) -> bool:
    statuses = ((found or {}).get("status") or {}).get("canaryStatuses", [])
    return any(s["name"] == name and s["ready"] for s in statuses)


def _service_url(endpoint: EndpointConfig, model: ServedModel) -> str:
    """Where KServe's service of this very model is, whatever share of the traffic it gets."""
    return f"http://{endpoint.name}-{track_name(model)}-predictor.{endpoint.namespace}"


def _lineage_of(found: dict[str, Any]) -> list[str]:
    prefix = DIGEST_ANNOTATION.partition("/")[0] + "/"
    return [k for k in found["metadata"].get("annotations", {}) if k.startswith(prefix)]


def deploy_promotion(
    promotion: str,
    endpoint: EndpointConfig,
    config: RolloutConfig,
    *,
    api: ClusterApi | None = None,
) -> Rollout:
    """Roll the promoted model out; only its smoke query judges it where there is no Prometheus.

    Raises:
        NotFoundError: nothing was promoted there.
        GateError: the canary failed; what served before serves on.
        ClusterError: the cluster or Prometheus can't be reached.
    """
    result = read_promotion(promotion).evaluation
    server = Prometheus(endpoint.prometheus) if endpoint.prometheus else None
    return roll_out(
        endpoint,
        served_model(result),
        api=api or ClusterApi(),
        smoke=lambda url: _ask(url, endpoint.name, result),
        error_ratio=server.error_ratio if server else lambda _endpoint, _track: 0.0,
        config=config if server else replace(config, watch_seconds=0.0),
    )


def served_model(result: EvaluationResult) -> ServedModel:
    """The judged model with its metrics and parents."""
    metadata = read_metadata(result.model.uri)
    return ServedModel(
        uri=result.model.uri,
        digest=result.model.digest,
        task=result.task,
        metrics=result.metrics,
        parents={parent.role: parent.digest for parent in metadata.parents},
    )


def _ask(url: str, model: str, result: EvaluationResult) -> None:
    import numpy as np
    from PIL import Image

    from clipmill.serve.client import query

    image = Image.open(io.BytesIO(result.read_image(0, "image"))).convert("RGB")
    query(url, model, np.asarray(image))
