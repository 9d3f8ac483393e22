"""Compiled pipelines say where tasks run; on one machine that changes nothing."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from clipmill.pipelines.registry import PIPELINES

from clipmill.stage_records import read_stages

ROOT = Path(__file__).resolve().parent.parent.parent
MUTABLE = {
    "comp-deploy", "comp-photo-report", "comp-promote", "comp-promote-compared",
    "comp-report", "comp-runs-report", "comp-shard", "comp-task-report",
}  # fmt: skip
"""Read or change what no digest names; a second shard, of drawn scenes, doesn't."""

LOCAL = """
import sys, warnings
warnings.filterwarnings("ignore")
from pathlib import Path
from clipmill.pipelines.common import on_pool
from clipmill.pipelines.local import run_local
from kfp import dsl

@dsl.component(install_kfp_package=False)
def numbers(text: str) -> list:
    return [1, 2]

@dsl.component(install_kfp_package=False)
def work(store: str, prefix: str, text: str, number: int) -> str:
    from clipmill.stage_records import Stage
    with Stage("work", store=store, label=f"{prefix}{text}{number}"):
        return text

@dsl.component(install_kfp_package=False)
def prefix() -> str:
    return "-"

@dsl.pipeline(name="small")
def small(store: str):
    before = on_pool(prefix(), "cpu").output
    with dsl.ParallelFor(items=["a", "b"], name="each text") as text:
        several = on_pool(numbers(text=text), "cpu").output
        with dsl.ParallelFor(items=several, name="each number") as number:
            on_pool(work(store=store, prefix=before, text=text, number=number), "gpu")

run_local(small, {"store": sys.argv[1] + "/store"}, Path(sys.argv[1]))
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
        (variable,) = [v for v in where["fieldPathAsEnv"] if v["name"] == "CLIPMILL_METRICS"]
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
    assert works
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


@pytest.mark.parametrize("name", PIPELINES)
def test_the_first_picture_shows_all_tasks_except_those_of_loops_and_conditions(name):
    (spec, _) = yaml.safe_load_all((ROOT / "manifests" / f"{name}.yaml").read_text())
    for task in spec["root"]["dag"]["tasks"].values():
        if "dag" in component(spec, task):
            assert "parameterIterator" in task or "condition" in task["triggerPolicy"]
    names = [t["taskInfo"]["name"] for t in spec["root"]["dag"]["tasks"].values()]
    assert len(names) == len(set(names))


def test_a_deployment_waits_for_the_smoke_test_of_what_is_promoted():
    (spec, _) = yaml.safe_load_all((ROOT / "manifests" / "end-to-end.yaml").read_text())
    tasks = {t["taskInfo"]["name"]: t for t in spec["root"]["dag"]["tasks"].values()}
    for task in ("segmentation", "depth"):
        deploy = tasks[f"deploy {task} model"]
        assert "smoke-test-models" in deploy["dependentTasks"]
        promotion = deploy["inputs"]["parameters"]["promotion"]["taskOutputParameter"]
        producer = spec["root"]["dag"]["tasks"][promotion["producerTask"]]
        assert producer["taskInfo"]["name"] == f"promote {task} model"


@pytest.mark.parametrize("name", PIPELINES)
def test_each_task_knows_its_run_without_an_input(name):
    """An input would keep a finished task of another run from the cache."""
    spec, platform = yaml.safe_load_all((ROOT / "manifests" / f"{name}.yaml").read_text())
    inputs = [c.get("inputDefinitions", {}) for c in [spec["root"], *spec["components"].values()]]
    assert not [i for i in inputs if "run" in i.get("parameters", {})]
    for executor in platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values():
        fields = {v["name"]: v["fieldPath"] for v in executor["fieldPathAsEnv"]}
        assert fields["CLIPMILL_RUN"] == "metadata.labels['workflows.argoproj.io/workflow']"


def test_tasks_of_nested_loops_run_on_this_machine_with_their_own_items(tmp_path):
    program = tmp_path / "small.py"
    program.write_text(LOCAL)
    done = subprocess.run(
        [sys.executable, str(program), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "CLIPMILL_RUN": "r"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    labels = {s.label for s in read_stages(f"{tmp_path}/store", "r")}
    assert labels == {"-a1", "-a2", "-b1", "-b2"}


@pytest.mark.parametrize("name", PIPELINES)
def test_a_list_of_outputs_holds_texts(name):
    """KFP writes an output into the JSON of a list as a text: one that is a list breaks it."""
    (spec, _) = yaml.safe_load_all((ROOT / "manifests" / f"{name}.yaml").read_text())
    dags = [spec["root"]["dag"], *(c["dag"] for c in spec["components"].values() if "dag" in c)]
    for tasks, task in ((d["tasks"], task) for d in dags for task in d["tasks"].values()):
        inputs = task.get("inputs", {}).get("parameters", {})
        constants = [v["runtimeValue"]["constant"] for v in inputs.values() if "runtimeValue" in v]
        for constant in (c for c in constants if isinstance(c, list)):
            for item in re.findall(r"parameters\['(pipelinechannel--[^']+)'\]", str(constant)):
                if producer := inputs[item].get("taskOutputParameter"):
                    task_above = tasks[producer["producerTask"]]
                    outputs = component(spec, task_above)["outputDefinitions"]["parameters"]
                    kind = outputs[producer["outputParameterKey"]]["parameterType"]
                    assert kind == "STRING", item
