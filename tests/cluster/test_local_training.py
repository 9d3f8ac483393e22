"""The AppDef that is submitted, run here: torchrun starts two processes of the command."""

import os
import sys
import time
from pathlib import Path

from torchx.specs import AppState

from clipmill.cluster import submit
from clipmill.cluster.training_job import TrainingJobConfig

WORKER = """#!{python}
import os, pathlib, signal, sys, time
rank, size = os.environ["RANK"], os.environ["WORLD_SIZE"]
folder = pathlib.Path(sys.argv[1])
signal.signal(signal.SIGTERM, lambda *a: (folder.joinpath("saved-" + rank).touch(), sys.exit(75)))
folder.joinpath("rank-" + rank).write_text(size + " " + " ".join(sys.argv[2:]))
while sys.argv[2] == "wait":
    time.sleep(0.05)
"""


def test_two_processes_run_and_a_stop_lets_them_save(tmp_path, monkeypatch):
    # A stand-in by the command's name: what it is told and how it is stopped is what's tried here.
    program = tmp_path / "bin" / "clipmill"
    program.parent.mkdir()
    program.write_text(WORKER.format(python=sys.executable))
    program.chmod(0o755)
    folders = [str(program.parent), str(Path(sys.executable).parent), os.environ["PATH"]]
    monkeypatch.setenv("PATH", os.pathsep.join(folders))
    fields = {
        "pool": "cpu",
        "processes_per_node": 2,
        "max_restarts": 0,
        "image": str(tmp_path),
    }
    with submit.torchx_runner() as torchx:
        job = TrainingJobConfig(name="run", command=(str(tmp_path), "go", "it's $5"), **fields)
        handle = submit.submit(job, "local_cwd", torchx=torchx)
        ended = torchx.wait(handle, wait_interval=0.2)
        text = "".join(submit.logs(handle, 0, follow=False, torchx=torchx))
        assert ended.state == AppState.SUCCEEDED, text
        assert (tmp_path / "rank-0").read_text() == "2 go it's $5"
        assert (tmp_path / "rank-1").read_text() == "2 go it's $5"

        for rank in "01":
            (tmp_path / f"rank-{rank}").unlink()
        job = TrainingJobConfig(name="stop", command=(str(tmp_path), "wait"), **fields)
        handle = submit.submit(job, "local_cwd", torchx=torchx)
        while not all((tmp_path / f"rank-{rank}").exists() for rank in "01"):
            assert submit.status(handle, torchx=torchx).state == AppState.RUNNING
            time.sleep(0.1)
        submit.cancel(handle, torchx=torchx)
        assert sorted(p.name for p in tmp_path.glob("saved-*")) == ["saved-0", "saved-1"]
