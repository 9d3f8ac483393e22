"""Findings of a snapshot: which parts a cluster has, and what keeps an installation from working.

Everything is computed from a :class:`~clipmill.cluster.doctor.snapshot.Snapshot`: no requests.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from clipmill.cluster.constants import POOL_LABEL, STORE_SECRET
from clipmill.cluster.doctor.snapshot import (
    WORKFLOW_ACCOUNT,
    Snapshot,
    namespaces_of,
)
from clipmill.cluster.doctor.values import EnabledParts
from clipmill.cluster.pools import PoolConfig, container_resources

OLDEST_KUBERNETES = (1, 31)
_GPU_RESOURCE = PoolConfig().gpu_resource
_TRAIN_JOB_FRAMEWORK = "trainer.kubeflow.org/trainjob"


class Status(StrEnum):
    """State of a part, from good to bad."""

    OK = "ok"
    ABSENT = "absent"
    """Not installed, and nothing that is turned on needs it."""
    UNKNOWN = "unknown"
    """The user may not read it."""
    LIMITED = "limited"
    """Works, without something that the documentation promises."""
    BROKEN = "broken"
    """A part that the values turn on can't work."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """Something that is missing, wrong or unreadable."""

    status: Status
    """Its severity."""
    message: str
    """The fact."""
    action: str = ""
    """Command that corrects it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A part of the cluster, or of the installation."""

    name: str
    """Name of the part."""
    needed_by: str
    """Features of clipmill that need it."""
    version: str = ""
    """Version of its controller; empty if unknown or not installed."""
    settings: str = ""
    """Settings that matter."""
    problems: tuple[Problem, ...] = ()
    """Missing and wrong things."""

    @property
    def status(self) -> Status:
        """Severity of the worst problem."""
        order = list(Status)
        return max((p.status for p in self.problems), key=order.index, default=Status.OK)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Component:
    """A controller with custom resources."""

    name: str
    resource: str
    """A resource that it serves, by which it is recognized."""
    needed_by: str
    install: str
    deployment: str = ""
    """Name of its controller's Deployment; empty where it varies."""
    crd: str = ""
    """CRD with the version in an annotation."""
    version_annotation: str = ""
    is_enabled: Callable[[EnabledParts], bool] = lambda _parts: False
    check: Callable[[Snapshot], tuple[str, list[Problem]]] | None = None
    """Returns the settings and problems of an installed component."""


def examine(snapshot: Snapshot) -> list[Part]:
    """Return all parts with their problems."""
    parts = _enabled_parts(snapshot)
    return [
        _kubernetes(snapshot),
        _installation(snapshot, parts),
        *(_component(component, snapshot, parts) for component in COMPONENTS),
        _gang_scheduler(snapshot, parts),
        _gpus(snapshot),
        _pools(snapshot, parts),
        _storage_class(snapshot, parts),
        _kube_state_metrics(snapshot, parts),
    ]


def _enabled_parts(snapshot: Snapshot) -> EnabledParts:
    """Return the parts that the values turn on; none without an installation."""
    return snapshot.parts or EnabledParts(
        pipelines=False,
        training=False,
        data_plane=False,
        serving=False,
        monitoring=False,
        needs_secret=False,
    )


def is_broken(parts: Sequence[Part]) -> bool:
    """Return whether a part that the values turn on can't work."""
    return any(part.status is Status.BROKEN for part in parts)


def _kubernetes(snapshot: Snapshot) -> Part:
    version = str((snapshot.body("version") or {}).get("gitVersion", ""))
    numbers = tuple(int(n) for n in re.findall(r"\d+", version)[:2])
    oldest = ".".join(map(str, OLDEST_KUBERNETES))
    problems = []
    if numbers and numbers < OLDEST_KUBERNETES:
        problems.append(
            Problem(
                status=Status.BROKEN,
                message=f"Kubernetes is older than {oldest}",
                action="upgrade the cluster",
            )
        )
    return Part(
        name="Kubernetes",
        version=version.removeprefix("v"),
        needed_by="everything",
        problems=(*problems, *_unreadable(snapshot, "discovery", "the API's resources")),
    )


def _installation(snapshot: Snapshot, parts: EnabledParts) -> Part:
    namespace = snapshot.namespace
    problems = _unreadable(snapshot, "installation", f"ConfigMaps in {namespace}")
    problems += _unreadable(snapshot, "namespace", f"the namespace {namespace}")
    config_map = snapshot.body("installation")
    labels = (config_map or {}).get("metadata", {}).get("labels", {})
    if config_map is None and not problems:
        problems.append(
            Problem(
                status=Status.ABSENT,
                message=f"no installation in namespace {namespace}: its values aren't checked",
                action="pass its namespace with -n, or the values that you plan with --values",
            )
        )
    if parts.needs_secret:
        tasks = [parts.task_namespace] if parts.pipelines else []
        for each in sorted({namespace, *tasks}):
            problems += _secret_problems(snapshot, each)
    enforced = pod_security(snapshot)
    return Part(
        name="clipmill",
        version=labels.get("app.kubernetes.io/version", ""),
        needed_by="everything",
        settings=f"namespace {namespace}, Pod Security {enforced or 'not enforced by a label'}",
        problems=tuple(problems),
    )


def _secret_problems(snapshot: Snapshot, namespace: str) -> list[Problem]:
    if snapshot.body(f"secret/{namespace}") is not None:
        return []
    forbidden = _unreadable(snapshot, f"secret/{namespace}", f"secrets in {namespace}")
    return forbidden or [
        Problem(
            status=Status.BROKEN,
            message=f"{namespace} has no secret {STORE_SECRET} with the store's keys",
            action=f"kubectl -n {namespace} create secret generic {STORE_SECRET} "
            "--from-literal=AWS_ACCESS_KEY_ID=... --from-literal=AWS_SECRET_ACCESS_KEY=...",
        )
    ]


def pod_security(snapshot: Snapshot) -> str:
    """Return the Pod Security level that the namespace's label enforces; empty without one."""
    labels = (snapshot.body("namespace") or {}).get("metadata", {}).get("labels") or {}
    return str(labels.get("pod-security.kubernetes.io/enforce", ""))


def _component(component: _Component, snapshot: Snapshot, parts: EnabledParts) -> Part:
    is_enabled = component.is_enabled(parts)
    part = {"name": component.name, "needed_by": component.needed_by}
    if not snapshot.has(component.resource):
        if snapshot.body("discovery") is None:
            problem = Problem(status=Status.UNKNOWN, message="the API's resources are unreadable")
        else:
            problem = Problem(
                status=Status.BROKEN if is_enabled else Status.ABSENT,
                message=f"not installed: the API has no {component.resource}",
                action=component.install,
            )
        return Part(**part, problems=(problem,))
    version, problems = _controller(component, snapshot, is_enabled=is_enabled)
    settings = ""
    if component.check is not None:
        settings, more = component.check(snapshot)
        # What is wrong with a part that nothing needs breaks nothing.
        problems += more if is_enabled else [_weaken(problem) for problem in more]
    return Part(**part, version=version, settings=settings, problems=tuple(problems))


def _weaken(problem: Problem) -> Problem:
    if problem.status is not Status.BROKEN:
        return problem
    return Problem(status=Status.LIMITED, message=problem.message, action=problem.action)


def _controller(
    component: _Component, snapshot: Snapshot, *, is_enabled: bool
) -> tuple[str, list[Problem]]:
    """Return the version of a component, and what is wrong with its controller."""
    if component.crd:
        for crd in snapshot.items("crds"):
            if crd["metadata"]["name"] == component.crd:
                annotations = crd["metadata"].get("annotations") or {}
                version = str(annotations.get(component.version_annotation, ""))
                return version.removeprefix("v"), []
        return "", _unreadable(snapshot, "crds", "CRDs, which tell the version")
    if not component.deployment:
        return "", []
    name = f"deployment/{component.deployment}"
    deployments = snapshot.items(name)
    if not deployments:
        forbidden = _unreadable(snapshot, name, "Deployments of all namespaces")
        return "", forbidden or [
            Problem(
                status=Status.BROKEN if is_enabled else Status.LIMITED,
                message=f"its resources are known, but no Deployment {component.deployment} runs",
                action=component.install,
            )
        ]
    problems = [
        Problem(
            status=Status.BROKEN if is_enabled else Status.LIMITED,
            message=f"Deployment {d['metadata']['namespace']}/{component.deployment} has no "
            "available pod",
            action=f"kubectl -n {d['metadata']['namespace']} describe deployment,pods "
            f"-l {_selector_text(d)}",
        )
        for d in deployments
        if not d.get("status", {}).get("availableReplicas")
    ]
    return ", ".join(sorted({_image_tag(d) for d in deployments} - {""})), problems


def _image_tag(deployment: Mapping[str, Any]) -> str:
    image = str(deployment["spec"]["template"]["spec"]["containers"][0]["image"])
    _, _, tag = image.partition("@")[0].rpartition("/")[2].partition(":")
    return tag.removeprefix("v")


def _selector_text(deployment: Mapping[str, Any]) -> str:
    labels = deployment["spec"]["selector"].get("matchLabels", {})
    return ",".join(f"{k}={v}" for k, v in labels.items())


def _unreadable(snapshot: Snapshot, name: str, what: str) -> list[Problem]:
    if snapshot.is_forbidden(name):
        return [Problem(status=Status.UNKNOWN, message=f"not allowed to read {what}")]
    failure = snapshot.failure(name)
    return [Problem(status=Status.UNKNOWN, message=f"can't read {what}: {failure}")] * bool(failure)


def _arguments(deployment: Mapping[str, Any]) -> list[str]:
    containers = deployment["spec"]["template"]["spec"]["containers"]
    return [a for c in containers for a in [*(c.get("command") or []), *(c.get("args") or [])]]


def _pipelines(snapshot: Snapshot) -> tuple[str, list[Problem]]:
    servers = snapshot.items("deployment/ml-pipeline")
    if not servers:
        return "", []
    (home, *_) = namespaces_of(servers)
    is_native = any("--pipelinesStoreKubernetes=true" in _arguments(d) for d in servers)
    is_multi_user = bool(snapshot.items("deployment/kubeflow-pipelines-profile-controller"))
    problems = []
    if not is_native:
        problems.append(
            Problem(
                status=Status.BROKEN,
                message="it keeps pipelines in its database, and doesn't show the chart's",
                action=_PIPELINES_INSTALL,
            )
        )
    parts = snapshot.parts
    if parts is not None:
        problems += _pipelines_placement(parts, home, is_multi_user=is_multi_user)
        _, _, task_namespace, account = parts.task_user.split(":")
        problems += _access_problems(
            snapshot,
            "access/tasks",
            f"{account} of {task_namespace}, which runs pipelines' tasks, may not create "
            f"InferenceServices in {snapshot.namespace}: deploy tasks fail",
            "helm upgrade ... --set pipelines.kubeflow.grantAccess=true",
        )
    mode = "Kubernetes-native" if is_native else "database"
    users = "multi-user" if is_multi_user else "single-user"
    return f"{mode} mode, {users}, namespace {home}", problems


def _pipelines_placement(parts: EnabledParts, home: str, *, is_multi_user: bool) -> list[Problem]:
    """Return what keeps the pipelines' namespace from being the one that the UI shows."""
    if parts.multi_user != is_multi_user:
        users = "multi-user" if is_multi_user else "single-user"
        namespace = "PROFILE" if is_multi_user else home
        return [
            Problem(
                status=Status.BROKEN,
                message=f"it is {users}, and pipelines.kubeflow.multiUser is "
                f"{str(parts.multi_user).lower()}",
                action="helm upgrade ... --set pipelines.kubeflow.multiUser="
                f"{str(is_multi_user).lower()},pipelines.kubeflow.namespace={namespace}",
            )
        ]
    if not is_multi_user and parts.task_namespace != home:
        return [
            Problem(
                status=Status.BROKEN,
                message=f"pipelines are installed in {parts.task_namespace}; a single-user "
                f"installation shows those of its own namespace, {home}",
                action=f"helm upgrade ... --set pipelines.kubeflow.namespace={home}",
            )
        ]
    return []


def _access_problems(snapshot: Snapshot, name: str, message: str, action: str) -> list[Problem]:
    if name not in snapshot.answers:
        return []
    review = snapshot.body(name)
    if review is None:
        return _unreadable(snapshot, name, "what service accounts may do")
    if review.get("status", {}).get("allowed"):
        return []
    return [Problem(status=Status.LIMITED, message=message, action=action)]


def _argo(snapshot: Snapshot) -> tuple[str, list[Problem]]:
    controllers = snapshot.items("deployment/workflow-controller")
    scopes = [_argo_scope(controller) for controller in controllers]
    namespace = snapshot.namespace
    problems = []
    if scopes and not any(scope in ("", namespace) for scope in scopes):
        problems.append(
            Problem(
                status=Status.BROKEN,
                message=f"its controllers run workflows of {', '.join(scopes)} only: data "
                f"workflows in {namespace} never start",
                action=f"install another for {namespace}: {_argo_install(namespace)}",
            )
        )
    problems += [
        Problem(status=Status.BROKEN, message=p.message, action=p.action)
        if p.status is Status.LIMITED
        else p
        for p in _access_problems(
            snapshot,
            "access/workflow",
            f"the service account {WORKFLOW_ACCOUNT} may not create workflowtaskresults: every "
            "pod of a data workflow fails",
            "helm upgrade with dataPlane.enabled=true",
        )
    ]
    where = [f"namespace {scope}" if scope else "all namespaces" for scope in scopes]
    return f"runs workflows of {', '.join(where)}" if where else "", problems


def _argo_scope(controller: Mapping[str, Any]) -> str:
    """Return the only namespace that a controller works in; empty for all."""
    arguments = _arguments(controller)
    for index, argument in enumerate(arguments):
        name, _, value = argument.partition("=")
        if name == "--managed-namespace":
            return value or arguments[index + 1]
    if "--namespaced" in arguments:
        return str(controller["metadata"]["namespace"])
    return ""


def _kserve(snapshot: Snapshot) -> tuple[str, list[Problem]]:
    homes = namespaces_of(snapshot.items("deployment/kserve-controller-manager"))
    home = homes[0] if homes else "kserve"
    name = f"configmap/{home}/inferenceservice-config"
    data = (snapshot.body(name) or {}).get("data") or {}
    problems = _unreadable(snapshot, name, f"ConfigMaps in {home}")
    settings = []
    if data:
        ingress = json.loads(data.get("ingress", "{}"))
        mode = json.loads(data.get("deploy", "{}")).get("defaultDeploymentMode", "")
        settings = [f"default mode {mode}" if mode else "", *_ingress_settings(ingress)]
        problems += _ingress_problems(snapshot, ingress, home)
    return ", ".join(filter(None, settings)), problems


def _ingress_settings(ingress: Mapping[str, Any]) -> list[str]:
    gateway = ingress.get("kserveIngressGateway", "")
    by_gateway = bool(ingress.get("enableGatewayApi"))
    return [
        f"gateway {gateway}" if by_gateway else f"ingress class {ingress.get('ingressClassName')}",
        f"domain {ingress.get('ingressDomain', 'example.com')}",
        f"disableIstioVirtualHost {str(bool(ingress.get('disableIstioVirtualHost'))).lower()}",
    ]


def _ingress_problems(snapshot: Snapshot, ingress: Mapping[str, Any], home: str) -> list[Problem]:
    edit = f"kubectl -n {home} edit configmap inferenceservice-config"
    problems = []
    if not ingress.get("enableGatewayApi"):
        problems.append(
            Problem(
                status=Status.LIMITED,
                message=f"KServe makes no routes of the Gateway API: {_WITHOUT_GATEWAY}",
                action=f"install a gateway, and set enableGatewayApi under ingress: {edit}",
            )
        )
    else:
        problems += _gateway_problems(snapshot, str(ingress.get("kserveIngressGateway", "")), edit)
    if not ingress.get("disableIstioVirtualHost") and not snapshot.has(
        "virtualservices.networking.istio.io"
    ):
        problems.append(
            Problem(
                status=Status.LIMITED,
                message="disableIstioVirtualHost is false, and Istio isn't installed: each "
                "InferenceService gets a warning event",
                action=f"set disableIstioVirtualHost under ingress: {edit}",
            )
        )
    return problems


_WITHOUT_GATEWAY = (
    "endpoints have only their address in the cluster, and a canary gets no share of the requests"
)


def _gateway_problems(snapshot: Snapshot, gateway: str, edit: str) -> list[Problem]:
    forbidden = _unreadable(snapshot, "gateways", "Gateways of all namespaces")
    if forbidden:
        return forbidden
    for resource in snapshot.items("gateways"):
        metadata = resource["metadata"]
        if f"{metadata['namespace']}/{metadata['name']}" == gateway:
            if _has_condition(resource, "Programmed"):
                return []
            return [
                Problem(
                    status=Status.LIMITED,
                    message=f"the Gateway {gateway} isn't programmed: {_WITHOUT_GATEWAY}",
                    action=f"kubectl -n {metadata['namespace']} describe gateway "
                    f"{metadata['name']}",
                )
            ]
    return [
        Problem(
            status=Status.LIMITED,
            message=f"the Gateway {gateway} doesn't exist: {_WITHOUT_GATEWAY}",
            action=f"create it, or name another as kserveIngressGateway: {edit}",
        )
    ]


def _has_condition(resource: Mapping[str, Any], kind: str) -> bool:
    conditions = (resource.get("status") or {}).get("conditions") or []
    return any(c["type"] == kind and c["status"] == "True" for c in conditions)


def _gateway_api(snapshot: Snapshot) -> tuple[str, list[Problem]]:
    classes = {
        c["metadata"]["name"]: _has_condition(c, "Accepted")
        for c in snapshot.items("gatewayclasses")
    }
    problems = _unreadable(snapshot, "gatewayclasses", "GatewayClasses")
    if not any(classes.values()) and not problems:
        problems.append(
            Problem(
                status=Status.BROKEN,
                message="no GatewayClass is accepted: no implementation is installed",
                action="helm install eg oci://docker.io/envoyproxy/gateway-helm --version v1.8.1 "
                "-n envoy-gateway-system --create-namespace",
            )
        )
    return f"classes {', '.join(sorted(classes))}" if classes else "", problems


def _kueue(snapshot: Snapshot) -> tuple[str, list[Problem]]:
    import yaml

    homes = namespaces_of(snapshot.items("deployment/kueue-controller-manager"))
    home = homes[0] if homes else "kueue-system"
    name = f"configmap/{home}/kueue-manager-config"
    problems = _unreadable(snapshot, name, f"ConfigMaps in {home}")
    data = (snapshot.body(name) or {}).get("data") or {}
    settings = []
    if data:
        config = yaml.safe_load(data.get("controller_manager_config.yaml", "")) or {}
        frameworks = (config.get("integrations") or {}).get("frameworks") or []
        excluded = (config.get("resources") or {}).get("excludeResourcePrefixes") or []
        selector = config.get("managedJobsNamespaceSelector")
        settings = [f"excluded prefixes {', '.join(excluded)}" if excluded else ""]
        settings += [f"namespaces {json.dumps(selector)}" if selector else ""]
        if _TRAIN_JOB_FRAMEWORK not in frameworks:
            problems.append(
                Problem(
                    status=Status.BROKEN,
                    message=f"{_TRAIN_JOB_FRAMEWORK} isn't among its frameworks: TrainJobs start "
                    "without admission",
                    action=f"add it to integrations.frameworks: kubectl -n {home} edit configmap "
                    "kueue-manager-config",
                )
            )
    problems += [
        Problem(
            status=Status.BROKEN,
            message=f"the LocalQueue {queue['metadata']['name']} isn't active",
            action=f"kubectl -n {snapshot.namespace} describe localqueue "
            f"{queue['metadata']['name']}",
        )
        for queue in snapshot.items("localqueues")
        if not _has_condition(queue, "Active")
    ]
    return ", ".join(filter(None, settings)), problems


def _prometheus(snapshot: Snapshot) -> tuple[str, list[Problem]]:
    problems = _unreadable(snapshot, "prometheuses", "Prometheuses of all namespaces")
    servers = snapshot.items("prometheuses")
    names = [f"{s['metadata']['namespace']}/{s['metadata']['name']}" for s in servers]
    if not servers and not problems:
        problems.append(
            Problem(
                status=Status.BROKEN,
                message="there is no Prometheus that reads monitors and rules",
                action=_PROMETHEUS_INSTALL,
            )
        )
    parts = _enabled_parts(snapshot)
    kinds = [("podmonitors", "podMonitor", "monitors")]
    if parts.monitor_kind == "ServiceMonitor":
        kinds = [("servicemonitors", "serviceMonitor", "monitors")]
    if parts.alerts:
        kinds.append(("prometheusrules", "rule", "rules"))
    for plural, prefix, noun in kinds if servers else []:
        labels = [r["metadata"].get("labels", {}) for r in snapshot.items(plural)]
        labels = labels or [{"app.kubernetes.io/name": "clipmill", **parts.monitor_labels}]
        if any(_selects(s, prefix, labels, snapshot) for s in servers):
            continue
        wanted = json.dumps(servers[0]["spec"].get(f"{prefix}Selector"))
        spaces = json.dumps(servers[0]["spec"].get(f"{prefix}NamespaceSelector"))
        expected = (servers[0]["spec"].get(f"{prefix}Selector") or {}).get("matchLabels", {})
        options = " ".join(f"--set monitoring.labels.{k}={v}" for k, v in expected.items())
        problems.append(
            Problem(
                status=Status.BROKEN,
                message=f"no Prometheus selects clipmill's {noun}: {names[0]} wants labels "
                f"{wanted} in namespaces {spaces}",
                action=f"helm upgrade ... {options}"
                if options
                else f"kubectl -n {servers[0]['metadata']['namespace']} edit prometheus "
                f"{servers[0]['metadata']['name']}",
            )
        )
    return f"Prometheus {', '.join(names)}" if names else "", problems


def _selects(
    server: Mapping[str, Any], prefix: str, labels: list[dict[str, str]], snapshot: Snapshot
) -> bool:
    """Return whether a Prometheus reads objects of these labels in the namespace."""
    spec = server["spec"]
    spaces = spec.get(f"{prefix}NamespaceSelector")
    if spaces is None:
        in_namespace = server["metadata"]["namespace"] == snapshot.namespace
    else:
        body = snapshot.body("namespace") or {"metadata": {}}
        in_namespace = matches(spaces, body["metadata"].get("labels") or {})
    selector = spec.get(f"{prefix}Selector")
    return in_namespace and selector is not None and all(matches(selector, one) for one in labels)


def matches(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Return whether a Kubernetes label selector matches labels; an empty one matches all."""
    if any(labels.get(k) != v for k, v in (selector.get("matchLabels") or {}).items()):
        return False
    for rule in selector.get("matchExpressions") or []:
        key, values = rule["key"], rule.get("values") or []
        is_match = {
            "In": labels.get(key) in values,
            "NotIn": labels.get(key) not in values,
            "Exists": key in labels,
            "DoesNotExist": key not in labels,
        }[rule["operator"]]
        if not is_match:
            return False
    return True


def _gang_scheduler(snapshot: Snapshot, parts: EnabledParts) -> Part:
    installed = {
        name: snapshot.has(resource)
        for name, resource in (
            ("coscheduling", "podgroups.scheduling.x-k8s.io"),
            ("volcano", "podgroups.scheduling.volcano.sh"),
        )
    }
    kinds = [name for name, is_there in installed.items() if is_there]
    problems = []
    if parts.training and not installed.get(parts.gang_scheduler, True):
        problems.append(
            Problem(
                status=Status.BROKEN,
                message=f"training.gangScheduler is {parts.gang_scheduler}, whose PodGroup isn't "
                "installed: TrainJobs make no pods",
                action=_GANG_INSTALLS[parts.gang_scheduler],
            )
        )
    elif not kinds:
        problems.append(
            Problem(
                status=Status.ABSENT,
                message="no PodGroup is installed: all nodes of a job start together only by Kueue",
                action=_GANG_INSTALLS["coscheduling"],
            )
        )
    return Part(
        name="Gang scheduling",
        needed_by="training.gangScheduler",
        settings=", ".join(kinds),
        problems=tuple(problems),
    )


def _gpus(snapshot: Snapshot) -> Part:
    nodes = snapshot.items("nodes")
    amounts = [int(node["status"].get("allocatable", {}).get(_GPU_RESOURCE, "0")) for node in nodes]
    problems = _unreadable(snapshot, "nodes", "nodes")
    if not any(amounts) and not problems:
        problems.append(
            Problem(
                status=Status.ABSENT,
                message=f"no node offers {_GPU_RESOURCE}: there is no GPU, or no device plugin",
                action=_DEVICE_PLUGIN_INSTALL,
            )
        )
    is_cut = bool(((snapshot.body("nodes") or {}).get("metadata") or {}).get("continue"))
    where = f"{sum(map(bool, amounts))} of {'the first ' if is_cut else ''}{len(nodes)} nodes"
    return Part(
        name="GPUs",
        needed_by="pools with GPUs",
        settings=f"{_GPU_RESOURCE} {sum(amounts)} on {where}" if nodes else "",
        problems=tuple(problems),
    )


def _pools(snapshot: Snapshot, parts: EnabledParts) -> Part:
    problems = []
    counts = []
    for name, pool in parts.pools.items():
        forbidden = _unreadable(snapshot, f"nodes/{name}", "nodes")
        problems += forbidden
        if not forbidden:
            nodes = snapshot.items(f"nodes/{name}")
            fitting = [node for node in nodes if _fits(pool, node)]
            counts.append(f"{name} {len(fitting)}")
            problems += _pool_problems(name, pool, nodes, num_fitting=len(fitting))
    return Part(
        name="Node pools",
        needed_by="training, data workflows, pipelines, endpoints",
        settings=f"nodes that fit: {', '.join(counts)}" if counts else "none: no installation",
        problems=tuple(dict.fromkeys(problems)),
    )


def _fits(pool: PoolConfig, node: Mapping[str, Any]) -> bool:
    from kubernetes.utils import parse_quantity

    allocatable = node["status"].get("allocatable") or {}
    return all(
        parse_quantity(allocatable.get(resource, "0")) >= parse_quantity(amount)
        for resource, amount in container_resources(pool)["requests"].items()
    )


def _pool_problems(
    name: str, pool: PoolConfig, nodes: Sequence[Mapping[str, Any]], *, num_fitting: int
) -> list[Problem]:
    if num_fitting:
        return []
    if not nodes:
        labels = " ".join(f"{k}={v}" for k, v in pool.node_selector.items())
        return [
            Problem(
                status=Status.LIMITED,
                message=f"no node has the labels of pool {name}: its pods stay Pending unless an "
                "autoscaler adds one",
                action=f"kubectl label node NODE {labels or POOL_LABEL + '=' + name}, or set "
                f"pools.{name}.nodeSelector to labels of your nodes",
            )
        ]
    if pool.gpus and not any(pool.gpu_resource in n["status"]["allocatable"] for n in nodes):
        return [
            Problem(
                status=Status.LIMITED,
                message=f"no node of pool {name} offers {pool.gpu_resource}: the device plugin "
                "isn't installed, or the nodes have no GPU",
                action=_DEVICE_PLUGIN_INSTALL,
            )
        ]
    requests = container_resources(pool)["requests"]
    wanted = ", ".join(f"{resource} {amount}" for resource, amount in requests.items())
    return [
        Problem(
            status=Status.LIMITED,
            message=f"no node of pool {name} has {wanted} allocatable: its pods stay Pending",
            action=f"lower pools.{name} in the values, or add larger nodes",
        )
    ]


def _storage_class(snapshot: Snapshot, parts: EnabledParts) -> Part:
    classes = snapshot.items("storageclasses")
    default = [
        c["metadata"]["name"]
        for c in classes
        if (c["metadata"].get("annotations") or {}).get(
            "storageclass.kubernetes.io/is-default-class"
        )
        == "true"
    ]
    problems = _unreadable(snapshot, "storageclasses", "storage classes")
    if not default and not problems:
        problems.append(
            Problem(
                status=Status.BROKEN if parts.needs_storage_class else Status.ABSENT,
                message="no storage class is the default: the embedded store's volume stays "
                "unbound",
                action="set objectStore.embedded.storageClass to one of "
                f"{', '.join(c['metadata']['name'] for c in classes) or 'a class you install'}",
            )
        )
    return Part(
        name="Storage class",
        needed_by="objectStore.embedded",
        settings=f"default {', '.join(default)}" if default else "",
        problems=tuple(problems),
    )


def _kube_state_metrics(snapshot: Snapshot, parts: EnabledParts) -> Part:
    name = "deployment/kube-state-metrics"
    is_needed = parts.monitoring and parts.alerts and parts.needs_kube_state_metrics
    deployments = snapshot.items(name)
    problems = _unreadable(snapshot, name, "Deployments of all namespaces")
    if not deployments and not problems:
        problems.append(
            Problem(
                status=Status.LIMITED if is_needed else Status.ABSENT,
                message="not installed: the alert EndpointRestarts never fires",
                action="helm install kube-state-metrics oci://ghcr.io/prometheus-community/charts/"
                "kube-state-metrics -n monitoring --create-namespace",
            )
        )
    return Part(
        name="kube-state-metrics",
        needed_by="the alert EndpointRestarts",
        version=", ".join(sorted({_image_tag(d) for d in deployments})),
        problems=tuple(problems),
    )


def _argo_install(namespace: str) -> str:
    return (
        f"kubectl -n {namespace} apply --server-side -f https://github.com/argoproj/"
        "argo-workflows/releases/download/v4.0.5/namespace-install.yaml"
    )


_PIPELINES_INSTALL = (
    'kubectl apply -k "github.com/kubeflow/pipelines/manifests/kustomize/env/cert-manager/'
    'platform-agnostic-k8s-native?ref=2.17.0"'
)
_PROMETHEUS_INSTALL = (
    "helm install kube-prometheus-stack oci://ghcr.io/prometheus-community/charts/"
    "kube-prometheus-stack -n monitoring --create-namespace"
)
_DEVICE_PLUGIN_INSTALL = (
    "kubectl create -f https://raw.githubusercontent.com/NVIDIA/k8s-device-plugin/v0.18.0/"
    "deployments/static/nvidia-device-plugin.yml"
)
_GANG_INSTALLS = {
    "coscheduling": "helm install scheduler-plugins scheduler-plugins "
    "--repo https://scheduler-plugins.sigs.k8s.io -n scheduler-plugins --create-namespace",
    "volcano": "kubectl apply -f https://raw.githubusercontent.com/volcano-sh/volcano/v1.15.1/"
    "installer/volcano-development.yaml",
}

COMPONENTS = (
    _Component(
        name="Kubeflow Pipelines",
        resource="pipelineversions.pipelines.kubeflow.org",
        deployment="ml-pipeline",
        needed_by="pipelines in the Kubeflow UI",
        install=_PIPELINES_INSTALL,
        is_enabled=lambda parts: parts.pipelines,
        check=_pipelines,
    ),
    _Component(
        name="Argo Workflows",
        resource="workflows.argoproj.io",
        deployment="workflow-controller",
        needed_by="data workflows, --executor argo",
        install="kubectl create namespace argo && kubectl -n argo apply --server-side -f "
        "https://github.com/argoproj/argo-workflows/releases/download/v4.0.5/install.yaml",
        is_enabled=lambda parts: parts.data_plane,
        check=_argo,
    ),
    _Component(
        name="Kubeflow Trainer",
        resource="trainjobs.trainer.kubeflow.org",
        deployment="kubeflow-trainer-controller-manager",
        needed_by="training on nodes, cluster submit",
        install="kubectl apply --server-side -k "
        '"https://github.com/kubeflow/trainer.git/manifests/overlays/manager?ref=v2.3.0"',
        is_enabled=lambda parts: parts.training,
    ),
    _Component(
        name="JobSet",
        resource="jobsets.jobset.x-k8s.io",
        deployment="jobset-controller-manager",
        needed_by="Kubeflow Trainer",
        install="kubectl apply --server-side -f https://github.com/kubernetes-sigs/jobset/"
        "releases/download/v0.12.0/manifests.yaml",
        is_enabled=lambda parts: parts.training,
    ),
    _Component(
        name="KServe",
        resource="inferenceservices.serving.kserve.io",
        deployment="kserve-controller-manager",
        needed_by="endpoints",
        install="helm install kserve-crd oci://ghcr.io/kserve/charts/kserve-crd --version v0.20.0 "
        "&& helm install kserve oci://ghcr.io/kserve/charts/kserve-resources --version v0.20.0 "
        "-n kserve --create-namespace --set kserve.controller.deploymentMode=Standard "
        "--set kserve.controller.gateway.disableIstioVirtualHost=true",
        is_enabled=lambda parts: parts.serving,
        check=_kserve,
    ),
    _Component(
        name="Gateway API",
        resource="httproutes.gateway.networking.k8s.io",
        crd="httproutes.gateway.networking.k8s.io",
        version_annotation="gateway.networking.k8s.io/bundle-version",
        needed_by="canary traffic, the demo's route",
        install="kubectl apply --server-side -f https://github.com/kubernetes-sigs/gateway-api/"
        "releases/download/v1.5.1/standard-install.yaml",
        is_enabled=lambda parts: bool(parts.demo_gateway),
        check=_gateway_api,
    ),
    _Component(
        name="Prometheus Operator",
        resource="podmonitors.monitoring.coreos.com",
        crd="podmonitors.monitoring.coreos.com",
        version_annotation="operator.prometheus.io/version",
        needed_by="metrics, alerts",
        install=_PROMETHEUS_INSTALL,
        is_enabled=lambda parts: parts.monitoring,
        check=_prometheus,
    ),
    _Component(
        name="KEDA",
        resource="scaledobjects.keda.sh",
        deployment="keda-operator",
        needed_by="autoscaling of endpoints",
        install="kubectl apply --server-side -f https://github.com/kedacore/keda/releases/download/"
        "v2.18.0/keda-2.18.0.yaml",
        is_enabled=lambda parts: parts.autoscaling or parts.http_scaling,
    ),
    _Component(
        name="KEDA HTTP add-on",
        resource="httpscaledobjects.http.keda.sh",
        deployment="keda-add-ons-http-interceptor",
        needed_by="endpoints that scale to zero",
        install="helm install http-add-on keda-add-ons-http --repo "
        "https://kedacore.github.io/charts --version 0.15.0 --namespace keda --wait",
        is_enabled=lambda parts: parts.http_scaling,
    ),
    _Component(
        name="Kueue",
        resource="clusterqueues.kueue.x-k8s.io",
        deployment="kueue-controller-manager",
        needed_by="queues and quotas of training jobs",
        install="kubectl apply --server-side -f https://github.com/kubernetes-sigs/kueue/releases/"
        "download/v0.19.2/manifests.yaml",
        is_enabled=lambda parts: parts.kueue,
        check=_kueue,
    ),
    _Component(
        name="cert-manager",
        resource="certificates.cert-manager.io",
        deployment="cert-manager",
        needed_by="webhook certificates of Kubeflow Pipelines and KServe",
        install="kubectl apply -f https://github.com/cert-manager/cert-manager/releases/download/"
        "v1.17.0/cert-manager.yaml",
    ),
    _Component(
        name="metrics-server",
        resource="nodes.metrics.k8s.io",
        deployment="metrics-server",
        needed_by="kubectl top, autoscaling by CPU",
        install="kubectl apply -f https://github.com/kubernetes-sigs/metrics-server/releases/"
        "download/v0.8.1/components.yaml",
    ),
)
"""Components in the order of the table."""
