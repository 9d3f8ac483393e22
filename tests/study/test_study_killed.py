"""A study killed with -9, again and again, ends with the figures of one that wasn't."""

import subprocess
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from clipmill.study.result import StudyResult, read_study
from helpers import program, program_environment


def start(folder: Path) -> subprocess.Popen[bytes]:
    environment = program_environment(CLIPMILL_CACHE=str(folder / "cache"), OMP_NUM_THREADS="1")
    return subprocess.Popen(program("tiny_study", folder / "store"), env=environment)


def result_in(folder: Path) -> StudyResult:
    (study,) = (folder / "store" / "studies").iterdir()
    return read_study(str(study))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A study that nobody kills, and its seconds."""
    folder = tmp_path_factory.mktemp("whole")
    began = time.monotonic()
    assert start(folder).wait() == 0
    return result_in(folder), time.monotonic() - began


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_killed_at_any_point_it_ends_with_the_same_figures(tmp_path, whole, seed):
    expected, seconds = whole
    made = []
    # A third of it imports and draws, so that most starts get somewhere.
    for delay in np.random.default_rng(seed).uniform(0.3, 0.6, 100) * seconds:
        study = start(tmp_path)
        with suppress(subprocess.TimeoutExpired):
            assert study.wait(delay) == 0
            break
        study.kill()
        study.wait()
        made.append(len(list((tmp_path / "store").rglob("model.json"))))
    print(f"a study of {seconds:.0f} s; models after each of {len(made)} kills: {made}")
    assert len(set(made)) > 1
    found = result_in(tmp_path)
    assert [(r.condition, r.seed, r.metrics) for r in found.runs] == [
        (r.condition, r.seed, r.metrics) for r in expected.runs
    ]
    assert found.quality == expected.quality
    assert found.attention == expected.attention
