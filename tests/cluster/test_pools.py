import json
from pathlib import Path

import pytest
import yaml

from clipmill.cluster.pools import (
    PoolConfig,
    container_resources,
    fabric_environment,
    get_pool,
    load_pools,
)
from clipmill.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent.parent


def test_the_defaults_are_the_charts():
    values = yaml.safe_load((ROOT / "helm" / "clipmill" / "values.yaml").read_text())
    assert load_pools({}).keys() == values["pools"].keys()
    assert load_pools({})["gpu-8x"].gpus == values["pools"]["gpu-8x"]["gpus"]


def test_an_installed_table_takes_their_place(tmp_path):
    table = {"big": {"gpus": 4, "cpu": 32, "memoryGibibytes": 256, "nodeSelector": {"a": "b"}}}
    file = tmp_path / "pools.json"
    file.write_text(json.dumps(table))
    pools = load_pools({"CLIPMILL_POOLS": str(file)})
    assert pools == {
        "big": PoolConfig(gpus=4, cpu=32, memory_gibibytes=256, node_selector={"a": "b"})
    }
    with pytest.raises(ConfigError, match="'gpu' is no pool\n  expected: one of big"):
        get_pool("gpu", pools)


@pytest.mark.parametrize(
    "text", ["{", '{"a": {"cores": 3}}', '{"a": {"cpu": 0}}', '{"a": {"gpus": -1}}']
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
