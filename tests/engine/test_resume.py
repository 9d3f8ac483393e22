"""A run that is killed, told to stop, or out of disk, ends with the weights of one that wasn't."""

import json
import subprocess

import pytest

from helpers import program, program_environment
from helpers.resume_drill import STOPPED


def drilled(folder, num_kills, kind, seed):
    found = subprocess.run(
        program("resume_drill", folder, num_kills, kind, seed),
        env=program_environment(OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    facts = json.loads(found.stdout)
    assert facts["kills"] >= num_kills
    assert facts["wrong"] == 0
    return facts


def test_killed_at_random_places(tmp_path):
    codes = drilled(tmp_path, 8, "kill", seed=1)["codes"]
    assert set(codes) == {0, -9}


def test_stopped_at_random_places(tmp_path):
    facts = drilled(tmp_path, 8, "term", seed=2)
    # Before and after the loop nothing takes the signal, and the process ends of it as usual.
    assert set(facts["codes"]) <= {0, STOPPED, -15}
    assert STOPPED in facts["codes"]
    assert facts["lost_steps"] == 0


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "seed"), [("kill", 3), ("outside", 4), ("term", 5)])
def test_two_hundred_kills(tmp_path, kind, seed):
    drilled(tmp_path, 200, kind, seed)
