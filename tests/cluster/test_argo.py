"""The data plane's workflow: what Argo takes, and what its pods are told."""

import json
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


def templates(workflow):
    return {t["name"]: t for t in workflow["spec"]["templates"]}


@pytest.mark.parametrize(("shards", "per_pod"), [(0, 5), (1, 5), (10, 5), (128_001, 32)])
def test_ranges_meet_and_cover_all(shards, per_pod):
    found = ranges(shards, per_pod)
    assert sum(stop - start for start, stop in found) == shards
    assert all(a[1] == b[0] for a, b in pairwise(found))
    assert all(0 < stop - start <= per_pod for start, stop in found)


def test_argo_takes_it():
    for config in (RECAPTION, SHARD, DataWorkflowConfig(stage="score", subject="s3://b/d")):
        assert findings(data_workflow(config, 250)) == []


def test_a_pod_owns_a_range_and_another_step_lists_the_layer():
    workflow = data_workflow(RECAPTION, 250)
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
    found = templates(data_workflow(SHARD, 0))
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


def test_lost_nodes_are_retried_and_mistakes_are_not():
    retry = templates(data_workflow(RECAPTION, 1))["process-range"]["retryStrategy"]
    assert retry["expression"] == "asInt(lastRetry.exitCode) != 2"
    assert retry["backoff"] == {"duration": "30s", "factor": 2, "cap": "10m"}


def test_equal_work_has_an_equal_key():
    from dataclasses import replace

    def key(config):
        return templates(data_workflow(config, 9))["process-range"]["memoize"]["key"]

    assert key(RECAPTION) == key(replace(RECAPTION, parallelism=3, retries=1))
    other = replace(RECAPTION, arguments=("--captioner", "file:/x"))
    assert key(other) != key(RECAPTION)
    assert key(replace(RECAPTION, subject="s3://b/datasets/d2")) != key(RECAPTION)
    assert "inputs.parameters.start" in key(RECAPTION)
    # What a plan finds depends on the source's content, which no name tells.
    assert "memoize" not in templates(data_workflow(SHARD, 0))["plan"]


def test_a_workflows_life(cluster):
    api = cluster.api()
    name = submit_data_workflow(RECAPTION, 250, api=api)
    (resource,) = cluster.resources.values()
    assert workflow_status("ml", name, api=api) == ("Pending", "0/0")
    suspend_workflow("ml", name, api=api)
    assert resource_at(cluster)["spec"]["suspend"] is True
    suspend_workflow("ml", name, api=api, suspended=False)
    assert resource_at(cluster)["spec"]["suspend"] is False
    assert resource["spec"]["templates"] == resource_at(cluster)["spec"]["templates"]
    told = []
    resource_at(cluster)["status"] = {"phase": "Succeeded", "progress": "4/4"}
    wait_for_workflow("ml", name, api=api, report=lambda *args: told.append(args))
    assert told == [(4, 4, "pods")]
    resource_at(cluster)["status"] = {"phase": "Failed", "progress": "3/4"}
    with pytest.raises(ClusterError, match="ended as Failed after 3/4 pods"):
        wait_for_workflow("ml", name, api=api)
    with pytest.raises(ClusterError, match="there is no workflow ml/other"):
        suspend_workflow("ml", "other", api=api)


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


@pytest.mark.parametrize("name", ["shards_per_pod", "num_workers", "parallelism"])
def test_nothing_is_split_into_none(name):
    with pytest.raises(ConfigError, match=name):
        DataWorkflowConfig(stage="score", subject="d", **{name: 0})


def test_commands_are_those_that_the_command_line_has():
    """A flag that ``clipmill data`` lacks would fail on thousands of pods."""
    known = typer.main.get_command(app).commands["data"].commands
    for config in (RECAPTION, SHARD, DataWorkflowConfig(stage="score", subject="s3://b/d")):
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
