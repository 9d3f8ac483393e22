"""Pipelines are installed where Kubeflow Pipelines sees them, with what a run needs."""

import pytest
from helpers.helm_api import cluster
from helpers.helm_chart import CHART, STORE, deep, kinds, profile, render

VALUES = deep(profile(""), "objectStore", STORE)
NATIVE = "--pipelinesStoreKubernetes=true"
OWN = {"Pipeline", "PipelineVersion"}


def namespaces(resources):
    return {r["metadata"]["namespace"] for r in resources}


def of_kind(resources, *wanted):
    return [r for r in resources if r["kind"] in wanted]


def version(values, name):
    (found,) = [
        r for r in of_kind(render(values), "PipelineVersion") if r["spec"]["pipelineName"] == name
    ]
    return found


def defaults(values, name):
    parameters = version(values, name)["spec"]["pipelineSpec"]["root"]["inputDefinitions"]
    return {
        n: p.get("defaultValue") for n, p in parameters["parameters"].items() if "isOptional" in p
    }


@pytest.mark.parametrize("namespace", ["kubeflow", "team-a", "ml"])
def test_pipelines_and_the_stores_keys_are_where_tasks_run(namespace):
    resources = render(deep(VALUES, "pipelines.kubeflow.namespace", namespace), namespace="ml")
    assert namespaces(of_kind(resources, *OWN)) == {namespace}
    secrets = of_kind(resources, "Secret")
    assert sorted(s["metadata"]["namespace"] for s in secrets) == sorted({"ml", namespace})
    assert all(s["stringData"] == secrets[0]["stringData"] for s in secrets)
    without = render(deep(VALUES, "pipelines.enabled", False))
    assert namespaces(of_kind(without, "Secret")) == {"ml"}


@pytest.mark.parametrize(
    ("kubeflow", "account"),
    [
        ({}, ("pipeline-runner", "kubeflow")),
        ({"multiUser": True, "namespace": "team-a"}, ("default-editor", "team-a")),
        ({"serviceAccount": "runner"}, ("runner", "kubeflow")),
        ({"grantAccess": False}, None),
    ],
)
def test_tasks_may_deploy_and_submit_in_the_releases_namespace(kubeflow, account):
    resources = render(deep(VALUES, "pipelines.kubeflow", kubeflow))
    (binding,) = [
        r
        for r in of_kind(resources, "RoleBinding")
        if r["metadata"]["name"] == "clipmill-submitter"
    ]
    assert binding["metadata"]["namespace"] == "ml"
    subjects = [(s["name"], s["namespace"]) for s in binding["subjects"]]
    assert subjects == [("clipmill-submitter", "ml"), *([account] if account else [])]


def test_tasks_reach_endpoints_and_the_embedded_store():
    (policy,) = [
        r
        for r in of_kind(render(VALUES), "NetworkPolicy")
        if r["metadata"]["name"] == "clipmill-allow-inference"
    ]
    peers = [p["namespaceSelector"] for p in policy["spec"]["ingress"][0]["from"][1:]]
    assert {"matchLabels": {"kubernetes.io/metadata.name": "kubeflow"}} in peers


def test_a_run_needs_no_typing_of_what_the_chart_knows():
    known = defaults(VALUES, "end-to-end")
    assert known["store"] == "s3://clipmill/store"
    assert (known["namespace"], known["runtime"], known["prometheus"]) == ("ml", "cpu", "")
    scaled = deep(VALUES, "autoscaling", {"enabled": True, "prometheus": "http://prometheus:9090"})
    assert defaults(scaled, "end-to-end")["prometheus"] == "http://prometheus:9090"
    queued = deep(VALUES, "kueue", {"enabled": True, "queue": "research"})
    assert defaults(queued, "pretrain-encoder-distributed")["queue"] == "research"
    chosen = deep(VALUES, "pipelines.defaults", {"runtime": "gpu", "clip_recipe": "clip-vit-b16"})
    assert defaults(chosen, "end-to-end") == known | {
        "runtime": "gpu",
        "clip_recipe": "clip-vit-b16",
    }


def test_another_store_registry_or_default_is_another_version():
    changes = [
        ("objectStore.uri", "s3://other/store"),
        ("images.registry", "registry.example.com"),
        ("pipelines.defaults", {"runtime": "gpu"}),
    ]
    names = {version(deep(VALUES, *change), "end-to-end")["metadata"]["name"] for change in changes}
    assert len({*names, version(VALUES, "end-to-end")["metadata"]["name"]}) == len(changes) + 1


def test_tasks_take_a_nodes_share_and_those_that_wait_little():
    values = deep(VALUES, "pools.cpu", {"cpu": "1500m", "memoryGibibytes": 6})
    versions = {
        r["metadata"]["name"].rpartition("-")[0]: r["spec"]["pipelineSpec"]
        for r in of_kind(render(values), "PipelineVersion")
    }
    requests = {
        (pipeline, name.removeprefix("exec-")): (
            executor["container"]["resources"]["resourceCpuRequest"],
            executor["container"]["resources"]["resourceMemoryRequest"],
        )
        for pipeline, spec in versions.items()
        for name, executor in spec["deploymentSpec"]["executors"].items()
    }
    light = {task.rstrip("-2345678") for (_, task), r in requests.items() if r == ("100m", "512Mi")}
    assert light == {
        "deploy", "list-sweep-points", "pretrain-on-nodes", "promote", "promote-compared",
        "recaption-on-argo",
    }  # fmt: skip
    assert requests["end-to-end", "shard"] == ("1500m", "6Gi")


def test_a_default_of_no_parameter_is_refused():
    with pytest.raises(Exception, match='pipelines.defaults has "stor", which is no parameter'):
        render(deep(VALUES, "pipelines.defaults", {"stor": "s3://b"}))


def namespace(name):
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}


def api_server(*arguments):
    """Deployment of Kubeflow Pipelines' API server, as far as the chart reads it."""
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "ml-pipeline", "namespace": "kubeflow"},
        "spec": {"template": {"spec": {"containers": [{"name": "server", "args": arguments}]}}},
    }


@pytest.mark.parametrize(
    ("kubeflow", "objects", "refusal"),
    [
        ({}, [namespace("kubeflow"), api_server(NATIVE)], ""),
        ({}, [], '"kubeflow", which doesn\'t exist: set it to the namespace of Kubeflow Pipelines'),
        ({}, [namespace("kubeflow")], 'namespace "kubeflow" has no Deployment ml-pipeline'),
        ({}, [namespace("kubeflow"), api_server("--config=/config")], "run its API server with"),
        (
            {"multiUser": True},
            [namespace("kubeflow"), api_server(NATIVE)],
            "where no user's tasks run: set pipelines.kubeflow.namespace to a profile's",
        ),
        ({"multiUser": True, "namespace": "team-a"}, [namespace("team-a")], ""),
    ],
)
def test_a_kubeflow_that_cannot_run_pipelines_is_refused(kubeflow, objects, refusal):
    values = deep(VALUES, "pipelines.kubeflow", kubeflow)
    with cluster(render(values)) as (server, helm):
        for resource in [namespace("default"), *objects]:
            server.put(resource)
        if not refusal:
            helm.install(str(CHART), "mill", values)
            assert OWN <= kinds(list(server.kept.values()))
            return
        with pytest.raises(Exception, match=refusal):
            helm.install(str(CHART), "mill", values)
        assert not OWN & kinds(list(server.kept.values()))
