"""KServe on the small API of ``kubernetes_api``: its webhook's rules, and what its controller does.

The rules and their messages are those of KServe's ``inference_service_validation.go`` (0.21); the
controller makes pods, Services and routes at once, replaces stable pods one by one, and deletes the
Deployment of a predictor that isn't named any more.
"""

import copy
from collections.abc import Callable

from helpers.kubernetes_api import ApiServer

WEBHOOK = "inferenceservice.kserve-webhook-server.validator"
ISVC = "/apis/serving.kserve.io/v1beta1/namespaces/ml/inferenceservices/"
RUNTIME = "/apis/serving.kserve.io/v1alpha1/namespaces/ml/servingruntimes/"
ROUTE = "/apis/gateway.networking.k8s.io/v1/namespaces/ml/httproutes/"
SERVICE = "/api/v1/namespaces/ml/services/"


def predictor_has_no_container_name(new: dict, old: dict | None) -> str:
    if new["spec"]["predictor"].get("model", {}).get("name"):
        return "the 'name' field is not allowed in standard predictor"
    return ""


def name_changes_with_the_model(new: dict, old: dict | None) -> str:
    if old is None:
        return ""
    before, after = (r["spec"]["predictor"] for r in (old, new))
    uris = [p.get("model", {}).get("storageUri", "") for p in (before, after)]
    if before.get("name", "") != after.get("name", "") and uris[0] == uris[1]:
        return "predictor.name change requires a model change (e.g. storageUri)"
    return ""


def storage_of_an_image_is_its_uri(new: dict, old: dict | None) -> str:
    model = new["spec"]["predictor"].get("model", {})
    if "storage" in model and model.get("storageUri", "s3://").startswith("oci"):
        return f"storage, must be one of: [s3://, ...]. storageUri [{model['storageUri']}]"
    return ""


def keda_metrics_have_a_value(new: dict, old: dict | None) -> str:
    if new["metadata"]["annotations"].get("serving.kserve.io/autoscalerClass") != "keda":
        return ""
    for metric in new["spec"]["predictor"].get("autoScaling", {}).get("metrics", []):
        if not metric["external"]["metric"].get("query"):
            return "the query should not be empty"
        if "value" not in metric["external"]["target"]:
            return "the target threshold value should not be empty"
    return ""


def canaries_are_small_and_named(new: dict, old: dict | None) -> str:
    stable = new["spec"]["predictor"]
    canaries = new["spec"].get("canary", [])
    mode = new["metadata"]["annotations"].get("serving.kserve.io/deploymentMode")
    if canaries and mode != "Standard":
        return "canary is only supported in Standard deployment mode"
    for number, entry in enumerate(canaries):
        predictor = entry["predictor"]
        name = predictor.get("name", "")
        if not name:
            return f"canary[{number}] predictor.name is required"
        if name == stable.get("name"):
            return f'canary predictor.name "{name}" conflicts with stable predictor name'
        if not 0 <= entry["trafficPercent"] <= 100:
            return f'canary "{name}" trafficPercent must be between 0 and 100'
        for key in ("maxReplicas", "scaleTarget", "scaleMetric", "autoScaling"):
            if predictor.get(key):
                return f'canary "{name}" must not set {key} (canary uses fixed replicas)'
        least = stable.get("minReplicas", 1)
        if predictor.get("minReplicas", 0) > least:
            return (
                f'canary "{name}" minReplicas ({predictor["minReplicas"]}) must not exceed stable '
                f"predictor minReplicas ({least})"
            )
        # The definition's own rule, of the API server's schema.
        if not {"name", "modelFormat"} <= predictor["model"].keys():
            return "spec.canary[0].predictor.model: Required value"
    return ""


RULES: tuple[Callable[[dict, dict | None], str], ...] = (
    predictor_has_no_container_name,
    name_changes_with_the_model,
    storage_of_an_image_is_its_uri,
    keda_metrics_have_a_value,
    canaries_are_small_and_named,
)


def refusal(new: dict, old: dict | None) -> str:
    """The message of the first rule that the resource breaks, or nothing."""
    return next((text for rule in RULES if (text := rule(new, old))), "")


class KServe:
    """The controller; a test says which models load, and whether there is a gateway."""

    def __init__(self, server: ApiServer) -> None:
        self.server = server
        self.gateway = False
        self.broken: set[str] = set()
        self.states: dict[str, dict] = {}
        self.deployments: dict[str, list[dict]] = {}
        self.was_down = False
        server.admit = self._admit
        server.on_change = self._reconcile
        for name in ("clipmill-cpu", "clipmill-gpu"):
            server.resources[RUNTIME + name] = {"metadata": {"name": name}}

    def endpoint(self, name: str = "depth") -> dict:
        """The InferenceService as it stands."""
        return self.server.resources[ISVC + name]

    def service_pods(self, name: str = "depth") -> list[dict]:
        """The ready pods that the endpoint's Service selects."""
        wanted = self.server.resources[SERVICE + f"{name}-endpoint"]["spec"]["selector"].items()
        pods = [p for p in self.server.pods if wanted <= p["metadata"]["labels"].items()]
        return [p for p in pods if p["status"]["conditions"][0]["status"] == "True"]

    def _admit(self, new: dict, old: dict | None) -> str:
        if new.get("kind") != "InferenceService":
            return ""
        new["metadata"].setdefault("uid", "a-uid")
        text = refusal(new, old)
        return text and f'admission webhook "{WEBHOOK}" denied the request: {text}'

    def _reconcile(self, resource: dict) -> None:
        if resource.get("kind") != "InferenceService":
            return
        name = resource["metadata"]["name"]
        predictors = [resource["spec"]["predictor"]]
        predictors += [c["predictor"] for c in resource["spec"].get("canary", [])]
        before, self.deployments = self.deployments, {}
        for predictor in predictors:
            deployment = f"{name}-{predictor.get('name')}-predictor"
            pods = [self._pod(resource, predictor, deployment)]
            old = before.get(deployment, [])
            # Old pods of the same Deployment serve until the new one is ready.
            if old and not _is_ready(pods[0]) and old[0]["metadata"] != pods[0]["metadata"]:
                pods += [pod for pod in old if _is_ready(pod)]
            self.deployments[deployment] = pods
            self.server.resources[SERVICE + deployment] = {"spec": {"clusterIP": "10.0.0.1"}}
        self.server.pods = [pod for pods in self.deployments.values() for pod in pods]
        stable = self.deployments[f"{name}-{predictors[0].get('name')}-predictor"]
        had_pods = any(_is_ready(p) for pods in before.values() for p in pods)
        self.was_down |= had_pods and not any(_is_ready(pod) for pod in stable)
        is_up = any(_is_ready(pod) for pod in stable)
        resource["status"] = {
            "conditions": [{"type": "Ready", "status": str(is_up), "message": "no pod"}]
        }
        if self.gateway:
            self.server.resources[ROUTE + name] = self._route(name, resource)

    def _pod(self, resource: dict, predictor: dict, deployment: str) -> dict:
        variables = {v["name"]: v["value"] for v in predictor["model"].get("env", [])}
        is_broken = variables.get("MODEL_URI") in self.broken
        labels = {**resource["metadata"].get("labels", {}), **predictor.get("labels", {})}
        annotations = {**resource["metadata"]["annotations"], **predictor.get("annotations", {})}
        state = {"name": "kserve-container", "ready": not is_broken, "state": {"running": {}}}
        # KServe injects its agent, whose image isn't clipmill's to give.
        assert {"storage", "storageUri"} & predictor["model"].keys(), "a multi-model predictor"
        if is_broken:
            ended = {"reason": "Error", "exitCode": 2, "message": "no checkpoint at that URI\n"}
            state |= {
                "restartCount": 3,
                "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}},
                "lastState": {"terminated": ended},
            }
        return copy.deepcopy(
            {
                "metadata": {
                    "name": f"{deployment}-x1",
                    "labels": labels,
                    "annotations": annotations,
                },
                "status": {
                    "phase": "Running",
                    "conditions": [{"type": "Ready", "status": str(not is_broken)}],
                    "containerStatuses": [state],
                },
            }
        )

    def _route(self, name: str, resource: dict) -> dict:
        canaries = resource["spec"].get("canary", [])
        left = 100 - sum(c["trafficPercent"] for c in canaries)
        names = [resource["spec"]["predictor"].get("name")]
        names += [c["predictor"]["name"] for c in canaries]
        weights = [left, *(c["trafficPercent"] for c in canaries)]
        backends = [
            {"name": f"{name}-{n}-predictor", "weight": w}
            for n, w in zip(names, weights, strict=True)
        ]
        conditions = [{"type": "Accepted", "status": "True"}]
        return {
            "spec": {"rules": [{"backendRefs": backends}]},
            "status": {"parents": [{"conditions": conditions}]},
        }


def _is_ready(pod: dict) -> bool:
    return pod["status"]["conditions"][0]["status"] == "True"
