"""A promoted model goes live as a canary, is watched, and takes over or is taken back."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from clipmill.cluster.api import INFERENCE_SERVICE, ClusterApi
from clipmill.cluster.serving import (
    DIGEST_ANNOTATION,
    EndpointConfig,
    ServedModel,
    canary,
    inference_service,
    lineage_annotations,
    predictor,
    track_name,
)
from clipmill.config import Config
from clipmill.errors import ClipmillError, ClusterError, ConfigError, GateError

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
