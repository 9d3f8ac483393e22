"""Compiled pipelines say where tasks run; on one machine that changes nothing."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from clipmill.pipelines.registry import PIPELINES

ROOT = Path(__file__).resolve().parent.parent.parent
MUTABLE = {
    "comp-deploy", "comp-is-dataset-processed", "comp-mark-dataset-processed",
    "comp-photo-report", "comp-promote", "comp-promote-compared", "comp-record-run-status",
    "comp-report", "comp-runs-report", "comp-shard", "comp-smoke-test-models", "comp-task-report",
}  # fmt: skip
"""Read or change what no digest names; a second shard, of drawn scenes, doesn't."""

LOCAL = """
import sys, warnings
warnings.filterwarnings("ignore")
from clipmill.components.deployment.record_run_status import record_run_status
from clipmill.pipelines.common import on_pool
from kfp import dsl, local

@dsl.component
def work(text: str) -> str:
    return text + "!"

@dsl.pipeline(name="small")
def small(store: str, run: str):
    with dsl.ExitHandler(on_pool(record_run_status(store=store, run=run), "cpu"), name="run"):
        with dsl.ParallelFor(items=["a", "b"]) as item:
            on_pool(work(text=item), "gpu")

root = sys.argv[1]
local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=root + "/kfp",
           workspace_root=root + "/workspace")
small(store=root + "/store", run="r")
"""


@pytest.mark.parametrize("name", PIPELINES)
def test_every_task_is_placed(name):
    spec, platform = yaml.safe_load_all((ROOT / "manifests" / f"{name}.yaml").read_text())
    executors = spec["deploymentSpec"]["executors"]
    placed = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert executors.keys() == placed.keys()
    for executor, where in placed.items():
        assert where["nodeSelector"]["labels"]["clipmill.io/pool"] in {"cpu", "gpu"}, executor
        assert where["emptyDirMounts"][0]["mountPath"] == "/dev/shm"
        assert where["secretAsEnv"][0]["optional"] is True
        assert where["podMetadata"]["labels"] == {"clipmill.io/metrics": "pipeline"}
        (variable,) = where["fieldPathAsEnv"]
        assert variable["name"] == "CLIPMILL_METRICS"
        ((annotation, address),) = where["podMetadata"]["annotations"].items()
        assert variable["fieldPath"] == f"metadata.annotations['{annotation}']"
        assert address.endswith(":9090")
        assert where["securityContext"] == {"runAsNonRoot": True}
        resources = executors[executor]["container"]["resources"]
        wants_gpu = where["nodeSelector"]["labels"]["clipmill.io/pool"] == "gpu"
        assert ("accelerator" in resources) == wants_gpu


@pytest.mark.parametrize("name", PIPELINES)
def test_every_task_is_tried_again(name):
    (spec, _) = yaml.safe_load_all((ROOT / "manifests" / f"{name}.yaml").read_text())
    dags = [spec["root"]["dag"], *(c["dag"] for c in spec["components"].values() if "dag" in c)]
    tasks = {n: t for dag in dags for n, t in dag["tasks"].items()}
    works = {n: t for n, t in tasks.items() if "executorLabel" in component(spec, t)}
    assert len(works) >= 2
    assert [n for n, t in works.items() if t.get("retryPolicy", {}).get("maxRetryCount") != 3] == []


@pytest.mark.parametrize("name", PIPELINES)
def test_only_what_digests_name_is_cached(name):
    (spec, _) = yaml.safe_load_all((ROOT / "manifests" / f"{name}.yaml").read_text())
    dags = [spec["root"]["dag"], *(c["dag"] for c in spec["components"].values() if "dag" in c)]
    for task in (t for dag in dags for t in dag["tasks"].values()):
        if "executorLabel" not in component(spec, task):
            continue
        # KFP numbers further tasks of a component: comp-promote-2.
        name, _, number = task["componentRef"]["name"].rpartition("-")
        base = name if number.isdigit() and name != "comp-shard" else task["componentRef"]["name"]
        cached = task.get("cachingOptions", {}).get("enableCache", False)
        assert cached == (base not in MUTABLE), base


def component(spec, task):
    return spec["components"][task["componentRef"]["name"]]


def test_the_cluster_pipeline_ends_with_a_record_and_deploys_only_where_told():
    (spec, _) = yaml.safe_load_all((ROOT / "manifests" / "end-to-end.yaml").read_text())
    last = spec["root"]["dag"]["tasks"]["record-run-status"]
    assert last["triggerPolicy"]["strategy"] == "ALL_UPSTREAM_TASKS_COMPLETED"
    text = (ROOT / "manifests" / "end-to-end.yaml").read_text()
    assert "condition: inputs.parameter_values['pipelinechannel--namespace'] != ''" in text


def test_a_placed_pipeline_runs_here_and_its_end_is_kept(tmp_path):
    program = tmp_path / "small.py"
    program.write_text(LOCAL)
    done = subprocess.run(
        [sys.executable, str(program), str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    end = yaml.safe_load((tmp_path / "store" / "runs" / "r" / "end.json").read_text())
    assert end == {"state": "SUCCEEDED", "error": ""}
