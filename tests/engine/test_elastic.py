"""Restarts by exit code, in torchrun's own agent."""

import sys

import pytest

from clipmill.engine.elastic import remaining_restarts, wait_for_first_node

WORKER = """
import pathlib, sys
file = pathlib.Path(sys.argv[1])
starts = len(file.read_text()) if file.exists() else 0
file.write_text("x" * (starts + 1))
codes = [int(code) for code in sys.argv[2].split(",")]
sys.exit(codes[min(starts, len(codes) - 1)])
"""


@pytest.mark.parametrize(
    ("codes", "seconds", "left"),
    [
        ({1}, 5, 2),
        ({-9, 75}, 5, 2),
        ({75}, 5, 3),  # stopped with its state saved: free
        ({1}, 601, 4),  # long after the earlier ones
        ({2}, 601, 0),
        ({1, 2}, 5, 0),
    ],
)
def test_restarts_that_are_left(codes, seconds, left):
    assert remaining_restarts(codes, 2, 4, seconds=seconds) == left


@pytest.mark.parametrize(
    ("codes", "exit_code", "starts"),
    [("2", 2, 1), ("1,0", 0, 2), ("1", 1, 2), ("75,75,1,0", 0, 4)],
)
def test_a_nodes_exit_code_and_number_of_starts(tmp_path, monkeypatch, codes, exit_code, starts):
    import subprocess

    program = tmp_path / "worker.py"
    program.write_text(WORKER)
    monkeypatch.setenv("PET_RDZV_BACKEND", "c10d")
    monkeypatch.setenv("PET_MAX_RESTARTS", "1")
    monkeypatch.setenv("PET_MONITOR_INTERVAL", "0.05")
    node = [sys.executable, "-m", "clipmill.engine.elastic", "--nnodes=1", "--nproc-per-node=1"]
    done = subprocess.run(
        [*node, "--rdzv-endpoint=localhost:0", program, tmp_path / "starts", codes],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == exit_code, done.stderr
    assert len((tmp_path / "starts").read_text()) == starts


def test_the_first_node_is_waited_for_only_elsewhere(monkeypatch):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        wait_for_first_node(f"127.0.0.1:{server.getsockname()[1]}", 5)
        port = server.getsockname()[1]
    with pytest.raises(TimeoutError, match=f"nothing listened at 127.0.0.1:{port}"):
        wait_for_first_node(f"127.0.0.1:{port}", 0.1)
    monkeypatch.setenv("PET_NODE_RANK", "0")
    wait_for_first_node(f"127.0.0.1:{port}", 0.1)
