"""Processes that are left running: found again, stopped, and never mistaken for others."""

import os
import socket
import subprocess
import sys
from dataclasses import replace

import pytest

from clipmill.background import BackgroundProcess, listener, record, running, stop
from clipmill.errors import ServerError, StorageError
from clipmill.serve.ports import require_free


@pytest.fixture
def sleeper():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


def test_a_recorded_process_is_stopped_once(sleeper, tmp_path):
    file = tmp_path / "running.json"
    background = BackgroundProcess.of("sleeper", sleeper.pid, "http://127.0.0.1:1")
    record(file, [background])
    assert running(file) == [background]
    assert stop(file) == [background]
    assert sleeper.poll() is not None
    assert running(file) == stop(file) == []


@pytest.mark.parametrize("change", [{"created": 1.0}, {"command": "another program"}])
def test_another_process_of_the_same_id_is_left_alone(sleeper, tmp_path, change):
    file = tmp_path / "running.json"
    record(file, [replace(BackgroundProcess.of("sleeper", sleeper.pid, ""), **change)])
    assert stop(file) == []
    assert sleeper.poll() is None


def test_a_broken_record_is_named(tmp_path):
    file = tmp_path / "running.json"
    file.write_text("[{}]")
    with pytest.raises(StorageError, match="isn't a record of running processes"):
        stop(file)


def test_a_taken_port_names_its_process():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert listener(port).startswith(f"process {os.getpid()} (")
        with pytest.raises(ServerError, match=rf":{port} can't be listened on.*process \d+ \("):
            require_free("127.0.0.1", port)
