"""A job's way through TorchX: submitted, described, followed, cancelled."""

import pytest
from torchx.runner import Runner
from torchx.specs import AppState

from clipmill.cluster import submit, trainer_scheduler
from clipmill.cluster.trainer_scheduler import TrainerScheduler, job_state
from clipmill.cluster.training_job import TrainingJobConfig
from clipmill.errors import ClusterError, ConfigError
from helpers.strict_schemas import findings

JOB = TrainingJobConfig(name="clip", command=("pretrain", "d"), pool="gpu", max_nodes=2)


@pytest.fixture
def torchx(cluster):
    def scheduler(session_name, **options):
        return TrainerScheduler(session_name, cluster.api())

    with Runner("clipmill", {trainer_scheduler.NAME: scheduler}) as runner:
        yield runner


def condition(kind, message=""):
    return {"status": {"conditions": [{"type": kind, "status": "True", "message": message}]}}


def test_a_jobs_life(cluster, torchx):
    handle = submit.submit(JOB, trainer_scheduler.NAME, namespace="ml", torchx=torchx)
    assert handle.startswith("kubeflow_trainer://clipmill/ml:clip-")
    (resource,) = cluster.resources.values()
    assert findings(resource) == []
    assert submit.status(handle, torchx=torchx).state == AppState.PENDING
    resource["status"] = {"jobsStatus": [{"name": "node", "active": 2}]}
    found = submit.status(handle, torchx=torchx)
    assert found.state == AppState.RUNNING
    assert len(found.roles[0].replicas) == 2
    assert [app.app_id for app in torchx.list(trainer_scheduler.NAME, {"namespace": "ml"})] == [
        handle.rpartition("/")[2]
    ]
    submit.cancel(handle, torchx=torchx)
    assert cluster.resources == {}
    with pytest.raises(ClusterError, match="there is no job"):
        submit.status(handle, torchx=torchx)


def test_a_job_is_waited_for_and_its_failure_is_said(cluster, torchx):
    def ended(kind, message):
        def change(resource):
            resource.update(condition(kind, message))

        return change

    where = {"pool": "gpu", "nodes": "1:2", "namespace": "ml", "torchx": torchx}
    cluster.on_change = ended("Complete", "")
    submit.run_to_end("clip", ["pretrain", "d"], poll_interval_seconds=0.01, **where)
    (resource,) = cluster.resources.values()
    assert resource["spec"]["trainer"]["numNodes"] == 2
    cluster.on_change = ended("Failed", "out of restarts")
    with pytest.raises(ClusterError, match="ended as FAILED: out of restarts"):
        submit.run_to_end("clip", ["pretrain", "d"], poll_interval_seconds=0.01, **where)


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ({}, AppState.PENDING),
        (condition("Suspended"), AppState.PENDING),
        (condition("Complete"), AppState.SUCCEEDED),
        (condition("Failed", "too many restarts"), AppState.FAILED),
    ],
)
def test_states(status, state):
    assert job_state(status)[0] == state


def test_the_newest_pod_of_a_node_is_read(cluster, torchx):
    handle = submit.submit(JOB, trainer_scheduler.NAME, namespace="ml", torchx=torchx)
    name = handle.rpartition(":")[2]
    with pytest.raises(ClusterError, match=r"node 1 of ml:.* has no pod"):
        list(submit.logs(handle, 1, follow=False, torchx=torchx))
    for number, (pod, day) in enumerate([("old", 1), ("new", 2)]):
        labels = {
            "jobset.sigs.k8s.io/jobset-name": name,
            "jobset.sigs.k8s.io/replicatedjob-name": "node",
            "batch.kubernetes.io/job-completion-index": "1",
        }
        stamp = f"2026-01-0{day}T00:00:00Z"
        meta = {"name": pod, "labels": labels, "creationTimestamp": stamp}
        cluster.pods.append({"metadata": meta})
        cluster.logs[f"{pod}/node"] = f"step {number}\nloss 2.5\nend"
    lines = list(submit.logs(handle, 1, follow=False, torchx=torchx))
    assert lines == ["step 1\n", "loss 2.5\n", "end\n"]
    app = handle.rpartition("/")[2]
    assert list(torchx.log_lines(handle, "node", 1, "loss")) == ["loss 2.5\n"]
    assert app.startswith("ml:")


def test_wrong_names_are_said():
    with submit.torchx_runner() as runner:
        with pytest.raises(ConfigError, match="'tpu' is no pool"):
            submit.submit(
                TrainingJobConfig(name="a", command=("x",), pool="tpu"), "local_cwd", torchx=runner
            )
        with pytest.raises(ClusterError, match="'ray' is no scheduler"):
            submit.submit(JOB, "ray", torchx=runner)


def test_every_scheduler_describes_the_same_command():
    with submit.torchx_runner() as runner:
        texts = [submit.dry_run(JOB, s, namespace="ml", torchx=runner) for s in submit.SCHEDULERS]
    assert all("--no-python clipmill pretrain d" in text for text in texts)


def test_the_torchx_command_finds_the_scheduler():
    """Its folder is a namespace package, which TorchX searches."""
    import os
    import subprocess
    import sys
    from pathlib import Path

    source = Path(__file__).resolve().parent.parent.parent / "src"
    code = (
        "from torchx.schedulers import get_scheduler_factories as f;"
        "print(type(f()['kubeflow_trainer']('s')).__name__)"
    )
    environment = {**os.environ, "PYTHONPATH": str(source), "TORCHX_PLUGINS_SOURCE": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "TrainerScheduler\n", done.stderr
