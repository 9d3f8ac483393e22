"""Doctor's findings on recorded clusters: a bare one, a full one, and full ones with one fault."""

import json
import re
from dataclasses import replace

import pytest
import yaml

from clipmill.cluster.doctor.checks import COMPONENTS, Status, examine, is_broken, matches
from clipmill.cluster.doctor.self_test import pod_outcome, self_test
from clipmill.cluster.doctor.snapshot import DEPLOYMENTS, Answer, Snapshot, collect
from clipmill.cluster.doctor.values import EnabledParts, installed_parts, read_parts
from clipmill.errors import ClusterError, ConfigError
from helpers.helm_chart import PROFILES, ROOT, profile, render

IMAGES = {
    "ml-pipeline": "ghcr.io/kubeflow/kfp-api-server:2.17.0",
    "workflow-controller": "quay.io/argoproj/workflow-controller:v4.1.2",
    "kserve-controller-manager": "kserve/kserve-controller:v0.21.0",
    "kubeflow-trainer-controller-manager": "ghcr.io/kubeflow/trainer/manager:v2.3.0",
    "jobset-controller-manager": "registry.k8s.io/jobset/jobset:v0.12.0@sha256:abc",
    "kueue-controller-manager": "registry.k8s.io/kueue/kueue:v0.19.2",
    "keda-operator": "ghcr.io/kedacore/keda:2.20.2",
    "keda-add-ons-http-interceptor": "ghcr.io/kedacore/http-add-on-interceptor:0.15.0",
    "cert-manager": "quay.io/jetstack/cert-manager-controller:v1.17.0",
    "metrics-server": "localhost:5000/metrics-server:v0.8.0",
    "kube-state-metrics": "registry.k8s.io/kube-state-metrics:v2.17.0",
}
RESOURCES = (
    "pipelineversions.pipelines.kubeflow.org",
    "workflows.argoproj.io",
    "trainjobs.trainer.kubeflow.org",
    "jobsets.jobset.x-k8s.io",
    "inferenceservices.serving.kserve.io",
    "httproutes.gateway.networking.k8s.io",
    "podmonitors.monitoring.coreos.com",
    "scaledobjects.keda.sh",
    "httpscaledobjects.http.keda.sh",
    "clusterqueues.kueue.x-k8s.io",
    "certificates.cert-manager.io",
    "nodes.metrics.k8s.io",
    "podgroups.scheduling.x-k8s.io",
)
ALL = EnabledParts(
    gang_scheduler="coscheduling",
    autoscaling=True,
    kueue=True,
    demo_gateway="public",
    needs_storage_class=True,
    needs_kube_state_metrics=True,
    pools=installed_parts(
        {"data": {"pools.json": json.dumps({"pools": {"cpu": {"cpu": 4}, "gpu": {"gpus": 1}}})}}
    ).pools,
)


def items(*resources):
    return {"items": list(resources)}


def discovery(resources):
    groups = {}
    for resource in resources:
        plural, _, group = resource.partition(".")
        groups.setdefault(group, []).append({"resource": plural})
    return items(
        *(
            {"metadata": {"name": g}, "versions": [{"version": "v1", "resources": r}]}
            for g, r in groups.items()
        )
    )


def named(name, namespace="", annotations=None, labels=None, **fields):
    metadata = {"name": name, "annotations": annotations or {}, "labels": labels or {}}
    return {"metadata": metadata | ({"namespace": namespace} if namespace else {}), **fields}


def condition(kind, status="True"):
    return {"conditions": [{"type": kind, "status": status}]}


def deployment(name, image, namespace, *arguments, available=1):
    container = {"image": image, "args": list(arguments)}
    spec = {
        "selector": {"matchLabels": {"app": name}},
        "template": {"spec": {"containers": [container]}},
    }
    return named(name, namespace, spec=spec, status={"availableReplicas": available})


HOMES = {"ml-pipeline": "kubeflow", "workflow-controller": "argo"}
ARGUMENTS = {"ml-pipeline": ["--pipelinesStoreKubernetes=true"]}
INGRESS = {
    "enableGatewayApi": True,
    "kserveIngressGateway": "kserve/gateway",
    "ingressDomain": "example.org",
    "disableIstioVirtualHost": True,
}
KUEUE = {"integrations": {"frameworks": ["trainer.kubeflow.org/trainjob"]}}
LABELS = {"app.kubernetes.io/name": "clipmill", "release": "prometheus"}
SELECT = {"matchLabels": {"release": "prometheus"}}
PROMETHEUS = {
    "podMonitorSelector": SELECT,
    "podMonitorNamespaceSelector": {},
    "ruleSelector": SELECT,
    "ruleNamespaceSelector": {"matchLabels": {"team": "ml"}},
}
NODE = {"allocatable": {"cpu": "8", "memory": "128Gi", "nvidia.com/gpu": "1"}}


def full():
    """Answers of a cluster with everything, as its API gives them (fields that are read)."""
    answers = {
        "version": {"gitVersion": "v1.34.4"},
        "discovery": discovery(RESOURCES),
        "installation": named("clipmill-pools", "ml", labels={"app.kubernetes.io/version": "0.2"}),
        "namespace": named(
            "ml", labels={"pod-security.kubernetes.io/enforce": "restricted", "team": "ml"}
        ),
        "secret/ml": named("clipmill-store", "ml"),
        "secret/kubeflow": named("clipmill-store", "kubeflow"),
        "crds": items(
            named(
                "httproutes.gateway.networking.k8s.io",
                annotations={"gateway.networking.k8s.io/bundle-version": "v1.5.1"},
            ),
            named(
                "podmonitors.monitoring.coreos.com",
                annotations={"operator.prometheus.io/version": "0.93.0"},
            ),
        ),
        "storageclasses": items(
            named(
                "standard",
                annotations={"storageclass.kubernetes.io/is-default-class": "true"},
            )
        ),
        "gatewayclasses": items(named("envoy", status=condition("Accepted"))),
        "gateways": items(named("gateway", "kserve", status=condition("Programmed"))),
        "prometheuses": items(named("k8s", "monitoring", spec=PROMETHEUS)),
        "podmonitors": items(named("clipmill-train", "ml", labels=LABELS)),
        "servicemonitors": items(),
        "prometheusrules": items(named("clipmill", "ml", labels=LABELS)),
        "localqueues": items(named("clipmill", "ml", status=condition("Active"))),
        "access/workflow": {"status": {"allowed": True}},
        "access/tasks": {"status": {"allowed": True}},
        "configmap/kserve/inferenceservice-config": {
            "data": {
                "ingress": json.dumps(INGRESS),
                "deploy": '{"defaultDeploymentMode": "Standard"}',
            }
        },
        "configmap/system/kueue-manager-config": {
            "data": {"controller_manager_config.yaml": yaml.safe_dump(KUEUE)}
        },
        "nodes": items(named("n1", status=NODE), named("n2", status={"allocatable": {}})),
        "nodes/cpu": items(named("n1", status=NODE)),
        "nodes/gpu": items(named("n1", status=NODE)),
    }
    homes = HOMES | {"kserve-controller-manager": "kserve"}
    for name in (*DEPLOYMENTS, "kube-state-metrics"):
        found = []
        if name in IMAGES:
            home = homes.get(name, "system")
            found = [deployment(name, IMAGES[name], home, *ARGUMENTS.get(name, []))]
        answers[f"deployment/{name}"] = items(*found)
    return answers


def snapshot(answers, parts=ALL, **statuses):
    """A snapshot of the answers; ``statuses`` gives names another status than 200."""
    made = {name: Answer(status=200, body=body) for name, body in answers.items()}
    for name, status in statuses.items():
        made[name] = Answer(status=status, body={"message": "no"})
    return Snapshot(namespace="ml", parts=parts, answers=made)


def problems(shot):
    return {
        (part.name, str(problem.status)): problem.message
        for part in examine(shot)
        for problem in part.problems
    }


def test_a_full_cluster_has_no_problem():
    parts = examine(snapshot(full()))
    assert [(p.name, q.message) for p in parts for q in p.problems] == []
    assert not is_broken(parts)
    versions = {part.name: part.version for part in parts}
    assert versions["Kubernetes"] == "1.34.4"
    assert versions["JobSet"] == "0.12.0"
    assert versions["metrics-server"] == "0.8.0"
    assert versions["Prometheus Operator"] == "0.93.0"
    settings = {part.name: part.settings for part in parts}
    assert settings["Kubeflow Pipelines"] == (
        "Kubernetes-native mode, single-user, namespace kubeflow"
    )
    assert settings["KServe"] == (
        "default mode Standard, gateway kserve/gateway, domain example.org, "
        "disableIstioVirtualHost true"
    )
    assert settings["GPUs"] == "nvidia.com/gpu 1 on 1 of 2 nodes"
    assert settings["Node pools"] == "nodes that fit: cpu 1, gpu 1"
    assert settings["clipmill"] == "namespace ml, Pod Security restricted"


def test_a_bare_cluster_lacks_what_the_values_turn_on():
    bare = {"version": {"gitVersion": "v1.34.4"}, "discovery": discovery([])}
    missing = {name: 404 for name in full() if name not in bare}
    parts = {part.name: part for part in examine(snapshot(bare, EnabledParts(), **missing))}
    broken = {name for name, part in parts.items() if part.status is Status.BROKEN}
    assert broken == {
        "clipmill",
        "Kubeflow Pipelines",
        "Argo Workflows",
        "Kubeflow Trainer",
        "JobSet",
        "KServe",
        "Prometheus Operator",
    }
    for part in parts.values():
        for problem in part.problems:
            assert problem.action, f"{part.name}: {problem.message} has no command"
    # Without an installation nothing is needed, and nothing is broken.
    parts = examine(snapshot(bare, None, **missing))
    assert not is_broken(parts)
    statuses = {part.name: part.status for part in parts}
    assert statuses["KServe"] is Status.ABSENT


def test_what_may_not_be_read_is_unknown_and_not_missing():
    """A user who may read one namespace: lists of all namespaces and cluster-wide kinds are 403."""
    answers = full()
    narrow = {
        name: 403
        for name in answers
        if name not in {"version", "discovery", "installation", "podmonitors", "prometheusrules"}
    }
    parts = examine(snapshot(answers, **narrow))
    assert {part.status for part in parts} <= {Status.OK, Status.UNKNOWN}
    messages = [q.message for p in parts for q in p.problems]
    assert all(text.startswith("not allowed to read") for text in messages)
    assert "not allowed to read nodes" in messages
    assert "not allowed to read Deployments of all namespaces" in messages
    # An answer that is neither: the server's error is shown.
    (shown,) = [
        text
        for (name, _), text in problems(snapshot(full(), storageclasses=500)).items()
        if name == "Storage class"
    ]
    assert shown == "can't read storage classes: HTTP 500: no"


def changed(name, body):
    return {**full(), name: body}


def ingress(**fields):
    data = {"ingress": json.dumps(INGRESS | fields)}
    return changed("configmap/kserve/inferenceservice-config", {"data": data})


def prometheus(**fields):
    return changed("prometheuses", items(named("k8s", "monitoring", spec=PROMETHEUS | fields)))


def argo(*arguments, namespace="kubeflow"):
    controller = deployment("workflow-controller", "a:v1", namespace, *arguments)
    return changed("deployment/workflow-controller", items(controller))


def node(**allocatable):
    return changed("nodes/gpu", items(named("n1", status={"allocatable": allocatable})))


@pytest.mark.parametrize(
    ("answers", "part", "status", "words"),
    [
        (changed("version", {"gitVersion": "v1.30.2"}), "Kubernetes", "broken", "older than 1.31"),
        (
            changed("deployment/keda-operator", items()),
            "KEDA",
            "broken",
            "no Deployment keda-operator runs",
        ),
        (
            changed(
                "deployment/keda-operator",
                items(deployment("keda-operator", "keda:1", "keda", available=0)),
            ),
            "KEDA",
            "broken",
            "keda/keda-operator has no available pod",
        ),
        (
            changed("deployment/ml-pipeline", items(deployment("ml-pipeline", "k:2", "kubeflow"))),
            "Kubeflow Pipelines",
            "broken",
            "in its database",
        ),
        (
            changed(
                "deployment/ml-pipeline",
                items(deployment("ml-pipeline", "k:2", "kfp", "--pipelinesStoreKubernetes=true")),
            ),
            "Kubeflow Pipelines",
            "broken",
            "installed in kubeflow; a single-user installation shows those of its own namespace",
        ),
        (
            changed(
                "deployment/kubeflow-pipelines-profile-controller",
                items(deployment("p", "p:1", "kubeflow")),
            ),
            "Kubeflow Pipelines",
            "broken",
            "it is multi-user, and pipelines.kubeflow.multiUser is false",
        ),
        (
            changed("access/tasks", {"status": {"allowed": False}}),
            "Kubeflow Pipelines",
            "limited",
            "pipeline-runner of kubeflow",
        ),
        (
            changed("access/workflow", {"status": {"allowed": False}}),
            "Argo Workflows",
            "broken",
            "may not create workflowtaskresults",
        ),
        (argo("--namespaced"), "Argo Workflows", "broken", "workflows of kubeflow only"),
        (argo("--managed-namespace=x"), "Argo Workflows", "broken", "workflows of x only"),
        (argo("--managed-namespace", "x"), "Argo Workflows", "broken", "workflows of x only"),
        (ingress(enableGatewayApi=False), "KServe", "limited", "makes no routes"),
        (
            ingress(kserveIngressGateway="kserve/other"),
            "KServe",
            "limited",
            "the Gateway kserve/other doesn't exist",
        ),
        (
            changed(
                "gateways",
                items(named("gateway", "kserve", status=condition("Programmed", "False"))),
            ),
            "KServe",
            "limited",
            "isn't programmed",
        ),
        (ingress(disableIstioVirtualHost=False), "KServe", "limited", "Istio isn't installed"),
        (changed("gatewayclasses", items()), "Gateway API", "broken", "no GatewayClass"),
        (
            changed(
                "configmap/system/kueue-manager-config",
                {"data": {"controller_manager_config.yaml": "integrations: {frameworks: [pod]}"}},
            ),
            "Kueue",
            "broken",
            "trainer.kubeflow.org/trainjob isn't among",
        ),
        (
            changed("localqueues", items(named("q", "ml", status=condition("Active", "False")))),
            "Kueue",
            "broken",
            "the LocalQueue q isn't active",
        ),
        (changed("prometheuses", items()), "Prometheus Operator", "broken", "no Prometheus"),
        (
            prometheus(podMonitorSelector=None),
            "Prometheus Operator",
            "broken",
            "no Prometheus selects clipmill's monitors",
        ),
        (
            prometheus(podMonitorNamespaceSelector=None),
            "Prometheus Operator",
            "broken",
            "no Prometheus selects clipmill's monitors",
        ),
        (
            prometheus(ruleSelector={"matchLabels": {"role": "alerts"}}),
            "Prometheus Operator",
            "broken",
            "no Prometheus selects clipmill's rules",
        ),
        (
            prometheus(ruleNamespaceSelector={"matchLabels": {"team": "web"}}),
            "Prometheus Operator",
            "broken",
            "no Prometheus selects clipmill's rules",
        ),
        (
            changed("discovery", discovery(set(RESOURCES) - {"podgroups.scheduling.x-k8s.io"})),
            "Gang scheduling",
            "broken",
            "training.gangScheduler is coscheduling",
        ),
        (changed("nodes/gpu", items()), "Node pools", "limited", "no node has the labels of pool"),
        (node(cpu="8", memory="128Gi"), "Node pools", "limited", "offers nvidia.com/gpu"),
        (
            node(cpu="3900m", memory="128Gi", **{"nvidia.com/gpu": "1"}),
            "Node pools",
            "limited",
            "has cpu 4, memory 16Gi, nvidia.com/gpu 1 allocatable",
        ),
        (changed("storageclasses", items(named("slow"))), "Storage class", "broken", "unbound"),
        (
            changed("deployment/kube-state-metrics", items()),
            "kube-state-metrics",
            "limited",
            "EndpointRestarts never fires",
        ),
    ],
)
def test_one_fault_is_one_problem(answers, part, status, words):
    (((where, severity), message),) = problems(snapshot(answers)).items()
    assert (where, severity) == (part, status)
    assert words in message


def test_a_secret_is_needed_where_tasks_run():
    for namespace in ("ml", "kubeflow"):
        shot = snapshot(full(), **{f"secret/{namespace}": 404})
        (message,) = problems(shot).values()
        assert message == f"{namespace} has no secret clipmill-store with the store's keys"
        by_role = replace(ALL, needs_secret=False)
        assert problems(snapshot(full(), by_role, **{f"secret/{namespace}": 404})) == {}


def test_a_fault_of_what_nothing_needs_breaks_nothing():
    shot = snapshot(changed("deployment/keda-operator", items()), replace(ALL, autoscaling=False))
    assert list(problems(shot)) == [("KEDA", "limited")]
    shot = snapshot(changed("gatewayclasses", items()), replace(ALL, demo_gateway=""))
    assert list(problems(shot)) == [("Gateway API", "limited")]


def test_scaling_to_zero_needs_keda_and_its_http_add_on():
    parts = replace(ALL, autoscaling=False, http_scaling=True)
    assert problems(snapshot(full(), parts)) == {}
    without = changed("deployment/keda-add-ons-http-interceptor", items())
    assert list(problems(snapshot(without, parts))) == [("KEDA HTTP add-on", "broken")]
    shot = snapshot(changed("deployment/keda-operator", items()), parts)
    assert list(problems(shot)) == [("KEDA", "broken")]


def test_the_command_that_corrects_a_selector_names_its_labels():
    answers = prometheus(podMonitorSelector={"matchLabels": {"release": "kps"}})
    (problem,) = [q for p in examine(snapshot(answers)) for q in p.problems]
    assert problem.action == "helm upgrade ... --set monitoring.labels.release=kps"


@pytest.mark.parametrize(
    ("selector", "is_match"),
    [
        ({}, True),
        ({"matchLabels": {"a": "1"}}, True),
        ({"matchLabels": {"a": "2"}}, False),
        ({"matchExpressions": [{"key": "a", "operator": "In", "values": ["1", "2"]}]}, True),
        ({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["1"]}]}, False),
        ({"matchExpressions": [{"key": "b", "operator": "Exists"}]}, False),
        ({"matchExpressions": [{"key": "b", "operator": "DoesNotExist"}]}, True),
    ],
)
def test_selectors_match_as_kubernetes_defines_them(selector, is_match):
    assert matches(selector, {"a": "1"}) is is_match


def test_commands_install_the_versions_of_the_documentation():
    page = (ROOT / "docs" / "cluster.md").read_text()
    versions = {v for c in COMPONENTS for v in re.findall(r"\d+\.\d+\.\d+", c.install)}
    assert len(versions) > 8
    assert [version for version in versions if version not in page] == []


@pytest.mark.parametrize("name", PROFILES)
def test_the_chart_installs_what_doctor_reads(name, tmp_path):
    values = profile(name)
    (config_map,) = [
        r
        for r in render(values)
        if r["kind"] == "ConfigMap" and r["metadata"]["name"] == "clipmill-pools"
    ]
    parts = installed_parts(config_map)
    assert "secretKey" not in config_map["data"]["values.json"]
    assert parts.pools
    if not name:
        assert replace(parts, pools={}) == EnabledParts()
        return
    # A profile's file over the chart's defaults says the same as the installation of it.
    file = ROOT / "helm" / "clipmill" / f"values-{name}.yaml"
    assert replace(read_parts(file), pools={}) == replace(parts, pools={})


def test_unreadable_values_are_one_message(tmp_path):
    (tmp_path / "values.yaml").write_text("pipelines: [")
    for path in (tmp_path / "values.yaml", tmp_path / "none.yaml"):
        with pytest.raises(ConfigError, match=r"the values .* can't be read"):
            read_parts(path)


class RecordedApi:
    """Answers requests from a table by path; 404 for all others."""

    def __init__(self, answers):
        self.answers = answers
        self.requests = []

    def request(self, method, path, *, body=None, accept="", timeout_seconds=0.0):
        del accept, timeout_seconds
        self.requests.append((method, path, body))
        for prefix, answer in self.answers.items():
            if path.startswith(prefix):
                return answer
        return 404, {"message": "not found"}

    def config_map(self, namespace, name):
        return self.request("GET", f"/api/v1/namespaces/{namespace}/configmaps/{name}")[1]

    def pods(self, namespace, selector):
        del selector
        return self.request("GET", f"/api/v1/namespaces/{namespace}/pods")[1].get("items", [])


def installed():
    (config_map,) = [r for r in render(profile("gpu")) if r["metadata"]["name"] == "clipmill-pools"]
    return config_map


def test_nodes_and_secrets_are_read_as_the_installation_says():
    path = "/api/v1/namespaces/ml/configmaps/clipmill-pools"
    api = RecordedApi(
        {
            "/version": (200, {"gitVersion": "v1.34.4"}),
            path: (200, installed()),
            "/apis/": (404, {}),
            "/apis": (200, discovery([])),
        }
    )
    shot = collect(api, "ml")
    assert shot.parts == installed_parts(installed())
    paths = [path for _, path, _ in api.requests]
    assert "/api/v1/nodes?labelSelector=clipmill.io/pool%3Dgpu&limit=50" in {
        p.replace("%2F", "/") for p in paths
    }
    assert "/api/v1/namespaces/kubeflow/secrets/clipmill-store" in paths
    users = {body["spec"]["user"] for _, _, body in api.requests if body}
    assert users == {
        "system:serviceaccount:ml:clipmill-data",
        "system:serviceaccount:kubeflow:pipeline-runner",
    }
    # The number of requests depends neither on nodes nor on pods.
    assert len(paths) < 40
    assert problems(shot)[("Kueue", "broken")].startswith("not installed")


def test_one_answer_that_takes_too_long_is_unknown_and_no_cluster_is_an_error():
    class Slow(RecordedApi):
        def request(self, method, path, **options):
            if path.startswith(self.slow):
                raise ClusterError("timed out", expected="an answer", action="wait")
            return super().request(method, path, **options)

    api = Slow({"/version": (200, {"gitVersion": "v1.34.4"}), "/apis": (404, {})})
    api.slow = "/apis/storage.k8s.io"
    message = problems(collect(api, "ml"))[("Storage class", "unknown")]
    assert message == "can't read storage classes: HTTP 504: timed out"
    api.slow = "/version"
    with pytest.raises(ClusterError, match="timed out"):
        collect(api, "ml")


def pod(phase, state=None, **status):
    statuses = [{"state": state}] if state else []
    return {"status": {"phase": phase, "containerStatuses": statuses, **status}}


UNSCHEDULABLE = {
    "conditions": [
        {
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": "0/1 nodes are available: 1 Insufficient cpu.",
        }
    ]
}


@pytest.mark.parametrize(
    ("resource", "outcome"),
    [
        (pod("Succeeded"), ""),
        (pod("Pending", {"waiting": {"reason": "ContainerCreating"}}), None),
        (pod("Pending", **UNSCHEDULABLE), None),
        (
            pod("Pending", {"waiting": {"reason": "ImagePullBackOff", "message": "no such tag"}}),
            "ImagePullBackOff: no such tag",
        ),
        (
            pod("Failed", {"terminated": {"reason": "Error", "exitCode": 1, "message": "boom"}}),
            "exit code 1: boom",
        ),
    ],
)
def test_a_pod_that_can_not_start_or_failed_has_an_outcome(resource, outcome):
    assert pod_outcome(resource) == outcome


def test_a_self_test_reports_reasons_and_removes_what_it_created():
    created = []

    class Cluster(RecordedApi):
        def request(self, method, path, *, body=None, **options):
            if method == "POST" and "dryRun" not in path:
                created.append(body)
                answer = {**body, "status": {}}
                answer["metadata"].setdefault("name", "clipmill-score-x")
                return 201, answer
            return super().request(method, path, body=body, **options)

    pods = "/api/v1/namespaces/ml/pods"
    failing = pod("Failed", {"terminated": {"reason": "Error", "exitCode": 1, "message": "boom"}})
    api = Cluster(
        {
            "/api/v1/namespaces/ml/configmaps/clipmill-pools": (200, installed()),
            f"{pods}/clipmill-self-test-train": (200, failing),
            f"{pods}/clipmill-self-test-data": (200, pod("Pending", **UNSCHEDULABLE)),
            f"{pods}/": (200, pod("Succeeded")),
            pods: (200, items()),
            "/apis/trainer.kubeflow.org/v1alpha1/namespaces/ml/trainjobs/": (
                200,
                {"status": {"conditions": [{"type": "Complete", "status": "True"}]}},
            ),
            "/apis/argoproj.io/v1alpha1/namespaces/ml/workflows/": (
                200,
                {"status": {"phase": "Failed", "message": "no pool"}},
            ),
            "/apis/serving.kserve.io/v1beta1/namespaces/ml/inferenceservices?dryRun=All": (
                403,
                {"message": "denied by the webhook"},
            ),
        }
    )
    results = self_test(api, snapshot(full()), timeout_seconds=0.2, poll_interval_seconds=0.01)
    reasons = {result.name: result.reason for result in results}
    assert reasons["pod of the image serve"] == ""
    assert reasons["pod of the image train"] == "exit code 1: boom"
    assert reasons["pod of the image data"].startswith("not finished in 0.2 s")
    assert reasons["TrainJob of one node"] == ""
    assert reasons["data workflow of one part"] == "Failed: no pool"
    assert reasons["InferenceService (dry run)"] == "refused: HTTP 403: denied by the webhook"
    assert [r.passed for r in results] == [not r.reason for r in results]
    names = {resource["metadata"]["name"] for resource in created}
    deleted = {
        path.partition("?")[0].rpartition("/")[2] for m, path, _ in api.requests if m == "DELETE"
    }
    assert len(created) == 5
    assert deleted == names
