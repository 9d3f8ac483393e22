"""A study killed with -9, again and again, ends with the figures of one that wasn't."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from clipmill.study.result import read_study

STUDY = Path(__file__).with_name("tiny_study.py")
NUM_KILLS = 20


def start(folder: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"CLIPMILL_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(STUDY), str(folder / "store")]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_killed_at_any_point_it_ends_with_the_same_figures(tmp_path):
    began = time.monotonic()
    straight = start(tmp_path / "straight")
    uri = straight.communicate()[0].strip()
    assert straight.returncode == 0
    seconds = time.monotonic() - began
    expected = read_study(uri)
    # An import takes a third of it, so that most starts get somewhere; no worker outlives them.
    delays = np.random.default_rng(0).uniform(0.3, 0.7, NUM_KILLS) * seconds
    made = []
    for delay in delays:
        study = start(tmp_path / "killed")
        try:
            study.wait(delay)
        except subprocess.TimeoutExpired:
            study.kill()
            study.wait()
            made.append(len(list((tmp_path / "killed" / "store").rglob("model.json"))))
            continue
        break
    last = start(tmp_path / "killed")
    found = read_study(last.communicate()[0].strip())
    assert last.returncode == 0
    print(f"{len(made)} kills of {seconds:.0f} s of work; models after each: {made}")
    assert len(set(made)) > 3
    assert [(r.condition, r.seed, r.metrics) for r in found.runs] == [
        (r.condition, r.seed, r.metrics) for r in expected.runs
    ]
    assert found.quality == expected.quality
    assert found.attention == expected.attention
