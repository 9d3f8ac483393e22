"""Rollout of a promoted model to an endpoint; docs/endpoints.md has the table of its states."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Final

from clipmill.cluster.api import HTTP_SCALED_OBJECT, INFERENCE_SERVICE, SERVICE, ClusterApi
from clipmill.cluster.endpoint_status import (
    accepted_route,
    are_serving,
    describe_failure,
    is_given_up,
    live_pods,
    logs_command,
    predictor_url,
    stopping_pods,
    traffic_percent,
)
from clipmill.cluster.kserve import (
    AUTOSCALER_ANNOTATION,
    CANARY,
    MODEL_ANNOTATION,
    STABLE,
    InferenceServiceConfig,
    PromotedModel,
    canary,
    canary_name,
    endpoint_service,
    inference_service,
    model_annotation,
    predictor_settings,
    promoted_fields,
    served_model,
)
from clipmill.config import Config
from clipmill.errors import (
    ArtifactError,
    ClipmillError,
    ClusterError,
    ConfigError,
    GateError,
    ServerError,
    StorageError,
    UserError,
)
from clipmill.models.checkpoint import read_metadata
from clipmill.processes import exiting_on_sigterm
from clipmill.registry import REGISTRY_LABELS, open_registry
from clipmill.tasks.evaluation import EvaluationResult, read_evaluation
from clipmill.tasks.promotion import read_promotion

_logger = logging.getLogger(__name__)

_UNDO_ATTEMPTS: Final = 6
_UNDO_SECONDS: Final = 10.0
"""Longest pause between two attempts to take a canary back, seconds."""
_DRAIN_SECONDS: Final = 15.0
"""Longest wait for a gateway to send a canary nothing more, seconds."""
_STOP_SECONDS: Final = 90.0
"""Longest wait for the pods that a promotion replaces, seconds: more than the chart's grace. One on
a lost node never ends."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutConfig(Config):
    """Steps and limits of a canary rollout."""

    traffic_percents: tuple[int, ...] = (10, 50)
    """Share of the gateway's requests that the canary gets, step by step, percent."""
    ready_seconds: float = 900.0
    """Longest that a model may take to be ready, seconds."""
    answer_seconds: float = 60.0
    """Longest that refused connections of a ready pod are tried again, seconds."""
    route_seconds: float = 60.0
    """Longest that a gateway may take to accept the endpoint's route, seconds."""
    observation_seconds: float = 300.0
    """Time for which each step is observed, seconds."""
    poll_interval_seconds: float = 5.0
    """Interval of the checks, seconds."""
    max_error_ratio: float = 0.01
    """Largest share of failed requests, 0 to 1."""
    min_agreement: float = 0.9
    """Smallest share of pixels in which answers agree with the evaluation's predictions, 0 to 1."""

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
    url: str
    """Its address inside the cluster, the same whichever model serves."""
    digest: str
    """Digest of the model that serves now."""
    changed: bool
    """True if another model, or none, served before."""
    evidence: tuple[str, ...]
    """Checks that the model passed, a sentence each."""


CheckAnswers = Callable[[str], str]
"""Queries the server at a base URL and returns what it saw; a ClipmillError means a failure."""
ErrorRatio = Callable[[InferenceServiceConfig, str], float | None]
"""Returns the recent share of requests (0 to 1) that a track's pods answered with 5xx."""


def deploy_promotion(
    promotion: str,
    endpoint: InferenceServiceConfig,
    config: RolloutConfig,
    *,
    image: str = "",
    api: ClusterApi | None = None,
) -> Rollout:
    """Roll out a promoted model, or the container ``image`` of it, a URI.

    It is judged by its answers to the evaluation's images, and, with a Prometheus and a gateway
    that splits traffic, by the share of its requests that fail.

    Raises:
        NotFoundError: nothing was promoted there.
        ConfigError: the endpoint serves another task, or isn't clipmill's; ``image`` is no image.
        GateError: the model failed; the model before keeps serving.
        ClusterError: the cluster or Prometheus can't be reached.
    """
    result = read_promotion(promotion).evaluation
    model = promoted_model(result)
    model = replace(model, labels=_registered_labels(model))
    if image:
        model = replace(model, uri=image)
        if not model.is_image:
            raise ConfigError(
                f"the image was {image!r}",
                expected="oci+native://REGISTRY/NAME:TAG, or oci://... with KServe's modelcars",
                action="push what `clipmill export --to oci-layout` writes, and give its address",
            )
    return _rollout_evaluated(result, model, endpoint, config, api or ClusterApi())


def rollback(
    version: str,
    endpoint: InferenceServiceConfig,
    config: RolloutConfig,
    *,
    api: ClusterApi | None = None,
) -> Rollout:
    """Roll out a registered version of the endpoint's model, by number or digest.

    It is checked as any rollout is, against the evaluation for which the version was promoted.

    Raises:
        NotFoundError: the registry has no such version, or its model is gone.
        ArtifactError: another model lies at the version's URI.
        ConfigError: no registry is configured, or the endpoint isn't there or isn't clipmill's.
        ServerError: the registry doesn't answer.
        GateError, ClusterError: as :func:`deploy_promotion`.
    """
    api = api or ClusterApi()
    registry = open_registry()
    if registry is None:
        raise ConfigError(
            "no registry is configured, so versions aren't known",
            expected="--registry kubeflow:URL, or --tracking mlflow:URI",
            action="name the registry, or deploy an earlier promotion by its URI",
        )
    registered = registry.find(f"clipmill-{_served_task(endpoint, api)}", version)
    result = read_evaluation(registered.evaluation)
    model = promoted_model(result)
    digest = read_metadata(model.uri).digest
    if digest != registered.digest:
        raise ArtifactError(
            f"{model.uri} has the digest {digest[:12]}",
            expected=f"{registered.digest[:12]}, version {registered.version} of {registry.name}",
            action="restore the model, or roll back to another version",
        )
    model = replace(model, labels=registered.labels)
    return _rollout_evaluated(result, model, endpoint, config, api)


def _served_task(endpoint: InferenceServiceConfig, api: ClusterApi) -> str:
    current = api.get(INFERENCE_SERVICE, endpoint.namespace, endpoint.name)
    served = served_model(current["spec"]["predictor"]) if current else None
    task = "" if served is None else served.task or _read_task(served.uri)
    if not task:
        raise ConfigError(
            f"{endpoint.namespace} has no endpoint {endpoint.name} of clipmill, or its model's "
            "task is unknown",
            expected="an endpoint that serves a promoted model",
            action="run `kubectl get inferenceservices -A`, or deploy a promotion",
        )
    return task


def _registered_labels(model: PromotedModel) -> dict[str, str]:
    """Return the labels of the model's version in the registry; none if it isn't registered.

    A registry that is away doesn't hold a rollout up.
    """
    registry = open_registry()
    if registry is None:
        return {}
    try:
        known = registry.versions(f"clipmill-{model.task}")
    except ServerError as error:
        _logger.warning("the endpoint gets no labels of the registry: %s", error)
        return {}
    return next((v.labels for v in known if v.digest == model.digest), {})


def _rollout_evaluated(
    result: EvaluationResult,
    model: PromotedModel,
    endpoint: InferenceServiceConfig,
    config: RolloutConfig,
    api: ClusterApi,
) -> Rollout:
    """Roll out an evaluated model, checked against its evaluation."""
    from clipmill.cluster.canary_checks import Prometheus, check_answers

    done = rollout(
        endpoint,
        model,
        api=api,
        check_answers=lambda url: check_answers(
            url,
            endpoint.name,
            result,
            min_agreement=config.min_agreement,
            answer_seconds=config.answer_seconds,
        ),
        error_ratio=Prometheus(endpoint.prometheus).error_ratio if endpoint.prometheus else None,
        config=config,
    )
    for sentence in done.evidence:
        _logger.info("%s: %s", endpoint.name, sentence)
    return done


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


def rollout(
    endpoint: InferenceServiceConfig,
    model: PromotedModel,
    *,
    api: ClusterApi,
    check_answers: CheckAnswers,
    error_ratio: ErrorRatio | None,
    config: RolloutConfig,
) -> Rollout:
    """Serve the model at the endpoint; where it does already, only check that it is ready.

    Raises:
        ConfigError: the endpoint serves another task, or isn't clipmill's.
        GateError: the model wasn't ready, didn't answer as evaluated, or failed too many requests;
            the model before keeps serving, alone.
        ClusterError: the cluster can't be reached or refuses.
    """
    run = _Rollout(endpoint, model, api, check_answers, error_ratio, config)
    current = api.get(INFERENCE_SERVICE, endpoint.namespace, endpoint.name)
    if current is None:
        return run.create()
    stable = current["spec"]["predictor"]
    served = served_model(stable)
    if served is None:
        raise ConfigError(
            f"the InferenceService {endpoint.name} in {endpoint.namespace} isn't clipmill's",
            expected="an endpoint of the chart or of an earlier rollout",
            action="choose another name with --endpoint, or delete it",
        )
    _require_task(endpoint, model, served)
    run.ensure_service(current)
    with exiting_on_sigterm(), run.kept_awake(current):
        if model.is_same_as(served):
            return run.confirm(current)
        return run.replace(current)


def _require_task(
    endpoint: InferenceServiceConfig, model: PromotedModel, served: PromotedModel
) -> None:
    task = served.task or _read_task(served.uri)
    if task and task != model.task:
        raise ConfigError(
            f"endpoint {endpoint.name} serves the task {task}, and the model's is {model.task}",
            expected=f"a {task} model, or another endpoint",
            action=f"deploy it to the endpoint of {model.task}, such as --endpoint {model.task}",
        )


def _read_task(uri: str) -> str:
    """Return a checkpoint's task; empty where it can't be read any more, which a rollout mends."""
    try:
        return str(read_metadata(uri).architecture.get("task", ""))
    except (StorageError, ArtifactError) as error:
        _logger.warning("the served model's task is unknown: %s", error)
        return ""


@dataclass(kw_only=False)
class _Rollout:
    """One rollout: what its steps share."""

    endpoint: InferenceServiceConfig
    model: PromotedModel
    api: ClusterApi
    check_answers: CheckAnswers
    error_ratio: ErrorRatio | None
    config: RolloutConfig

    def create(self) -> Rollout:
        """Make the endpoint, and wait until it answers; it stays for inspection if it doesn't."""
        settings = predictor_settings(self.endpoint, self.api)
        resource = inference_service(self.endpoint, self.model, settings)
        created = self.api.create(INFERENCE_SERVICE, self.endpoint.namespace, resource)
        self.ensure_service(created)
        evidence = self._check_stable(resource)
        return self._result(changed=True, evidence=(evidence, self._describe_way_in()))

    def confirm(self, current: dict[str, Any]) -> Rollout:
        """Wait until the endpoint, which has the model, answers; remove a canary left behind."""
        if current["spec"].get("canary"):
            self._patch({"spec": {"canary": []}})
        return self._result(changed=False, evidence=(self._check_stable(current),))

    def replace(self, current: dict[str, Any]) -> Rollout:
        """Judge the model as a canary, then put it into the stable predictor's place."""
        stable, labels = current["spec"]["predictor"], current["metadata"].get("labels", {})
        self._require_pods(stable)
        evidence: list[str] = []
        with exiting_on_sigterm(), self._undoing({"spec": {"canary": []}}):
            evidence += self._judge(stable)
            self._require_unchanged(stable)
        # The stable pods are replaced one by one: KServe keeps the Deployment, whose name stays.
        before, fields = _model_fields(stable), promoted_fields(stable, self.model)
        undo = _promotion_patch(before, {key: labels.get(key) for key in REGISTRY_LABELS})
        with exiting_on_sigterm(), self._undoing(undo):
            of_model = {key: self.model.labels.get(key) for key in REGISTRY_LABELS}
            current = self._patch(_promotion_patch(fields, of_model))
            evidence.append(self._check_stable(current))
        return self._result(changed=True, evidence=tuple(evidence))

    @contextmanager
    def kept_awake(self, current: dict[str, Any]) -> Iterator[None]:
        """Keep a pod of an endpoint that scales to zero: its checks don't pass the add-on."""
        annotations = current["metadata"].get("annotations") or {}
        resource = (HTTP_SCALED_OBJECT, self.endpoint.namespace, self.endpoint.name)
        is_external = annotations.get(AUTOSCALER_ANNOTATION) == "external"
        scaled = self.api.get(*resource) if is_external else None
        if scaled is None or scaled["spec"].get("replicas", {}).get("min", 0) > 0:
            yield
            return
        self.api.patch(*resource, {"spec": {"replicas": {"min": 1}}})
        try:
            yield
        finally:
            try:
                self.api.patch(*resource, {"spec": {"replicas": {"min": 0}}})
            except ClipmillError as error:
                _logger.warning(
                    "%s keeps a pod: set spec.replicas.min of its HTTPScaledObject to 0: %s",
                    self.endpoint.name,
                    error,
                )

    def ensure_service(self, owner: dict[str, Any]) -> None:
        """Make the endpoint's Service, or correct what it selects."""
        wanted = endpoint_service(self.endpoint, owner)
        resource = (SERVICE, self.endpoint.namespace, self.endpoint.service_name)
        current = self.api.get(*resource)
        if current is None:
            self.api.create(SERVICE, self.endpoint.namespace, wanted)
        elif current["spec"].get("selector") != wanted["spec"]["selector"]:
            selector = dict.fromkeys(current["spec"].get("selector") or {})
            patch = {"selector": {**selector, **wanted["spec"]["selector"]}}
            self.api.patch(*resource, {"spec": patch})

    def _judge(self, stable: dict[str, Any]) -> Iterator[str]:
        entry = self._set_canary(stable, 0)
        self._wait_until_serving(CANARY, model_annotation(entry["predictor"]))
        yield "canary: " + self.check_answers(
            predictor_url(self.api, self.endpoint, canary_name(self.model))
        )
        if self.error_ratio is None:
            yield "canary: without a Prometheus it got no share of the requests"
            return
        if not self._has_route(lambda _: True, self.config.route_seconds):
            yield "canary: no gateway accepted the route, so it got no share of the requests"
            return
        try:
            for percent in self.config.traffic_percents:
                yield self._observe(stable, percent, self.error_ratio)
        finally:
            # KServe removes a canary's Service before it changes the route.
            with suppress(ClipmillError):
                self._set_canary(stable, 0)
                self._has_route(lambda route: self._canary_share(route) == 0, _DRAIN_SECONDS)

    def _observe(self, stable: dict[str, Any], percent: int, error_ratio: ErrorRatio) -> str:
        self._set_canary(stable, percent)
        seconds = self.config.route_seconds
        if not self._has_route(lambda route: self._canary_share(route) >= percent, seconds):
            raise GateError(
                f"the route of {self.endpoint.name} didn't give the canary {percent} % of the "
                f"requests within {seconds:g} seconds",
                expected="a gateway that accepts the HTTPRoute with its weights",
                action=f"run `kubectl -n {self.endpoint.namespace} describe httproute "
                f"{self.endpoint.name}`",
            )
        end = time.monotonic() + self.config.observation_seconds
        worst = None
        while True:
            ratio = error_ratio(self.endpoint, CANARY)
            worst = ratio if worst is None else max(worst, ratio or 0.0)
            if (worst or 0.0) > self.config.max_error_ratio:
                raise GateError(
                    f"the canary failed {worst:.1%} of its requests",
                    expected=f"at most {self.config.max_error_ratio:.1%}",
                    action="read the canary's logs, and fix the model or its server",
                )
            if time.monotonic() >= end:
                break
            time.sleep(self.config.poll_interval_seconds)
        counted = "Prometheus counted none" if worst is None else f"at most {worst:.1%} failed"
        return (
            f"canary: {percent} % of the gateway's requests for "
            f"{self.config.observation_seconds:g} s: {counted}"
        )

    def _set_canary(self, stable: dict[str, Any], percent: int) -> dict[str, Any]:
        entry = canary(stable, self.model, percent)
        self._patch({"spec": {"canary": [entry]}})
        return entry

    def _check_stable(self, current: dict[str, Any]) -> str:
        self._wait_until_serving(STABLE, model_annotation(current["spec"]["predictor"]))
        # A pod of the model before would answer for this one.
        end = time.monotonic() + _STOP_SECONDS
        while stopping_pods(self.api, self.endpoint, STABLE) and time.monotonic() < end:
            time.sleep(self.config.poll_interval_seconds)
        return f"{self.endpoint.url}: {self.check_answers(self.endpoint.url)}"

    def _describe_way_in(self) -> str:
        """Return the address outside the cluster, or why there is none yet; pods serve anyway."""
        end = time.monotonic() + self.config.route_seconds
        while True:
            resource = (INFERENCE_SERVICE, self.endpoint.namespace, self.endpoint.name)
            status = (self.api.get(*resource) or {}).get("status") or {}
            states = {c["type"]: c for c in status.get("conditions", [])}
            if states.get("Ready", {}).get("status") == "True":
                return f"KServe's route: {status.get('url') or 'none'}"
            if time.monotonic() >= end:
                ingress = states.get("IngressReady", {})
                reason = ingress.get("message") or ingress.get("reason") or "no gateway accepted it"
                return (
                    f"KServe's route isn't ready after {self.config.route_seconds:g} s, so it can "
                    f"be reached inside the cluster only: {reason}"
                )
            time.sleep(self.config.poll_interval_seconds)

    def _wait_until_serving(self, track: str, annotation: str) -> None:
        end = time.monotonic() + self.config.ready_seconds
        while not are_serving(pods := live_pods(self.api, self.endpoint, track), annotation):
            has_given_up = is_given_up(pods, annotation)
            if has_given_up or time.monotonic() >= end:
                reason = describe_failure(self.api, self.endpoint, pods)
                limit = f"wasn't ready within {self.config.ready_seconds:g} seconds"
                raise GateError(
                    f"the {track} predictor of {self.endpoint.name} "
                    f"{'does not start' if has_given_up else limit}: {reason}",
                    expected="pods that load the model",
                    action=f"run `{logs_command(self.endpoint, track)}`, and `kubectl -n "
                    f"{self.endpoint.namespace} describe inferenceservice {self.endpoint.name}`",
                )
            time.sleep(self.config.poll_interval_seconds)

    def _has_route(self, is_right: Callable[[dict[str, Any]], bool], seconds: float) -> bool:
        """Return whether a gateway has accepted a route that is right, within so many seconds."""
        end = time.monotonic() + seconds
        while True:
            route = accepted_route(self.api, self.endpoint)
            if route is not None and is_right(route):
                return True
            if time.monotonic() >= end:
                return False
            time.sleep(self.config.poll_interval_seconds)

    def _canary_share(self, route: dict[str, Any]) -> int:
        service = f"{self.endpoint.name}-{canary_name(self.model)}-predictor"
        return traffic_percent(route, service)

    def _require_pods(self, stable: dict[str, Any]) -> None:
        # KServe refuses a canary with more pods than the stable predictor's least.
        if stable.get("minReplicas", 1) < 1:
            raise ConfigError(
                f"endpoint {self.endpoint.name} has minReplicas 0",
                expected="at least 1: KServe allows a canary no more pods than that",
                action="set minReplicas to 1 for the rollout",
            )

    def _require_unchanged(self, stable: dict[str, Any]) -> None:
        resource = (INFERENCE_SERVICE, self.endpoint.namespace, self.endpoint.name)
        current = self.api.get(*resource) or {"spec": {"predictor": {}}}
        if _model_fields(current["spec"]["predictor"]) != _model_fields(stable):
            raise GateError(
                f"the model of {self.endpoint.name} was changed by someone else meanwhile",
                expected="one rollout or helm upgrade at a time",
                action="deploy again, if this model should still serve",
            )

    @contextmanager
    def _undoing(self, patch: dict[str, Any]) -> Iterator[None]:
        """Apply the patch on any error, an interrupt too: the model before serves on, alone."""
        try:
            yield
        except BaseException as error:
            remains = self._undo(patch)
            if isinstance(error, UserError) and not isinstance(error, ClusterError):
                raise GateError(
                    f"{self.model.uri} was refused by {self.endpoint.name}: {error.what}{remains}",
                    expected=error.expected,
                    action=error.action,
                ) from error
            if remains and isinstance(error, UserError):
                raise ClusterError(
                    error.what + remains, expected=error.expected, action=error.action
                ) from error
            raise

    def _undo(self, patch: dict[str, Any]) -> str:
        """Patch, again where that fails; return what remains to be done by hand."""
        for attempt in range(_UNDO_ATTEMPTS):
            try:
                self._patch(patch)
            except ClipmillError as error:
                _logger.warning("the canary of %s isn't removed: %s", self.endpoint.name, error)
                time.sleep(min(self.config.poll_interval_seconds * 2**attempt, _UNDO_SECONDS))
            else:
                return ""
        return (
            "\n  the canary still stands; remove it with `kubectl -n "
            f"{self.endpoint.namespace} patch inferenceservice {self.endpoint.name} --type merge "
            """-p '{"spec":{"canary":[]}}'`"""
        )

    def _patch(self, patch: dict[str, Any]) -> dict[str, Any]:
        return self.api.patch(INFERENCE_SERVICE, self.endpoint.namespace, self.endpoint.name, patch)

    def _result(self, *, changed: bool, evidence: tuple[str, ...]) -> Rollout:
        return Rollout(
            endpoint=self.endpoint.name,
            url=self.endpoint.url,
            digest=self.model.digest,
            changed=changed,
            evidence=evidence,
        )


def _promotion_patch(predictor: dict[str, Any], labels: Mapping[str, str | None]) -> dict[str, Any]:
    """Return the patch that puts a model into the stable predictor's place, without a canary."""
    return {
        "metadata": {"labels": dict(labels)},
        "spec": {"canary": [], "predictor": predictor},
    }


def _model_fields(predictor: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that a promotion changes, as a merge patch would restore them."""
    model = predictor.get("model", {})
    return {
        "annotations": {MODEL_ANNOTATION: model_annotation(predictor) or None},
        "model": {key: model.get(key) for key in ("env", "storageUri", "storage")},
    }
