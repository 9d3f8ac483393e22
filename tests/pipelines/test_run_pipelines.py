"""Pipelines run to their end on this machine, in processes, as small as can be."""

import json
import os
import shlex
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from clipmill import stages
from clipmill.cli import app
from clipmill.lineage import lineage
from clipmill.recipes.registry import get_recipe
from clipmill.stage_records import read_stages
from clipmill.study.result import read_study
from clipmill.tasks.finetune import FinetuneConfig
from clipmill.tasks.sweep import read_sweep
from helpers import program, program_environment

STEPS = ["train.steps=2", "train.batch_size=4", "train.log_every=1", "train.num_threads=1"]
SCENES = ["size=32", "num_pairs=6", "num_captioner_pairs=6", "num_labeled=4", "num_test=2"]
CAPTIONS = {
    "scenes_overrides": SCENES,
    "captioner_overrides": [
        *STEPS,
        "model.clip.vision.image_size=32",
        "model.clip.text.vocab_size=600",
    ],
    "clip_overrides": [*STEPS, "model.vision.image_size=32", "model.text.vocab_size=600"],
}
KINDS = {"dataset": 2, "coca": 1, "clip": 1, "task": 2}
TUNING = [*STEPS, "model.crop_size=32"]


def run(name, arguments, folder, run_name="r"):
    """The finished process; its lines are on standard output."""
    return subprocess.run(
        program("run_pipeline", name, json.dumps(arguments), folder),
        env=program_environment(CLIPMILL_CACHE=str(folder / "cache"), CLIPMILL_RUN=run_name),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def finish(name, arguments, folder, run_name="r"):
    """Names of the stages that worked, and of those that found their result, by a pipeline."""
    done = run(name, arguments, folder, run_name)
    assert done.returncode == 0, done.stdout
    stages = read_stages(arguments["store"], run_name)
    made = {s.name for s in stages if not s.reused}
    return made, {s.name for s in stages} - made


def wanted_tasks(source):
    """A sweep of two points and two rungs, and a plain fine-tuning."""
    depth = {
        "recipe": "sweep-depth-tiny",
        "data": f"{source}/nyu_depth_v2.tar",
        "min_metric": 99.0,
        "overrides": [
            *(f"finetune.{override}" for override in TUNING),
            'grid={"train.schedule.lr": [0.004, 0.002]}',
            "rungs=[0.5, 1.0]",
            "reduction_fraction=0.5",
        ],
    }
    segmentation = {
        "recipe": "upernet-tiny",
        "data": f"{source}/ade20k.tar",
        "min_metric": 0.0,
        "overrides": TUNING,
    }
    return [depth, segmentation]


def prepare(store, source, tasks):
    """Do here what takes a model library, once for all processes; the encoder."""
    dataset, good = (
        stages.shard("shards-tiny", [], f"{source}/{name}.tar", store)
        for name in ("pairs", "captioning")
    )
    captioner = stages.train_captioner("coca-tiny", CAPTIONS["captioner_overrides"], good, store)
    layer = stages.recaption("recaption-tiny", [], dataset, captioner, store)
    scores = stages.score("score-basic", [], dataset, store)
    kept = stages.select("select-tiny", [], dataset, store, layers=scores)
    encoder = stages.pretrain(
        "clip-tiny",
        CAPTIONS["clip_overrides"],
        dataset,
        store,
        captions="both",
        layer=layer,
        select=[kept],
    )
    for wanted in map(stages.TaskSpec.from_json, tasks):
        for wave in range(wanted.sweep.num_waves):
            points, has_more = stages.list_sweep_points(wanted, encoder, store, wave)
            assert has_more == (wave + 1 < wanted.sweep.num_waves)
            for point in points:
                assert stages.sweep_point(wanted, point, encoder, store)
    return encoder


@pytest.mark.parametrize(
    "prepared", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["found", "made"]
)
def test_pipelines_run_to_their_end_and_find_each_others_work(prepared, tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPMILL_CACHE", str(tmp_path / "cache"))
    store = str(tmp_path / "store")
    source = stages.scenes("scenes-tiny", SCENES, store)
    tasks = wanted_tasks(source)
    encoder = prepare(store, source, tasks) if prepared else ""
    heavy = {"captioner", "recaption", "score", "select", "pretrain", "sweep point"}

    news = {"store": store, "tasks": tasks, **CAPTIONS}
    made, found = finish("refresh", news, tmp_path, "first")
    # What is found is what the same parameters made elsewhere: they reach every task.
    assert (found if prepared else made) >= heavy
    assert {path.parent.name for path in Path(store, "serving").glob("*/promotion.json")} == {
        "depth",
        "segmentation",
    }
    (page,) = Path(store, "reports").glob("*/report.html")
    assert "Serves now" in page.read_text()
    # Typed artifacts: two datasets, a captioner, an encoder, the best model of each sweep.
    artifacts = ("dataset", "trained", "encoder", "task_model")
    files = [file for name in artifacts for file in tmp_path.glob(f"kfp/**/{name}")]
    records = [json.loads(file.read_text()) for file in files]
    assert Counter(r["kind"] for r in records) == KINDS
    assert all(lineage(r["store_uri"]).digest == r["digest"] for r in records)

    made, found = finish("pretrain-encoder", {"store": store, **CAPTIONS}, tmp_path, "third")
    assert (made, found) == (set(), {"scenes", "shard", *heavy} - {"sweep point"})
    (pretrained,) = (s.output for s in read_stages(store, "third") if s.name == "pretrain")
    assert not prepared or pretrained == encoder

    tuning = {"store": store, "encoder": pretrained, "tasks": tasks}
    made, found = finish("encoder-to-tasks", tuning, tmp_path, "fourth")
    assert (made, found) == ({"promote", "report"}, {"sweep point", "sweep"})
    points = [s for s in read_stages(store, "fourth") if s.name == "sweep point"]
    assert Counter(s.label.partition("-")[0] for s in points) == {"depth": 3, "segmentation": 1}


@pytest.mark.slow
def test_a_sweep_that_was_killed_is_resumed(tmp_path, monkeypatch):
    """Points that were finished are found; the tracker has a run for each, below the sweep's."""
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("CLIPMILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("CLIPMILL_TRACKING", f"mlflow:{tmp_path / 'mlruns'}")
    store = tmp_path / "store"
    source = stages.scenes("scenes-tiny", SCENES, str(store))
    depth, _ = wanted_tasks(source)
    encoder = "random:timm/test_resnet"
    arguments = {"store": str(store), "encoder": encoder, "tasks": [depth]}
    command = program("run_pipeline", "encoder-to-tasks", json.dumps(arguments), tmp_path)
    variables = ("CLIPMILL_CACHE", "CLIPMILL_TRACKING", "MLFLOW_ALLOW_FILE_STORE")
    passed = {name: os.environ[name] for name in variables}
    environment = program_environment(CLIPMILL_RUN="r", **passed)
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    while not (finished := list(store.glob("trials/*/trial.json"))):
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = {p: p.stat().st_mtime_ns for p in [*finished, *store.glob("models/*/model.json")]}
    assert not list(store.glob("sweeps/*/sweep.json"))

    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    assert done.returncode == 0, done.stdout.decode()
    after = {p: p.stat().st_mtime_ns for p in before}
    assert after == before
    (uri,) = map(str, store.glob("sweeps/*"))
    result = read_sweep(uri)
    assert [t.rung for t in result.trials] == [0, 0, 1]
    assert len(list(store.glob("trials/*/trial.json"))) == 3
    (page,) = tmp_path.glob("kfp/**/sweep/report")
    assert f"{result.best.value:.3f} m" in page.read_text()

    client = mlflow.MlflowClient(str(tmp_path / "mlruns"))
    experiment = client.get_experiment_by_name("clipmill").experiment_id
    (parent,) = client.search_runs([experiment], f"tags.`clipmill.uri` = '{uri}'")
    assert parent.data.metrics["rmse"] == result.best.value
    trials = client.search_runs([experiment], f"tags.`clipmill.sweep` = '{uri}'")
    assert {t.data.tags["mlflow.parentRunId"] for t in trials} == {parent.info.run_id}
    tracked = {float(t.data.params["train.schedule.lr"]): t.data.metrics["rmse"] for t in trials}
    assert sorted(t.data.metrics["rmse"] for t in trials) == sorted(t.value for t in result.trials)
    assert set(tracked) == {0.004, 0.002}


def test_a_study_runs_to_its_page(tmp_path):
    depth = get_recipe("depth-tiny", FinetuneConfig, TUNING)
    conditions = [{"name": "G"}, {"name": "rich", "captions": "synthetic", "layer": "rich"}]
    overrides = [
        *(f"synthetic_data.scenes.{override}" for override in SCENES),
        "scoring_clip=G",
        "teacher=",
        *(f"clip_runs.clip.{override}" for override in CAPTIONS["clip_overrides"]),
        f"transfers={json.dumps({'depth': depth.to_json()})}",
        f"conditions={json.dumps(conditions)}",
        "seeds=[0]",
    ]
    arguments = {"store": f"{tmp_path}/store", "study_overrides": overrides}
    assert finish("study", arguments, tmp_path) == ({"study"}, set())
    (shown,) = tmp_path.glob("kfp/**/report")
    (page,) = tmp_path.glob("store/studies/*/study.html")
    assert shown.read_bytes() == page.read_bytes()
    assert "rich" in page.read_text()
    # The command that it says made it is one, and finds it.
    (part,) = read_study(str(page.parent)).parts
    program, *words = shlex.split(part.command)
    assert program == "clipmill"
    answer = CliRunner().invoke(app, words)
    assert answer.stdout.splitlines()[-1] == str(page)


def test_a_failed_run_says_why_once(tmp_path):
    wanted = {"recipe": "depth-tiny", "data": str(tmp_path), "min_metric": 1.0}
    gone = f"{tmp_path}/store/encoders/both-000000000000"
    arguments = {"store": f"{tmp_path}/store", "encoder": gone, "tasks": [wanted]}
    done = run("encoder-to-tasks", arguments, tmp_path)
    assert done.returncode == 1
    reasons = [line for line in done.stdout.splitlines() if "clipmill.errors." in line]
    assert len(reasons) == 1
    assert f"NotFoundError: there is no checkpoint at {gone}" in reasons[0]
