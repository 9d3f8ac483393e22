"""The AppDef: run here by two processes, and the same as a TrainJob and as a Volcano job."""

import shlex

import pytest
from torchx.schedulers.kubernetes_scheduler import app_to_resource, sanitize_for_serialization
from torchx.specs import macros

from clipmill.cluster.pools import load_pools
from clipmill.cluster.trainer_scheduler import train_job
from clipmill.cluster.training_job import TrainingJobConfig, parse_nodes, training_app
from clipmill.errors import ConfigError
from helpers.strict_schemas import findings

POOLS = load_pools({})
JOB = TrainingJobConfig(
    name="clip-b16",
    command=("pretrain", "s3://b/datasets/d", "--store", "s3://b", "--set", "a=it's $x"),
    pool="gpu-8x",
    min_nodes=2,
    max_nodes=4,
    queue="clipmill",
    topology="topology.kubernetes.io/zone",
)


def script(rank0_env: str) -> str:
    role = training_app(JOB, POOLS[JOB.pool]).roles[0]
    values = macros.Values(img_root="", app_id="a", replica_id="0", rank0_env=rank0_env)
    return values.apply(role).args[1]


def test_torchrun_is_told_nodes_processes_and_the_first_node():
    line = script("PET_MASTER_ADDR")
    assert "--nnodes=2:4 --nproc-per-node=8" in line
    assert "--rdzv-endpoint=${PET_MASTER_ADDR:=localhost}:29500" in line


def test_the_command_comes_through_the_shell_as_it_was_given():
    line = script("X")
    words = shlex.split(line.split("--no-python clipmill ")[1])
    assert tuple(words) == JOB.command


def test_one_node_needs_no_other():
    job = TrainingJobConfig(name="a", command=("recipes",), pool="gpu")
    role = training_app(job, POOLS["gpu"]).roles[0]
    assert "--nnodes=1 --nproc-per-node=1 --rdzv-endpoint=localhost:0" in role.args[1]
    assert role.min_replicas is None
    assert role.resource.gpu == 1


def test_a_checkpoint_has_the_grace_of_the_pod_less_ten_seconds():
    role = training_app(JOB, POOLS[JOB.pool]).roles[0]
    assert role.env["PET_SHUTDOWN_TIMEOUT"] == "110"
    assert not role.env.keys() & {
        # Trainer's webhook refuses a job that sets them.
        "PET_NNODES", "PET_NPROC_PER_NODE", "PET_NODE_RANK", "PET_MASTER_ADDR", "PET_MASTER_PORT",
    }  # fmt: skip


@pytest.mark.parametrize("pool", sorted(POOLS))
def test_the_trainjob_is_what_kubeflow_trainer_takes(pool):
    from dataclasses import replace

    job = replace(JOB, pool=pool)
    made = train_job(training_app(job, POOLS[pool]), job, POOLS[pool], name="n", namespace="ml")
    assert findings(made) == []
    assert made["spec"]["runtimeRef"]["name"] == f"clipmill-{pool}"
    assert made["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "clipmill"
    (patch,) = made["spec"]["runtimePatches"]
    (node,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = node["template"]["spec"]["template"]
    assert pod["spec"]["terminationGracePeriodSeconds"] == 120
    assert pod["metadata"]["annotations"] == {
        "kueue.x-k8s.io/podset-preferred-topology": "topology.kubernetes.io/zone"
    }


def test_the_volcano_job_is_what_volcano_takes_and_restricted():
    made = app_to_resource(
        training_app(JOB, POOLS[JOB.pool]), "q", JOB.service_account, None, 0, 0, None
    )
    made = sanitize_for_serialization(made)
    assert findings(made) == []
    assert [task["minAvailable"] for task in made["spec"]["tasks"]] == [1, 1, 0, 0]
    pod = made["spec"]["tasks"][3]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["name"] == "node-3"
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert [m["mountPath"] for m in container["volumeMounts"]] == ["/dev/shm", "/tmp"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["nodeSelector"] == {"clipmill.io/pool": "gpu-8x"}
    assert pod["terminationGracePeriodSeconds"] == 120
    assert "VC_NODE_0_HOSTS" in container["command"][2]


def test_nodes():
    assert parse_nodes("3") == (3, 3)
    assert parse_nodes("2:8") == (2, 8)
    with pytest.raises(ConfigError, match="nodes were 'two'"):
        parse_nodes("two")


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "My_Job"},
        {"name": "a" * 41},
        {"min_nodes": 0},
        {"min_nodes": 3, "max_nodes": 2},
        {"grace_seconds": 10},
        {"command": ()},
    ],
)
def test_a_job_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(ConfigError):
        TrainingJobConfig(**{"name": "a", "command": ("x",), **wrong})
