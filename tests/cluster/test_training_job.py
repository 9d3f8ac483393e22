"""The AppDef: run here by two processes, and the same as a TrainJob and as a Volcano job."""

import shlex
from dataclasses import replace

import pytest
from torchx.schedulers.kubernetes_scheduler import app_to_resource, sanitize_for_serialization
from torchx.specs import macros

from clipmill.cluster.pools import load_pools
from clipmill.cluster.trainer_scheduler import train_job
from clipmill.cluster.training_job import (
    TrainingJobConfig,
    check_batch,
    parse_nodes,
    training_app,
)
from clipmill.engine.config import TrainConfig
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
    role = training_app(JOB, POOLS[JOB.pool], "train:1").roles[0]
    values = macros.Values(img_root="", app_id="a", replica_id="0", rank0_env=rank0_env)
    return values.apply(role).args[1]


def test_torchrun_is_told_nodes_processes_and_the_first_node():
    line = script("PET_MASTER_ADDR")
    assert "--nnodes=2:4 --nproc-per-node=8" in line
    assert "--rdzv-endpoint=${PET_MASTER_ADDR:=localhost}:29500" in line


def test_the_command_comes_through_the_shell_as_it_was_given():
    line = script("X")
    words = shlex.split(line.split("--no-python clipmill ")[1].split(" & torchrun=")[0])
    assert tuple(words) == JOB.command


def test_one_node_needs_no_other():
    job = TrainingJobConfig(name="a", command=("recipes",), pool="gpu")
    role = training_app(job, POOLS["gpu"], "train:1").roles[0]
    assert "--nnodes=1 --nproc-per-node=1 --rdzv-endpoint=localhost:0" in role.args[1]
    assert role.min_replicas is None
    assert role.resource.gpu == 1


def test_a_pools_price_is_the_jobs():
    pool = replace(POOLS["gpu"], device_price="2.50 USD")
    env = training_app(JOB, pool, "train:1").roles[0].env
    assert env["CLIPMILL_DEVICE_PRICE"] == "2.50 USD"
    assert "CLIPMILL_DEVICE_PRICE" not in training_app(JOB, POOLS["gpu"], "t:1").roles[0].env
    with pytest.raises(ConfigError, match=r"2\.50 USD"):
        replace(POOLS["gpu"], device_price="cheap")


def test_a_checkpoint_has_the_grace_of_the_pod_less_ten_seconds():
    role = training_app(JOB, POOLS[JOB.pool], "train:1").roles[0]
    assert role.env["PET_SHUTDOWN_TIMEOUT"] == "110"
    assert not role.env.keys() & {
        # Trainer's webhook refuses a job that sets them.
        "PET_NNODES", "PET_NPROC_PER_NODE", "PET_NODE_RANK", "PET_MASTER_ADDR", "PET_MASTER_PORT",
    }  # fmt: skip


@pytest.mark.parametrize("pool", sorted(POOLS))
def test_the_trainjob_is_what_kubeflow_trainer_takes(pool):
    from dataclasses import replace

    job = replace(JOB, pool=pool)
    made = train_job(
        training_app(job, POOLS[pool], "train:1"), job, POOLS[pool], name="n", namespace="ml"
    )
    assert findings(made) == []
    assert made["spec"]["runtimeRef"]["name"] == f"clipmill-{pool}"
    # The runtime's image: a registry of one's own is named there only.
    assert "image" not in made["spec"]["trainer"]
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
        training_app(JOB, POOLS[JOB.pool], "train:1"), "q", JOB.service_account, None, 0, 0, None
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


def test_an_image_of_the_jobs_own_replaces_the_runtimes():
    from dataclasses import replace

    job = replace(JOB, image="mine:2", deadline_seconds=3600)
    app = training_app(job, POOLS[job.pool], "train:1")
    made = train_job(app, job, POOLS[job.pool], name="n", namespace="ml")
    assert findings(made) == []
    assert made["spec"]["trainer"]["image"] == "mine:2"
    assert made["spec"]["activeDeadlineSeconds"] == 3600


def test_a_replaced_node_can_join_and_only_pods_serve_metrics():
    pool = POOLS[JOB.pool]
    pod = training_app(JOB, pool, "i").roles[0].env
    assert pod["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"
    assert pod["CLIPMILL_METRICS"] == "0.0.0.0:9090"
    assert "CLIPMILL_METRICS" not in training_app(JOB, pool, "i", is_local=True).roles[0].env


def job(nodes: str, **fields) -> TrainingJobConfig:
    least, most = parse_nodes(nodes)
    return TrainingJobConfig(
        name="a", command=("x",), pool="gpu-8x", min_nodes=least, max_nodes=most, **fields
    )


@pytest.mark.parametrize("nodes", ["1", "2", "4", "1:2", "8"])
def test_numbers_of_nodes_that_divide_a_batch_pass(nodes):
    check_batch(job(nodes), POOLS["gpu-8x"], TrainConfig(steps=1, batch_size=65536))


@pytest.mark.parametrize(
    ("nodes", "fields", "words"),
    [
        (
            "3",
            {},
            r"65536 can't be divided over 3 nodes of 8 processes.*\n.*1, 2, 4, 8.*\n.*nodes 2",
        ),
        ("2:4", {}, r"nodes were 2:4.*over 3 nodes.*\n.*1, 2, 4, 8.*\n.*nodes 4"),
        ("1", {"processes_per_node": 3}, r"fewer processes.*\n.*change train.batch_size"),
    ],
)
def test_numbers_of_nodes_that_leave_a_remainder_are_refused(nodes, fields, words):
    with pytest.raises(ConfigError, match=words):
        check_batch(job(nodes, **fields), POOLS["gpu-8x"], TrainConfig(steps=1, batch_size=65536))
