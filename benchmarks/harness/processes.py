"""Trees of processes: their CPU time and memory, and a contender's that is halted between laps."""

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_SAMPLE_SECONDS = 0.5
_LOG_LINES = 15


class ContenderError(Exception):
    """A contender can't run."""


def tree(pid: int | None = None) -> list[int]:
    """Return a process, this one by default, and all its descendants."""
    pid = pid or os.getpid()
    found = [pid]
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += tree(int(child))
    return found


def cpu_seconds(pid: int | None = None) -> float:
    """Return the CPU time so far of a process, its descendants, and those that have ended."""
    ticks = 0
    for process in tree(pid):
        with suppress(OSError):
            # The name, in brackets, may hold spaces; fields 14 to 17 are user and system time of
            # the process, and of its children that it has waited for.
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def _kilobytes(path: Path, name: str) -> int:
    with suppress(OSError):
        for line in path.read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1])
    return 0


def memory_bytes(pid: int) -> int:
    """Return what a tree of processes holds: each page once, divided among those that share it."""
    processes = tree(pid)
    held = sum(_kilobytes(Path(f"/proc/{p}/smaps_rollup"), "Pss") for p in processes)
    if len(processes) == 1:  # the kernel knows the peak since it was last reset
        held = max(held, _kilobytes(Path(f"/proc/{pid}/status"), "VmHWM"))
    return held * 1024


def reset_peak(pid: int) -> None:
    """Let the kernel forget the peaks of memory of a tree of processes."""
    for process in tree(pid):
        with suppress(OSError):
            Path(f"/proc/{process}/clear_refs").write_text("5")


class ContenderProcess:
    """A contender in a process of its own, which stands still but in its laps."""

    def __init__(self, name: str, command: list[str], folder: Path, env: dict[str, str]) -> None:
        self.name = name
        self._log = folder / f"{name.replace(' ', '-').replace('/', '-')}.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=env,
                text=True,
                start_new_session=True,
            )
        self._measured = self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Let it end by itself for a while, then kill its tree."""
        self._signal(signal.SIGCONT)
        children = tree(self._process.pid)[1:]
        assert self._process.stdin
        with suppress(OSError):
            self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(0.1 if error else 20)
        for pid in [*tree(self._process.pid), *children]:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        assert self._process.stdout
        self._process.stdout.close()

    def answer(self) -> dict[str, Any]:
        """Wait for its answer, then halt it.

        Raises:
            ContenderError: it ended.
        """
        message = self._receive()
        self._measured = message["pid"] or self._process.pid
        self._signal(signal.SIGSTOP)
        answer: dict[str, Any] = message["answer"]
        return answer

    def lap(self) -> dict[str, float]:
        """Run one lap; return its seconds, CPU seconds, count and peak memory in bytes.

        Raises:
            ContenderError: it ended.
        """
        assert self._process.stdin
        self._signal(signal.SIGCONT)
        reset_peak(self._measured)
        peak, is_done = 0, threading.Event()

        def sample() -> None:
            nonlocal peak
            while not is_done.wait(_SAMPLE_SECONDS):
                peak = max(peak, memory_bytes(self._measured))

        sampler = threading.Thread(target=sample, daemon=True)
        sampler.start()
        try:
            self._process.stdin.write("lap\n")
            self._process.stdin.flush()
            lap: dict[str, float] = self._receive()
        except BrokenPipeError as error:
            raise self._error() from error
        finally:
            is_done.set()
            sampler.join()
        lap["peak_bytes"] = max(peak, memory_bytes(self._measured))
        self._signal(signal.SIGSTOP)
        return lap

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise self._error()
        message: dict[str, Any] = json.loads(line)
        return message

    def _error(self) -> ContenderError:
        status = self._process.wait()
        lines = self._log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
        return ContenderError(f"{self.name} ended with status {status}:\n" + "\n".join(lines))

    def _signal(self, number: signal.Signals) -> None:
        # A halted parent first, so that it sees no child stop; and children first on the way back.
        processes = tree(self._process.pid)
        for pid in processes if number == signal.SIGSTOP else reversed(processes):
            with suppress(OSError):
                os.kill(pid, number)


def private_pipes() -> tuple[Any, Any]:
    """Return this process's standard input and output; libraries get /dev/null and the log.

    Whatever they print would be read as a result.
    """
    turns = os.fdopen(os.dup(0), "r")
    results = os.fdopen(os.dup(1), "w")
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(sys.stderr.fileno(), 1)
    return turns, results
