"""Workers killed with -9 at random points always end, rerun, with byte-equal output."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers import program, program_environment


@pytest.mark.parametrize(
    ("num_kills", "seed"), [(10, 0), pytest.param(200, 1, marks=pytest.mark.slow)]
)
def test_killed_workers_leave_what_undisturbed_ones_make(
    tmp_path: Path, pairs: Callable[[int], Path], num_kills: int, seed: int
) -> None:
    (tmp_path / "work").mkdir()
    command = program("workers_drill", pairs(15), tmp_path / "work", num_kills, seed)
    done = subprocess.run(
        command, env=program_environment(), check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["different"] == []
    assert sum(result["kills"].values()) >= num_kills
    # Shards with sidecars and list, two layers with records and lists, tars with records and lists.
    assert result["num_files"] == (4 * 2 + 1) + 2 * (4 * 2 + 1) + (3 * 2 + 2)
    if num_kills >= 200:
        assert {"shard", "captions", "score", "export"} <= set(result["kills"])
        print(json.dumps(result))
