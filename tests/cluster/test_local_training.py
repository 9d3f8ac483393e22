"""The AppDef that is submitted, run here: torchrun starts two processes of the command."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torchx.specs import AppState

from clipmill.cluster import submit
from clipmill.cluster.pools import load_pools
from clipmill.cluster.training_job import TrainingJobConfig, training_app

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


PYTHON = """#!{python}
import pathlib, signal, sys, time
if "{mode}" == "handles":
    signal.signal(signal.SIGTERM, lambda *a: (time.sleep(0.3), sys.exit(5)))
pathlib.Path("{started}").touch()
time.sleep(60)
"""


@pytest.mark.parametrize(("mode", "code"), [("starts", 143), ("handles", 5)])
def test_the_first_process_ends_at_once_before_torchrun_handles_signals(tmp_path, mode, code):
    from torchx.specs import macros

    python, started = tmp_path / "python", tmp_path / "started"
    python.write_text(PYTHON.format(python=sys.executable, mode=mode, started=started))
    python.chmod(0o755)
    role = training_app(TrainingJobConfig(name="a", command=("x",)), load_pools({})["cpu"], "i")
    values = macros.Values(img_root="", app_id="a", replica_id="0", rank0_env="X")
    script = values.apply(role.roles[0]).args[1]
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    with subprocess.Popen(["bash", "-c", script], env=environment) as process:
        while not started.exists():
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == code
