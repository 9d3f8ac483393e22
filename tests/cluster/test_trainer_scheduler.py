"""A job's way through TorchX: submitted, described, followed, cancelled."""

import json

import pytest
from torchx.runner import Runner
from torchx.specs import AppState

from clipmill.cluster import submit, trainer_scheduler
from clipmill.cluster.pod_status import pod_problem, summarize_problems
from clipmill.cluster.trainer_scheduler import TrainerScheduler, job_state, newest_per_node
from clipmill.cluster.training_job import TrainingJobConfig
from clipmill.errors import ClusterError, ConfigError
from helpers.strict_schemas import findings

JOB = TrainingJobConfig(
    name="clip", command=("pretrain", "d"), pool="gpu", min_nodes=2, max_nodes=2
)
TABLE = {
    "images": {"train": "registry.example.com/train:1"},
    "pools": {"gpu": {"gpus": 1, "cpu": 8, "memoryGibibytes": 64}},
}
RUN = ["pretrain", "clip", "d", "--recipe", "clip-tiny", "--set", "train.batch_size=32"]


@pytest.fixture
def torchx(cluster):
    def scheduler(session_name, **options):
        return TrainerScheduler(session_name, cluster.api(), poll_interval_seconds=0.01)

    cluster.config_maps["ml/clipmill-pools"] = {"data": {"pools.json": json.dumps(TABLE)}}
    cluster.secrets.add("ml/clipmill-store")
    with Runner("clipmill", {trainer_scheduler.NAME: scheduler}) as runner:
        yield runner


def submit_job(cluster, torchx):
    return submit.submit(
        JOB, trainer_scheduler.NAME, namespace="ml", torchx=torchx, api=cluster.api()
    )


def pod(name="p", index=0, *, job="j", created=1, **status):
    """A node's pod; a status of containers goes to its only one."""
    labels = {
        "jobset.sigs.k8s.io/jobset-name": job,
        "jobset.sigs.k8s.io/replicatedjob-name": "node",
        "batch.kubernetes.io/job-completion-index": str(index),
        "app.kubernetes.io/managed-by": "torchx",
    }
    stamp = f"2026-01-0{created}T00:00:00Z"
    return {
        "metadata": {"name": name, "labels": labels, "creationTimestamp": stamp},
        "status": status,
    }


def ready(**fields):
    running = {"containerStatuses": [{"name": "node", "state": {"running": {}}}]}
    return pod(conditions=[{"type": "Ready", "status": "True"}], **running, **fields)


def container(**state):
    return [{"name": "node", "state": state}]


def condition(kind, message=""):
    return {"status": {"conditions": [{"type": kind, "status": "True", "message": message}]}}


def test_a_jobs_life(cluster, torchx):
    handle = submit_job(cluster, torchx)
    assert handle.startswith("kubeflow_trainer://clipmill/ml:clip-")
    (resource,) = cluster.resources.values()
    assert findings(resource) == []
    assert submit.status(handle, torchx=torchx).state == AppState.PENDING
    assert "image" not in resource["spec"]["trainer"]
    # One of two nodes isn't a job that runs.
    name = resource["metadata"]["name"]
    cluster.pods = [ready(job=name)]
    assert submit.status(handle, torchx=torchx).state == AppState.PENDING
    cluster.pods.append(ready(job=name, index=1))
    found = submit.status(handle, torchx=torchx)
    assert found.state == AppState.RUNNING
    assert len(found.roles[0].replicas) == 2
    listed = submit.list_jobs(trainer_scheduler.NAME, namespace="ml", torchx=torchx)
    assert listed == [(handle, "RUNNING")]
    num_lists = sum("/pods" in path for _, path in cluster.requests)
    submit.cancel(handle, torchx=torchx)
    assert cluster.resources == {}
    # A list of 512 pods is 6 MB.
    assert sum("/pods" in path for _, path in cluster.requests) == num_lists + 2
    # In the foreground Trainer would create the pods again.
    assert cluster.queries[-1] == {"propagationPolicy": ["Background"]}
    with pytest.raises(ClusterError, match="there is no job"):
        submit.status(handle, torchx=torchx)


def test_a_job_is_waited_for_and_its_failure_is_said(cluster, torchx):
    def ended(kind, message):
        def change(resource):
            resource.update(condition(kind, message))

        return change

    fields = {"pool": "gpu", "nodes": "1:2", "namespace": "ml", "torchx": torchx}
    fields |= {"api": cluster.api(), "poll_interval_seconds": 0.01}
    cluster.on_change = ended("Complete", "")
    submit.run_to_end("clip", RUN, **fields)
    (resource,) = cluster.resources.values()
    assert resource["spec"]["trainer"]["numNodes"] == 2
    cluster.on_change = ended("Failed", "out of restarts")
    with pytest.raises(ClusterError, match="ended as FAILED: out of restarts"):
        submit.run_to_end("clip", RUN, **fields)
    # Neither a wrong recipe nor a batch that doesn't divide reaches the cluster.
    submitted = len(cluster.history)
    for command, nodes, words in (
        ([*RUN, "--set", "train.stps=3"], "1", "stps"),
        ([*RUN, "--set", "train.batch_size=64"], "3", "over 3 nodes"),
        (["pretrain", "clip", "d", "--recipe", "clip-tini"], "1", "no recipe 'clip-tini'"),
    ):
        with pytest.raises(ConfigError, match=words):
            submit.run_to_end("clip", command, **{**fields, "nodes": nodes})
    assert len(cluster.history) == submitted


def test_a_job_that_cannot_run_is_cancelled_with_the_reason(cluster, torchx):
    waiting = {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "train:9"'}

    def started(resource):
        name = resource["metadata"]["name"]
        cluster.pods = [pod(job=name, containerStatuses=container(waiting=waiting))]

    cluster.on_change = started
    with pytest.raises(
        ClusterError,
        match="couldn't run for 1 s and was cancelled: ImagePullBackOff: Back-off",
    ):
        submit.run_to_end(
            "clip", RUN, "gpu", "1", "", "ml", torchx=torchx, api=cluster.api(),
            start_timeout_seconds=1, poll_interval_seconds=1.1,
        )  # fmt: skip
    assert cluster.resources == {}


def test_what_a_job_needs_is_checked_before_it_is_submitted(cluster, torchx):
    cluster.secrets.clear()
    with pytest.raises(ClusterError, match="the namespace ml has no secret clipmill-store"):
        submit_job(cluster, torchx)
    assert cluster.history == []
    # Without the right to read secrets nothing can be said about them.
    cluster.forbidden_paths.add("/api/v1/namespaces/ml/secrets/clipmill-store")
    submit_job(cluster, torchx)
    with pytest.raises(ConfigError, match="is a folder of this machine"):
        submit.check_dataset("out/store/datasets/d")


TERMINATED = {"exitCode": 1, "reason": "Error", "message": "step 3\nCUDA error: no device\n"}


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (
            {"containerStatuses": container(waiting={"reason": "ErrImagePull", "message": "no"})},
            "ErrImagePull: no",
        ),
        (
            {
                "containerStatuses": container(
                    waiting={
                        "reason": "CreateContainerConfigError",
                        "message": 'secret "clipmill-store" not found',
                    }
                )
            },
            'CreateContainerConfigError: secret "clipmill-store" not found',
        ),
        (
            {
                "phase": "Pending",
                "conditions": [
                    {
                        "type": "PodScheduled",
                        "status": "False",
                        "reason": "Unschedulable",
                        "message": "0/1 nodes are available: 1 Insufficient cpu.",
                    }
                ],
            },
            "Unschedulable: 0/1 nodes are available: 1 Insufficient cpu.",
        ),
        (
            {"containerStatuses": container(terminated={"exitCode": 137, "reason": "OOMKilled"})},
            (
                "OOMKilled: the process used more memory than memoryGibibytes of its pool, or "
                "serving.resources of an endpoint"
            ),
        ),
        (
            {"containerStatuses": container(terminated=TERMINATED)},
            "exit code 1: CUDA error: no device",
        ),
        (
            {
                "containerStatuses": container(
                    terminated={
                        "exitCode": 2,
                        "message": "error: there is no dataset s3://b/d\n  expected: one\n",
                    }
                )
            },
            "exit code 2: error: there is no dataset s3://b/d",
        ),
        (
            {"initContainerStatuses": container(waiting={"reason": "ImagePullBackOff"})},
            "ImagePullBackOff",
        ),
        (
            {"phase": "Failed", "reason": "Evicted", "message": "low on disk"},
            "Evicted: low on disk",
        ),
        ({"containerStatuses": container(waiting={"reason": "ContainerCreating"})}, ""),
    ],
)
def test_why_a_pod_does_not_run(status, reason):
    assert pod_problem(pod(**status)) == reason


def test_a_users_mistake_is_named_before_what_it_causes_elsewhere():
    failed = [pod(index=i, containerStatuses=container(terminated=TERMINATED)) for i in range(3)]
    mistake = {"exitCode": 2, "message": "error: no such layer"}
    failed.append(pod(index=3, containerStatuses=container(terminated=mistake)))
    assert summarize_problems(failed[:3]) == "3 of 3 nodes: exit code 1: CUDA error: no device"
    resource = submitted(**condition("Failed", "jobset failed"))
    state, message = job_state(resource, failed)
    assert state == AppState.FAILED
    assert message == "1 of 4 nodes: exit code 2: error: no such layer; jobset failed"


def test_a_job_without_pods_is_explained_by_its_events(cluster, torchx):
    handle = submit_job(cluster, torchx)
    assert "no pods yet" in submit.status(handle, torchx=torchx).msg
    message = 'resources reconciliation failed: no matches for kind "PodGroup"'
    cluster.events = [
        {
            "type": "Warning",
            "reason": "TrainJobResourcesCreationFailed",
            "message": message,
            "metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"},
        }
    ]
    found = submit.status(handle, torchx=torchx)
    assert found.state == AppState.PENDING
    assert found.msg == f"TrainJobResourcesCreationFailed: {message}"


def test_a_node_that_cant_be_replaced_is_explained_by_its_jobs_events(cluster, torchx):
    """The chart was uninstalled: the pods' service account is gone."""
    handle = submit_job(cluster, torchx)
    (resource,) = cluster.resources.values()
    name = resource["metadata"]["name"]
    stopped = {"exitCode": 143, "message": "stopped after step 9"}
    ended = pod(
        job=name, created=2, phase="Failed", containerStatuses=container(terminated=stopped)
    )
    message = 'Error creating: pods "p" is forbidden: serviceaccount "clipmill-train" not found'
    event = {"type": "Warning", "reason": "FailedCreate", "message": message, "metadata": {}}
    cluster.pods = [ended]
    cluster.events = [{**event, "lastTimestamp": "2026-01-01T09:00:00Z"}]
    # A refusal of before this pod was created is over.
    assert submit.status(handle, torchx=torchx).msg == "exit code 143: stopped after step 9"
    cluster.events = [{**event, "lastTimestamp": "2026-01-02T09:00:00Z"}]
    found = submit.status(handle, torchx=torchx)
    assert found.state == AppState.PENDING
    assert found.msg == f"exit code 143: stopped after step 9; FailedCreate: {message}"


def submitted(min_nodes=1, **fields):
    annotations = {"clipmill.io/min-nodes": str(min_nodes)}
    return {
        "metadata": {"annotations": annotations},
        "spec": {"trainer": {"numNodes": 2}},
        **fields,
    }


def test_an_elastic_job_runs_with_its_fewest_nodes():
    assert job_state(submitted(min_nodes=1), [ready()])[0] == AppState.RUNNING
    assert job_state(submitted(min_nodes=2), [ready()])[0] == AppState.PENDING


def test_a_replaced_pod_is_not_the_nodes_state():
    old = pod("old", containerStatuses=container(terminated=TERMINATED))
    assert newest_per_node([old, ready(name="new", created=2)]) == [ready(name="new", created=2)]


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ({}, AppState.PENDING),
        (condition("Suspended"), AppState.SUBMITTED),
        (condition("Complete"), AppState.SUCCEEDED),
        (condition("Failed", "too many restarts"), AppState.FAILED),
    ],
)
def test_states(status, state):
    assert job_state(submitted(**status), [])[0] == state


def test_status_tells_why_kueue_does_not_admit_a_job(cluster, torchx):
    handle = submit_job(cluster, torchx)
    (job,) = cluster.resources.values()
    job["metadata"]["uid"] = "u-1"
    job.update(condition("Suspended", "TrainJob is suspended"))
    assert submit.status(handle, torchx=torchx).msg == "TrainJob is suspended"
    missing = "insufficient unused quota for cpu in flavor ml-clipmill-gpu, 8 more needed"
    # As Kueue 0.17 wrote it.
    path = "/apis/kueue.x-k8s.io/v1beta2/namespaces/ml/workloads/trainjob-clip-f88f5"
    cluster.resources[path] = {
        "metadata": {"name": "trainjob-clip-f88f5", "labels": {"kueue.x-k8s.io/job-uid": "u-1"}},
        "spec": {"queueName": "research"},
        "status": {
            "conditions": [
                {
                    "type": "QuotaReserved",
                    "status": "False",
                    "reason": "Pending",
                    "message": f"couldn't assign flavors to pod set node: {missing}",
                }
            ]
        },
    }
    status = submit.status(handle, torchx=torchx)
    assert status.state == AppState.SUBMITTED
    assert status.msg.startswith("in the queue research: ")
    assert status.msg.endswith(missing)


def test_the_newest_pod_of_a_node_is_read(cluster, torchx):
    handle = submit_job(cluster, torchx)
    name = handle.rpartition(":")[2]
    with pytest.raises(ClusterError, match=r"node 1 of ml:.* has no log yet"):
        list(submit.logs(handle, 1, follow=False, torchx=torchx))
    for number, pod_name in enumerate(["old", "new"]):
        cluster.pods.append(ready(name=pod_name, job=name, index=1, created=number + 1))
        cluster.logs[f"{pod_name}/node"] = f"step {number}\nloss 2.5\nend"
    lines = list(submit.logs(handle, 1, follow=False, torchx=torchx))
    assert lines == ["step 1\n", "loss 2.5\n", "end\n"]
    app = handle.rpartition("/")[2]
    assert list(torchx.log_lines(handle, "node", 1, "loss")) == ["loss 2.5\n"]
    assert app.startswith("ml:")


def test_a_followed_log_waits_for_the_node_and_continues_with_its_replacement(
    cluster, torchx, caplog
):
    handle = submit_job(cluster, torchx)
    (resource,) = cluster.resources.values()
    name = handle.rpartition(":")[2]
    cluster.logs = {"first/node": "step 1\nstep 2\n", "second/node": "step 2\nstep 3\n"}
    unscheduled = [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}]
    cluster.pods = [pod("first", job=name, conditions=unscheduled)]
    first = ready(name="first", job=name)
    # The connection to the first breaks once: no line comes twice.
    pods = [cluster.pods[0]] * 3 + [first, first, ready(name="second", job=name, created=2)]
    states = iter(pods)

    def next_state(path):
        if "/trainjobs/" in path:
            current = next(states, None)
            if current is None:
                resource.update(condition("Complete"))
            else:
                cluster.pods = [current]

    cluster.on_read = next_state
    with caplog.at_level("WARNING"):
        lines = list(submit.logs(handle, 0, follow=True, torchx=torchx))
    assert lines == ["step 1\n", "step 2\n", "step 2\n", "step 3\n"]
    assert "Unschedulable" in caplog.text


def test_wrong_names_are_said():
    with submit.torchx_runner() as runner:
        with pytest.raises(ConfigError, match="'tpu' is no pool"):
            submit.submit(
                TrainingJobConfig(name="a", command=("x",), pool="tpu"), "local_cwd", torchx=runner
            )
        with pytest.raises(ClusterError, match="'ray' is no scheduler"):
            submit.submit(JOB, "ray", torchx=runner)
        with pytest.raises(ClusterError, match="'ray' is no scheduler"):
            submit.list_jobs("ray", namespace="ml", torchx=runner)


def test_every_scheduler_describes_the_same_command():
    with submit.torchx_runner() as runner:
        texts = [submit.dry_run(JOB, s, namespace="ml", torchx=runner) for s in submit.SCHEDULERS]
    # YAML wraps long lines.
    assert all("--no-python clipmill pretrain d" in " ".join(text.split()) for text in texts)


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
