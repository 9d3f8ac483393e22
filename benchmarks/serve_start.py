"""From start to ready: an endpoint's process, several times.

    python benchmarks/serve_start.py NAME=URI... [--rounds 3]

Prints, for each round, seconds by the clock until readiness answers, and the CPU seconds that the
process had used by then.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

from clipmill.serve.config import parse_model_args
from clipmill.serve.launch import ServerProcess


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Start, note, stop, and again."""
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="+")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.rounds):
            started = time.perf_counter()
            server = ServerProcess(parse_model_args(options.models), log_path=Path(folder) / "log")
            with server:
                seconds = time.perf_counter() - started
                cpu = cpu_seconds(server.pid)
            print(json.dumps({"ready_seconds": round(seconds, 2), "cpu_seconds": round(cpu, 2)}))


if __name__ == "__main__":
    main()
