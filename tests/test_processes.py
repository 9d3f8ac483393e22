"""Processes and ports: pools, CPU limits, memory, ports in use, processes left running."""

import os
import platform
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from clipmill import processes
from clipmill.errors import LostWorkerError, ServerError, StorageError
from clipmill.processes import (
    BackgroundProcess,
    available_cpus,
    free_ports,
    port_owner,
    process_pool,
    record_processes,
    require_free,
    running_processes,
    stop_processes,
)

PARENT = """
import os, time
from clipmill.processes import process_pool

def work(number):
    print(os.getpid(), flush=True)
    time.sleep(60)

if __name__ == "__main__":
    with process_pool(2) as pool:
        list(pool.map(work, range(6)))
"""


def is_running(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def test_a_killed_worker_is_an_error_that_says_what_to_do():
    with (
        pytest.raises(LostWorkerError, match="run the same command again"),
        process_pool(1) as pool,
    ):
        pool.submit(os.kill, pool.submit(os.getpid).result(), signal.SIGKILL).result()


def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    with subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # the resource tracker tells of what was left behind
        text=True,
    ) as parent:
        workers = [int(parent.stdout.readline()) for _ in range(2)]
        assert all(is_running(pid) for pid in workers)
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
        deadline = time.monotonic() + 20
        while any(is_running(pid) for pid in workers) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not any(is_running(pid) for pid in workers)


FAILING = """
import sys, time
from pathlib import Path
from clipmill.processes import process_pool

def work(number):
    if not number:
        raise ValueError("bad")
    time.sleep(0.2)
    Path(sys.argv[1], str(number)).touch()

if __name__ == "__main__":
    with process_pool(1) as pool:
        futures = [pool.submit(work, number) for number in range(50)]
        futures[0].result()
"""


def test_what_waits_is_dropped_where_a_task_fails(tmp_path):
    script, done = tmp_path / "failing.py", tmp_path / "done"
    script.write_text(FAILING)
    done.mkdir()
    found = subprocess.run(
        [sys.executable, str(script), str(done)], capture_output=True, text=True, check=False
    )
    assert "ValueError: bad" in found.stderr
    assert len(list(done.iterdir())) < 10


FAULTS = """
import resource, sys
import numpy as np
from clipmill.processes import tune_malloc

if sys.argv[1] == "kept":
    tune_malloc()
for _ in range(20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    maps = [np.ones(2**23, np.uint8) for _ in range(12)]
    del maps
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone is told")
def test_freed_memory_is_kept(tmp_path):
    script = tmp_path / "faults.py"
    script.write_text(FAULTS)
    kept, returned = (
        int(subprocess.check_output([sys.executable, str(script), how], text=True))
        for how in ("kept", "returned")
    )
    assert kept < 100 < returned


@pytest.mark.parametrize(
    ("memberships", "files", "expected"),
    [
        ("0::/", {"cpu.max": "100000 100000"}, 1),
        ("0::/a/b", {"a/cpu.max": "150000 100000", "a/b/cpu.max": "max 100000"}, 1),
        ("0::/a", {"a/cpu.max": "50000 100000"}, 1),
        ("0::/gone", {"cpu.max": "max 100000"}, 3),
        ("0::/", {"cpu.max": "400000 100000"}, 3),
        ("0::/", {"cpu.max": "290000 100000"}, 2),
        (
            "4:cpu,cpuacct:/a\n0::/",
            {"cpu,cpuacct/a/cpu.cfs_quota_us": "100", "cpu,cpuacct/a/cpu.cfs_period_us": "100"},
            1,
        ),
        ("1:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ("3:cpuset:/\n0::/", {}, 3),
    ],
)
def test_a_container_s_limit_of_cpus(tmp_path, monkeypatch, memberships, files, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    assert available_cpus(tmp_path, memberships) == expected


@pytest.fixture
def sleeper():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


def test_a_recorded_process_is_stopped_once(sleeper, tmp_path):
    file = tmp_path / "running.json"
    background = BackgroundProcess.of("sleeper", sleeper.pid, "http://127.0.0.1:1")
    record_processes(file, [background])
    assert running_processes(file) == [background]
    assert stop_processes(file) == [background]
    assert sleeper.poll() is not None
    assert running_processes(file) == stop_processes(file) == []


@pytest.mark.parametrize("change", [{"created": 1.0}, {"command": "another program"}])
def test_another_process_of_the_same_id_is_left_alone(sleeper, tmp_path, change):
    file = tmp_path / "running.json"
    record_processes(file, [replace(BackgroundProcess.of("sleeper", sleeper.pid, ""), **change)])
    assert stop_processes(file) == []
    assert sleeper.poll() is None


def test_a_broken_record_is_named(tmp_path):
    file = tmp_path / "running.json"
    file.write_text("[{}]")
    with pytest.raises(StorageError, match="isn't a record of running processes"):
        stop_processes(file)


def test_a_taken_port_names_its_process():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert port_owner(port).startswith(f"process {os.getpid()} (")
        with pytest.raises(ServerError, match=rf":{port} can't be listened on.*process \d+ \("):
            require_free("127.0.0.1", port)


def test_no_port_is_another_ones_offset(monkeypatch):
    (first,) = free_ports(1, offsets=(0, 10_000))
    near = range(first - 3, first + 4)
    monkeypatch.setattr(processes, "_PORTS", (*near, *(port + 10_000 for port in near)))
    ports = free_ports(14, offsets=(0, 10_000), exclude=(first, first + 10_000))
    assert first not in ports
    assert first + 10_000 not in ports
    assert len({port + offset for port in ports for offset in (0, 10_000)}) == 2 * len(ports)


@pytest.mark.parametrize("offset", [0, 10_000])
def test_a_port_in_use_is_passed_over(monkeypatch, offset):
    taken, free = free_ports(2, offsets=(0, 10_000))
    monkeypatch.setattr(processes, "_PORTS", (taken, free))
    with socket.create_server(("127.0.0.1", taken + offset)):
        assert free_ports(2, offsets=(0, 10_000)) == [free]
