"""Workers killed with -9 at random moments, doubled and retried: the bytes are always the same."""

import subprocess
import sys
from pathlib import Path

import pytest

from helpers.sources import jpeg, reinforced_sample, write_tar

# A pair of workers makes all shards and finishes, each in an order of its own; one or both are
# killed. Then two go on at once to the end. Prints how many were killed while at work.
DRILL = """
import os, random, signal, sys, time
from pathlib import Path
from clipmill.data.shards.plan import ShardConfig, plan_shards, read_plan
from clipmill.data.shards.finalize import finalize_dataset
from clipmill.data.shards.write import write_shards

source, place, rounds = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
config = ShardConfig(samples_per_shard=4, duplicates=sys.argv[4])

def start(uri, is_backward):
    pid = os.fork()
    if pid:
        return pid
    plan = read_plan(uri)
    for index in sorted(range(plan.num_shards), reverse=is_backward):
        write_shards(plan, index, index + 1, num_threads=1)
    try:
        finalize_dataset(plan)
    finally:
        os._exit(0 if (Path(uri) / "dataset.json").exists() else 1)

def tree(uri):
    # A layer names its dataset, and each has its own place here.
    files = {
        str(path.relative_to(uri)): path.read_bytes().replace(uri.encode(), b"")
        for path in Path(uri).rglob("*")
        if path.is_file()
    }
    return {k: v for k, v in files.items() if "plan" not in k and ".clipmill-tmp-" not in k}

began = time.monotonic()
whole = plan_shards(config, source, str(place / "whole")).uri
assert os.waitpid(start(whole, False), 0)[1] == 0
seconds = time.monotonic() - began
wanted = tree(whole)
generator = random.Random(0)
killed = 0
for number in range(rounds):
    uri = plan_shards(config, source, str(place / str(number))).uri
    workers = [start(uri, False), start(uri, True)]
    for pid in workers:
        time.sleep(generator.uniform(0, seconds))
        os.kill(pid, signal.SIGKILL)
    killed += sum(os.WIFSIGNALED(os.waitpid(pid, 0)[1]) for pid in workers)
    workers = [start(uri, False), start(uri, True)]
    assert [os.waitpid(pid, 0)[1] for pid in workers] == [0, 0]
    found = tree(uri)
    differing = [name for name in wanted | found if wanted.get(name) != found.get(name)]
    assert not differing, (number, differing)
print(killed)
"""


KINDS = ("jpg", "txt", "syn.json")


def write_source(folder: Path) -> Path:
    """Twelve samples with synthetic captions in two tars, two of them doubles."""
    for k in range(2):
        members = []
        for i in range(6 * k, 6 * k + 6):
            found = dict(reinforced_sample(i))
            if i in (4, 9):
                found[f"{i:05d}.jpg"] = jpeg(0)
            members += [(f"{i:05d}.{kind}", found[f"{i:05d}.{kind}"]) for kind in KINDS]
        write_tar(folder / f"{k}.tar", members)
    return folder


def drill(tmp_path: Path, rounds: int, duplicates: str) -> int:
    source = write_source(tmp_path / "source")
    command = [sys.executable, "-c", DRILL, str(source), str(tmp_path), str(rounds), duplicates]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_killed_workers_end_in_equal_bytes(tmp_path: Path) -> None:
    assert drill(tmp_path, 3, "drop") > 0


@pytest.mark.slow
@pytest.mark.parametrize("duplicates", ["report", "drop"])
def test_workers_killed_at_two_hundred_points(tmp_path: Path, duplicates: str) -> None:
    assert drill(tmp_path, 100, duplicates) > 100
