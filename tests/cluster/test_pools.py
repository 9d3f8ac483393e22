import json
from pathlib import Path

import pytest
import yaml

from clipmill.cluster.pools import (
    PoolConfig,
    container_resources,
    fabric_environment,
    get_pool,
    load_installation,
    load_pools,
)
from clipmill.errors import ClusterError, ConfigError

ROOT = Path(__file__).resolve().parent.parent.parent


def test_the_defaults_are_the_charts():
    values = yaml.safe_load((ROOT / "helm" / "clipmill" / "values.yaml").read_text())
    assert load_pools({}).keys() == values["pools"].keys()
    assert load_pools({})["gpu-8x"].gpus == values["pools"]["gpu-8x"]["gpus"]


def test_an_installed_table_takes_their_place(tmp_path):
    table = {"big": {"gpus": 4, "cpu": 32, "memoryGibibytes": 256, "nodeSelector": {"a": "b"}}}
    file = tmp_path / "pools.json"
    file.write_text(json.dumps({"pools": table}))
    pools = load_pools({"CLIPMILL_POOLS": str(file)})
    assert pools == {
        "big": PoolConfig(gpus=4, cpu=32, memory_gibibytes=256, node_selector={"a": "b"})
    }
    with pytest.raises(ConfigError, match="'gpu' is no pool\n  expected: one of big"):
        get_pool("gpu", pools)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        *(f'{{"pools": {{"a": {p}}}}}' for p in ('{"cores": 3}', '{"cpu": 0}', '{"gpus": -1}')),
    ],
)
def test_a_bad_table_is_said(tmp_path, text):
    file = tmp_path / "pools.json"
    file.write_text(text)
    with pytest.raises(ConfigError):
        load_pools({"CLIPMILL_POOLS": str(file)})


def test_resources_name_gpus_and_the_fabrics_devices():
    pool = PoolConfig(gpus=8, cpu=90, memory_gibibytes=1000, fabric="efa", fabric_devices=32)
    amounts = {
        "cpu": "90", "memory": "1000Gi", "nvidia.com/gpu": "8", "vpc.amazonaws.com/efa": "32",
    }  # fmt: skip
    assert container_resources(pool) == {"requests": amounts, "limits": amounts}
    assert fabric_environment(pool)["FI_PROVIDER"] == "efa"
    assert "FI_PROVIDER" not in fabric_environment(PoolConfig(gpus=1))
    assert fabric_environment(PoolConfig()) == {}


@pytest.mark.parametrize(
    ("cpu", "cores", "quantity"),
    [(4, 4.0, "4"), (0.5, 0.5, "500m"), ("500m", 0.5, "500m"), ("1.5", 1.5, "1500m")],
)
def test_a_pool_may_have_a_part_of_a_core(cpu, cores, quantity):
    pool = PoolConfig.from_json({"cpu": cpu})
    assert pool.num_cores == cores
    assert container_resources(pool)["requests"]["cpu"] == quantity


@pytest.mark.parametrize("cpu", ["0m", "half", "1Gi", -1, 0.0])
def test_a_wrong_amount_of_cores_is_refused(cpu):
    with pytest.raises(ConfigError, match="cpu of a pool was"):
        PoolConfig.from_json({"cpu": cpu})


def test_the_charts_table_is_read_from_the_namespace_of_the_job(cluster):
    from helpers.helm_chart import profile, render

    values = {**profile(""), "images": {"registry": "registry.example.com/ml"}}
    values["pools"] = {"cpu": {"cpu": "500m", "memoryGibibytes": 2, "sharedMemoryGibibytes": 1}}
    (config_map,) = [
        r for r in render(values, namespace="ml")
        if r["kind"] == "ConfigMap" and r["metadata"]["name"] == "clipmill-pools"
    ]  # fmt: skip
    cluster.config_maps["ml/clipmill-pools"] = config_map
    installed = load_installation("ml", api=cluster.api(), environment={})
    assert installed.image("train").startswith("registry.example.com/ml/clipmill/train:")
    assert installed.image("data").startswith("registry.example.com/ml/clipmill/data:")
    assert installed.pool("cpu").num_cores == 0.5
    with pytest.raises(ClusterError, match="isn't installed in the namespace other"):
        load_installation("other", api=cluster.api(), environment={})
