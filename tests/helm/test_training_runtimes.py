"""The training runtimes of the chart: retries, gang schedulers, secret, table of pools."""

import json

import pytest
from helpers.helm_chart import deep, notes, lean, render

from clipmill.engine.kubernetes import POD_VARIABLES, SERVICE_ACCOUNT
from clipmill.errors import EXIT_PREEMPTED, EXIT_USER_ERROR
from helpers.strict_schemas import findings


def runtimes(values: dict) -> dict[str, dict]:
    return {r["metadata"]["name"]: r for r in render(values) if r["kind"] == "TrainingRuntime"}


def job_spec(values: dict, name: str = "clipmill-cpu") -> dict:
    (job,) = runtimes(values)[name]["spec"]["template"]["spec"]["replicatedJobs"]
    return job["template"]["spec"]


def test_a_users_mistake_fails_the_job_and_a_lost_node_does_not_count():
    spec = job_spec(deep(lean(""), "training.maxNodeRestarts", 5))
    assert spec["backoffLimitPerIndex"] == 5
    assert spec["maxFailedIndexes"] == 0
    mistake, disrupted, stopped = spec["podFailurePolicy"]["rules"]
    assert mistake["action"] == "FailJob"
    assert mistake["onExitCodes"]["values"] == [EXIT_USER_ERROR]
    assert disrupted["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert stopped["action"] == disrupted["action"] == "Ignore"
    # 128 + SIGTERM.
    assert stopped["onExitCodes"]["values"] == [EXIT_PREEMPTED, 143]
    pod = spec["template"]["spec"]
    # Kubernetes refuses a pod failure policy with another restart policy.
    assert pod["restartPolicy"] == "Never"
    (container,) = pod["containers"]
    assert mistake["onExitCodes"]["containerName"] == container["name"]
    # Without it a pod's status has no last line of its log.
    assert container["terminationMessagePolicy"] == "FallbackToLogsOnError"


def test_a_runtime_belongs_to_its_installation():
    assert {r["metadata"]["namespace"] for r in runtimes(lean("")).values()} == {"ml"}


@pytest.mark.parametrize("has_role", [True, False])
def test_a_missing_secret_keeps_a_pod_from_starting_unless_a_role_replaces_it(has_role):
    values = deep(lean(""), "objectStore.useWorkloadIdentity", has_role)
    (container,) = job_spec(values)["template"]["spec"]["containers"]
    assert container["envFrom"] == [{"secretRef": {"name": "clipmill-store", "optional": has_role}}]


@pytest.mark.parametrize("gang", ["volcano", "coscheduling"])
def test_gang_scheduling_needs_its_crd(gang):
    values = deep(lean(""), "training.gangScheduler", gang)
    for runtime in runtimes(values).values():
        assert list(runtime["spec"]["podGroupPolicy"]) == [gang]
        assert findings(runtime) == []
    assert f"training.gangScheduler: {gang} (needs scheduling." in notes({**values, "crds": "auto"})
    assert all("podGroupPolicy" not in r["spec"] for r in runtimes(lean("")).values())


@pytest.mark.parametrize(("cpu", "quota"), [(0.5, "1"), ("250m", "500m"), (4, "8")])
def test_a_pool_may_have_a_part_of_a_core(cpu, quota):
    pool = {"cpu": cpu, "memoryGibibytes": 2, "sharedMemoryGibibytes": 1}
    values = {**lean(""), "pools": {"cpu": pool}}
    values["kueue"] = {"enabled": True, "nodeQuota": {"cpu": 2, "gpu": None, "gpu-8x": None}}
    (container,) = job_spec(values)["template"]["spec"]["containers"]
    assert container["resources"]["requests"]["cpu"] == str(cpu)
    (queue,) = [r for r in render(values) if r["kind"] == "ClusterQueue"]
    (group,) = [g for g in queue["spec"]["resourceGroups"] if "cpu" in g["coveredResources"]]
    amounts = {r["name"]: r["nominalQuota"] for r in group["flavors"][0]["resources"]}
    assert amounts["cpu"] == quota


def test_the_table_has_the_images_that_the_chart_installs():
    values = deep(lean(""), "images.registry", "registry.example.com/ml")
    values = deep(values, "images.train", {"repository": "mine/train", "tag": "7"})
    (config_map,) = [r for r in render(values) if r["metadata"]["name"] == "clipmill-pools"]
    table = json.loads(config_map["data"]["pools.json"])
    assert table["images"]["train"] == "registry.example.com/ml/mine/train:7"
    (container,) = job_spec(values)["template"]["spec"]["containers"]
    assert container["image"] == table["images"]["train"]


def test_events_of_a_training_need_its_identity_a_token_and_one_right():
    (container,) = job_spec(lean(""))["template"]["spec"]["containers"]
    fields = {v["name"]: v["valueFrom"]["fieldRef"]["fieldPath"] for v in container["env"]}
    assert fields == dict(POD_VARIABLES)
    (mount,) = (m for m in container["volumeMounts"] if m["name"] == "token")
    assert mount["mountPath"] == str(SERVICE_ACCOUNT)
    rights = {r["metadata"]["name"]: r for r in render(lean("")) if r["kind"] == "Role"}
    assert rights["clipmill-train"]["rules"] == [
        {"apiGroups": [""], "resources": ["events"], "verbs": ["create"]}
    ]

    without = deep(lean(""), "training.events", False)
    spec = job_spec(without)["template"]["spec"]
    assert "env" not in spec["containers"][0]
    assert "token" not in {volume["name"] for volume in spec["volumes"]}
    names = {r["metadata"]["name"] for r in render(without) if r["kind"] == "Role"}
    assert "clipmill-train" not in names
