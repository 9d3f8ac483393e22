"""``clipmill cluster`` from the outside."""

import json

import pytest
from typer.testing import CliRunner

from clipmill.cli import app
from clipmill.errors import ClusterError, ConfigError


def run(*arguments, group="cluster"):
    result = CliRunner().invoke(app, [group, *arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.stdout


def test_a_trainjob_can_be_looked_at_without_a_cluster():
    text = run(
        "submit", "--dry-run", "--name", "clip", "--pool", "gpu-8x", "--nodes", "1:2",
        "--set", "grace_seconds=300", "--", "pretrain", "clip", "s3://b/d", "--store", "s3://b",
        "--recipe", "clip-vit-b16-12.8b",
    )  # fmt: skip
    job = json.loads(text)
    assert job["kind"] == "TrainJob"
    assert job["spec"]["trainer"]["numNodes"] == 2
    assert "clipmill pretrain clip s3://b/d --store s3://b" in job["spec"]["trainer"]["args"][1]


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        (
            ("submit", "--name", "a", "--dry-run", "--pool", "tpu", "--", "recipes", "list"),
            ConfigError,
            "'tpu' is no pool",
        ),
        (
            ("submit", "--name", "a", "--nodes", "0", "--", "recipes", "list"),
            ConfigError,
            "nodes were 0:0",
        ),
        (("submit", "--name", "a"), ConfigError, "no command was given"),
        (
            (
                *("submit", "--name", "a", "--dry-run", "--pool", "gpu-8x", "--nodes", "2:4", "--"),
                *("pretrain", "clip", "s3://b/d", "--store", "s3://b"),
                *("--recipe", "clip-vit-b16-12.8b"),
            ),
            ConfigError,
            "nodes were 2:4.*over 3 nodes of 8 processes",
        ),
        (("list", "--scheduler", "ray"), ClusterError, "'ray' is no scheduler"),
        (("plan-capacity", "score"), ConfigError, "samples_per_second was ''"),
        (("status", "kubeflow_trainer://clipmill/name"), ClusterError, "is no job's id"),
    ],
)
def test_a_mistake_is_one_message(arguments, kind, words):
    with pytest.raises(kind, match=words):
        run(*arguments)


def test_no_cluster_is_one_message(monkeypatch, tmp_path):
    from kubernetes.config import kube_config

    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"))
    for arguments in (
        ("submit", "--name", "a", "--", "recipes", "list"),
        ("list",),
        ("workflow", "status", "w"),
        ("workflow", "suspend", "w"),
        ("workflow", "resume", "w"),
    ):
        with pytest.raises(ClusterError, match="no cluster is configured"):
            run(*arguments)
    with pytest.raises(ClusterError, match="no cluster is configured"):
        run("shard", "s3://b/raw", "--store", "s3://b", "--executor", "argo", group="data")


def test_capacity_is_a_table():
    head, line = run("plan-capacity", "recaption=300", "--hours", "48").splitlines()
    assert head.split() == ["stage", "pods", "hours", "requests/s", "MB/s", "price"]
    assert line.split()[:2] == ["recaption", "31"]
