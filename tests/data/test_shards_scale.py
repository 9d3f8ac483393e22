"""The reckoning of a dataset's cost, by hand and against a dataset that was made."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from clipmill.data.shards.finalize import finalize_dataset
from clipmill.data.shards.plan import ShardConfig, plan_shards
from clipmill.data.shards.write import write_shards

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from scale_plan import ScaleRates, scale_plan

RATES = ScaleRates(plan_seconds=1e-6, shard_cpu_seconds=1e-3, finish_seconds=2e-6)


def test_by_hand() -> None:
    plan = scale_plan(
        RATES, num_pairs=36_000_000, bytes_per_pair=50_000, samples_per_shard=10_000, num_cores=10
    )
    assert plan.num_shards == 3600
    # 500 MB are 30 parts of 16 MiB and two requests around them; the sidecar is one more.
    assert plan.num_puts == 3600 * (30 + 2 + 1) + (4 + 2) + 1
    assert plan.dataset_bytes == 1_800_000_000_000
    assert plan.shard_core_hours == pytest.approx(10)
    assert plan.shard_hours == pytest.approx(1)
    assert plan.plan_hours == pytest.approx(0.01)
    assert plan.finish_hours == pytest.approx(0.02)


def test_objects_and_bytes_are_those_of_a_real_one(
    tmp_path: Path, write_pairs: Callable[[Path, int], Path]
) -> None:
    source = write_pairs(tmp_path / "source", 60)
    config = ShardConfig(samples_per_shard=20)
    plan = plan_shards(config, str(source), str(tmp_path / "store"))
    write_shards(plan, 0, plan.num_shards)
    finalize_dataset(plan)
    made = [path for path in Path(plan.uri).rglob("*") if path.is_file()]
    tars = sum(path.stat().st_size for path in made if path.suffix == ".tar")
    reckoned = scale_plan(
        RATES, num_pairs=60, bytes_per_pair=tars // 60, samples_per_shard=20, num_cores=1
    )
    assert reckoned.num_objects == len(made)
    assert reckoned.dataset_bytes == pytest.approx(tars, rel=0.01)
    listed = json.loads((Path(plan.uri) / "dataset.json").read_text())["shards"]
    as_written = len(json.dumps(listed, indent=2)) + 4 * len(listed)
    assert reckoned.manifest_bytes == pytest.approx(as_written, rel=0.25)
    sidecars = sum(path.stat().st_size for path in Path(plan.uri).glob("shards/*.json"))
    assert reckoned.sidecar_bytes == pytest.approx(sidecars, rel=0.25)
    assert reckoned.num_shards == len(listed)
