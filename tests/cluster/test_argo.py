"""The data plane's workflow: what Argo takes, and what its pods are told."""

import base64
import gzip
import json
import random
from itertools import pairwise

import pytest
import typer
from typer.testing import CliRunner

from clipmill.cli import app
from clipmill.cluster.argo import (
    DataWorkflowConfig,
    data_workflow,
    part_arguments,
    ranges,
    run_data_workflow,
    submit_data_workflow,
    suspend_workflow,
    wait_for_workflow,
    workflow_status,
)
from clipmill.cluster.pools import default_installation
from clipmill.errors import ClusterError, ConfigError
from helpers.bare_dataset import bare_dataset
from helpers.strict_schemas import findings

RECAPTION = DataWorkflowConfig(
    stage="recaption",
    subject="s3://b/datasets/d1",
    arguments=("--captioner", "s3://b/captioners/c"),
    pool="gpu",
    shards_per_pod=100,
    parallelism=500,
    namespace="ml",
)
SHARD = DataWorkflowConfig(
    stage="shard", subject="s3://b/raw", arguments=("--store", "s3://b"), num_workers=3
)

PREDICT = DataWorkflowConfig(
    stage="predict",
    subject="s3://b/models/seg",
    arguments=("--data", "s3://b/planned photos", "--store", "s3://b"),
    num_workers=2,
)

INSTALLED = default_installation({})


@pytest.fixture(autouse=True)
def installed(cluster):
    """The chart's table in the namespaces that workflows are submitted to."""
    table = {"pools": {"cpu": {"cpu": 2}, "gpu": {"gpus": 1}}, "images": {"data": "r.io/data:1"}}
    for namespace in ("ml", "default"):
        cluster.config_maps[f"{namespace}/clipmill-pools"] = {
            "data": {"pools.json": json.dumps(table)}
        }


def templates(workflow):
    return {t["name"]: t for t in workflow["spec"]["templates"]}


@pytest.mark.parametrize(("shards", "per_pod"), [(0, 5), (1, 5), (10, 5), (128_001, 32)])
def test_ranges_meet_and_cover_all(shards, per_pod):
    found = ranges(shards, per_pod)
    assert sum(stop - start for start, stop in found) == shards
    assert all(a[1] == b[0] for a, b in pairwise(found))
    assert all(0 < stop - start <= per_pod for start, stop in found)


def test_argo_takes_it():
    for config in (
        RECAPTION,
        SHARD,
        PREDICT,
        DataWorkflowConfig(stage="score", subject="s3://b/d"),
    ):
        assert findings(data_workflow(config, 250, INSTALLED)) == []


def test_a_pod_owns_a_range_and_another_step_lists_the_layer():
    workflow = data_workflow(RECAPTION, 250, INSTALLED)
    found = templates(workflow)
    part, last = found["process-range"]["container"], found["finalize"]["container"]
    whole = ["data", "recaption", RECAPTION.subject, *RECAPTION.arguments]
    assert last["args"] == whole
    assert part["args"] == [
        *whole,
        "--start", "{{inputs.parameters.start}}", "--stop", "{{inputs.parameters.stop}}",
    ]  # fmt: skip
    tasks = {t["name"]: t for t in found["stage"]["dag"]["tasks"]}
    assert tasks["process-range"]["withItems"] == [
        {"start": "0", "stop": "100"},
        {"start": "100", "stop": "200"},
        {"start": "200", "stop": "250"},
    ]
    assert tasks["finalize"]["depends"] == "process-range"
    assert workflow["spec"]["parallelism"] == 500
    assert part["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert workflow["spec"]["nodeSelector"] == {"clipmill.io/pool": "gpu"}


def test_shards_are_planned_first():
    found = templates(data_workflow(SHARD, 0, INSTALLED))
    assert found["plan"]["container"]["args"] == ["data", "plan", "s3://b/raw", "--store", "s3://b"]
    assert found["process-range"]["container"]["args"][:4] == [
        "data", "shard", "--plan", "{{inputs.parameters.planned}}",
    ]  # fmt: skip
    tasks = {t["name"]: t for t in found["stage"]["dag"]["tasks"]}
    assert [i["worker"] for i in tasks["process-range"]["withItems"]] == ["0/3", "1/3", "2/3"]
    assert (tasks["process-range"]["depends"], tasks["finalize"]["depends"]) == (
        "plan",
        "process-range",
    )


def test_a_prediction_is_planned_once_and_its_workers_read_the_plan():
    found = templates(data_workflow(PREDICT, 0, INSTALLED))
    plan, part, last = (
        found[name]["container"]["args"] for name in ("plan", "process-range", "finalize")
    )
    assert plan == ["predict", PREDICT.subject, *PREDICT.arguments, "--plan-only"]
    assert last == ["predict", "--plan", "{{inputs.parameters.planned}}"]
    assert part == [*last, "--worker", "{{inputs.parameters.worker}}"]
    # The plan has no input, whatever the names in its arguments.
    assert not found["plan"].get("inputs", {}).get("parameters")
    tasks = {t["name"]: t for t in found["stage"]["dag"]["tasks"]}
    assert [i["worker"] for i in tasks["process-range"]["withItems"]] == ["0/2", "1/2"]
    assert tasks["finalize"]["depends"] == "process-range"


def test_lost_nodes_are_retried_and_mistakes_are_not():
    retry = templates(data_workflow(RECAPTION, 1, INSTALLED))["process-range"]["retryStrategy"]
    assert retry["expression"] == "asInt(lastRetry.exitCode) != 2"
    assert retry["backoff"] == {"duration": "30s", "factor": 2, "cap": "10m"}


@pytest.mark.parametrize("config", [RECAPTION, SHARD, PREDICT])
def test_pods_need_no_right_or_secret_but_argos_own(config):
    """Argo's default role lacks configmaps, which memoization writes; an artifact repository that
    archives logs mounts its secret into every pod whose template has no location of its own.
    """
    for name, template in templates(data_workflow(config, 9, INSTALLED)).items():
        assert "memoize" not in template
        assert "artifacts" not in template.get("outputs", {})
        if name != "stage":
            assert template["archiveLocation"] == {"archiveLogs": False, "raw": {"data": "none"}}


def test_a_retry_may_run_on_the_node_of_the_first_attempt():
    """Argo's node anti-affinity is required: a pool of one node would wait for ever."""
    workflow = data_workflow(RECAPTION, 9, INSTALLED)
    assert "affinity" not in templates(workflow)["process-range"]["retryStrategy"]
    assert "affinity" not in workflow["spec"]


LIMIT = 1024 * 1024
"""Argo's limit of a Workflow's size as JSON, bytes (``MAX_WORKFLOW_SIZE`` of its controller)."""


def worst_status(workflow, attempts):
    """The status that Argo writes once every part has been attempted so often, compressed.

    Ids, times, durations and hosts vary as they do in a cluster, and are what doesn't compress.
    """
    draw = random.Random(1)
    name = "clipmill-recaption-x7k2p"
    nodes = {}

    def common(label):
        node_id = f"{name}-{draw.randrange(10**9, 2**32)}"
        nodes[node_id] = node = {
            "id": node_id,
            "name": f"{name}.{label}",
            "displayName": label,
            "templateName": "process-range",
            "templateScope": f"local/{name}",
            "boundaryID": name,
            "startedAt": f"2026-11-30T{draw.randrange(24):02}:{draw.randrange(60):02}:07Z",
            "finishedAt": f"2026-12-01T{draw.randrange(24):02}:{draw.randrange(60):02}:59Z",
            "progress": "0/1",
            "resourcesDuration": {k: draw.randrange(10**6) for k in ("cpu", "memory", "gpu")},
        }
        return node

    (tasks,) = [t["dag"]["tasks"] for t in workflow["spec"]["templates"] if "dag" in t]
    (items,) = [t["withItems"] for t in tasks if "withItems" in t]
    for index, item in enumerate(items):
        label = f"process-range({index}:{','.join(f'{k}:{v}' for k, v in item.items())})"
        inputs = {"parameters": [{"name": k, "value": v} for k, v in item.items()]}
        parent = common(label) | {"type": "Retry", "phase": "Failed", "inputs": inputs}
        parent["children"] = []
        nodes[parent["id"]] = parent
        for attempt in range(attempts):
            host = ".".join(str(draw.randrange(256)) for _ in range(3))
            pod = common(f"{label}({attempt})")
            pod |= {"type": "Pod", "phase": "Failed", "inputs": inputs}
            pod |= {"message": "main: OOMKilled (exit code 137)", "outputs": {"exitCode": "137"}}
            pod |= {"hostNodeName": f"ip-10.{host}", "taskResultSynced": True}
            pod |= {"nodeFlag": {"retried": True}}
            parent["children"].append(pod["id"])
    packed = gzip.compress(json.dumps(nodes, separators=(",", ":")).encode(), 6)
    pods = [node["id"] for node in nodes.values() if node["type"] == "Pod"]
    return {
        "phase": "Failed",
        "progress": f"0/{len(pods)}",
        "compressedNodes": base64.b64encode(packed).decode(),
        "taskResultsCompletionStatus": dict.fromkeys(pods, True),
    }


@pytest.mark.parametrize("retries", [0, 5, 20])
def test_a_workflow_of_any_size_is_within_argos_limit(retries, cluster):
    config = DataWorkflowConfig(
        stage="recaption", subject="s3://b/datasets/d1", parallelism=500, retries=retries
    )
    workflow = data_workflow(config, 1_000_000, INSTALLED)
    items = templates(workflow)["stage"]["dag"]["tasks"][0]["withItems"]
    assert len(items) <= config.max_parts
    assert int(items[-1]["stop"]) == 1_000_000
    name = submit_data_workflow(config, 1_000_000, api=cluster.api())
    resource = resource_at(cluster)
    resource["status"] = worst_status(workflow, retries + 1)
    assert len(json.dumps(resource, separators=(",", ":"))) < LIMIT
    status = workflow_status("default", name, api=cluster.api())
    assert (status.total, status.failed) == (len(items) + 1, len(items))
    assert status.reasons == {
        "process-range failed: main: OOMKilled (exit code 137)": len(items) * (retries + 1)
    }


def test_500_pods_at_once_have_parts_of_100_000_shards():
    assert len(part_arguments(RECAPTION, 100_000)) == 1000
    small = part_arguments(RECAPTION, 250)
    assert small[0] == ["--start", "0", "--stop", "100"]


def test_a_workflows_life(cluster):
    api = cluster.api()
    name = submit_data_workflow(RECAPTION, 250, api=api)
    (resource,) = cluster.resources.values()
    part = templates(resource)["process-range"]["container"]
    assert (part["image"], part["resources"]["limits"]["cpu"]) == ("r.io/data:1", "4")
    status = workflow_status("ml", name, api=api)
    assert str(status) == "Pending: 0 of 4 pods done, 0 failed, 4 left"
    suspend_workflow("ml", name, api=api)
    assert resource_at(cluster)["spec"]["suspend"] is True
    suspend_workflow("ml", name, api=api, suspended=False)
    assert resource_at(cluster)["spec"]["suspend"] is False
    assert resource["spec"]["templates"] == resource_at(cluster)["spec"]["templates"]
    told = []
    resource_at(cluster)["status"] = {"phase": "Succeeded", "progress": "4/4"}
    wait_for_workflow("ml", name, api=api, report=lambda *args: told.append(args))
    assert told == [(4, 4, "pods")]
    with pytest.raises(ClusterError, match="there is no workflow ml/other"):
        suspend_workflow("ml", "other", api=api)


def test_status_has_a_fixed_total_and_reasons(cluster):
    """As Argo writes it: the total in ``progress`` grows with each pod and retry."""
    api = cluster.api()
    name = submit_data_workflow(RECAPTION, 250, api=api)

    def node(kind, phase, message=""):
        text = {"message": message} if message else {}
        return {"type": kind, "templateName": "process-range", "phase": phase, **text}

    lost = "main: Error (exit code 2): no captioner\n  expected: a URI"
    nodes = [
        node("Retry", "Succeeded"), node("Pod", "Succeeded"),
        node("Retry", "Failed", "No more retries left"), node("Pod", "Failed", lost),
        node("Retry", "Running"), node("Pod", "Failed", "pod deleted"),
        node("Pod", "Pending", "Unschedulable: 0/1 nodes are available"),
    ]  # fmt: skip
    resource_at(cluster)["status"] = {
        "phase": "Running",
        "progress": "1/4",
        "nodes": {str(i): n for i, n in enumerate(nodes)},
    }
    status = workflow_status("ml", name, api=api)
    assert (status.total, status.done, status.failed, status.left) == (4, 1, 1, 2)
    assert status.reasons == {
        "process-range failed: main: Error (exit code 2): no captioner": 1,
        "process-range failed: pod deleted": 1,
        "process-range pending: Unschedulable: 0/1 nodes are available": 1,
    }
    resource_at(cluster)["status"]["phase"] = "Failed"
    with pytest.raises(ClusterError, match=r"Failed: 1 of 4 pods done, 1 failed, 2 left\n.*1 x"):
        wait_for_workflow("ml", name, api=api)
    # An error of the workflow itself, before any pod.
    resource_at(cluster)["status"] = {"phase": "Error", "message": "invalid spec: no entrypoint"}
    with pytest.raises(ClusterError, match="1 x invalid spec: no entrypoint"):
        wait_for_workflow("ml", name, api=api)


def test_a_stage_is_submitted_over_a_datasets_shards_and_waited_for(cluster, tmp_path):
    from clipmill.errors import ArtifactError

    where = {"pool": "cpu", "namespace": "ml", "poll_interval_seconds": 0.01}
    with pytest.raises(ArtifactError, match="there is no dataset"):
        run_data_workflow("score", str(tmp_path / "none"), [], api=cluster.api(), **where)
    assert cluster.resources == {}
    with pytest.raises(ConfigError, match="stage was 'bake'"):
        run_data_workflow("bake", "d", [], api=cluster.api(), **where)

    def ended(resource):
        resource["status"] = {"phase": "Succeeded", "progress": "1/1"}

    cluster.on_change = ended
    run_data_workflow("shard", "s3://b/raw", ["--store", "s3://b"], api=cluster.api(), **where)
    assert len(cluster.resources) == 1


def resource_at(cluster):
    (resource,) = cluster.resources.values()
    return resource


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("shards_per_pod", 0),
        ("num_workers", 0),
        ("num_workers", 1001),
        ("parallelism", 0),
        ("retries", -1),
        ("retries", 10_000),
    ],
)
def test_values_out_of_range_are_refused(name, value):
    with pytest.raises(ConfigError, match=name):
        DataWorkflowConfig(stage="score", subject="d", **{name: value})


def test_commands_are_those_that_the_command_line_has():
    """A flag that a command lacks would fail on thousands of pods."""
    commands = typer.main.get_command(app).commands
    known = {**commands["data"].commands, "predict": commands["predict"]}
    for config in (
        RECAPTION,
        SHARD,
        PREDICT,
        DataWorkflowConfig(stage="score", subject="s3://b/d"),
    ):
        options = {option for p in known[config.stage].params for option in p.opts}
        assert {flag for part in part_arguments(config, 1) for flag in part[::2]} <= options
    assert {"plan", "finalize"} <= known.keys()


def command(*arguments):
    return CliRunner().invoke(app, ["data", *arguments])


def test_shard_on_argo_hands_its_options_to_the_pods():
    asked = ["shard", "s3://b/raw", "--store", "s3://b", "--set", "min_side=64"]
    asked += ["--executor", "argo"]
    answer = command(*asked, "--workflow", "num_workers=3", "--dry-run")
    found = templates(json.loads(answer.stdout))
    options = ["--store", "s3://b", "--recipe", "shards", "--set", "min_side=64"]
    assert found["plan"]["container"]["args"] == ["data", "plan", "s3://b/raw", *options]
    tasks = {t["name"]: t for t in found["stage"]["dag"]["tasks"]}
    assert [item["worker"] for item in tasks["process-range"]["withItems"]] == ["0/3", "1/3", "2/3"]
    for change, words in (
        (["--worker", "0/3"], "--worker can't be used with --executor argo"),
        (["--workflow", "parallel=3"], "parallel"),
        (["--workflow", "pool=none"], "none"),
    ):
        answer = command(*asked, *change, "--dry-run")
        assert answer.exit_code
        assert words in answer.output + str(answer.exception)
    assert "need --executor argo" in command(*asked[:-2], "--dry-run").output
    assert "give SOURCE and --store" in command("shard", "s3://b/raw", "--executor", "argo").output


def test_stages_on_argo_cover_a_datasets_shards(tmp_path):
    dataset = bare_dataset(tmp_path, [3, 2]).uri
    for stage, *options in (
        ("recaption", "--captioner", "s3://b/c"),
        ("score", "--model", "s3://b/m"),
    ):
        answer = command(stage, dataset, *options, "--executor", "argo", "--dry-run")
        workflow = json.loads(answer.stdout)
        assert findings(workflow) == []
        args = templates(workflow)["process-range"]["container"]["args"]
        assert args[:5] == ["data", stage, dataset, *options]
        assert args[5] == "--recipe"
        assert args[-4::2] == ["--start", "--stop"]
        assert command(stage, dataset, *options, "--executor", "argo", "--stop", "1").exit_code
