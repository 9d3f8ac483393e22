"""Processes that a command leaves running, recorded in a file so that a later one can stop them."""

import json
import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Self

import psutil

from clipmill.errors import StorageError

_STOP_SECONDS: Final = 15.0
_SHOWN_CHARACTERS: Final = 80
# The system's clock may be set between the record and the look.
_CLOCK_SECONDS: Final = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class BackgroundProcess:
    """A process and what identifies it: process ids are used again."""

    name: str
    """Its role, such as ``endpoints``."""
    pid: int
    """Its process id."""
    created: float
    """Start, Unix time in seconds."""
    command: str
    """Its command line."""
    url: str
    """Where it answers."""

    @classmethod
    def of(cls, name: str, pid: int, url: str) -> Self:
        """The running process of this id; raises psutil.NoSuchProcess where it has ended."""
        process = psutil.Process(pid)
        command = shlex.join(process.cmdline())
        return cls(name=name, pid=pid, created=process.create_time(), command=command, url=url)

    def find(self) -> psutil.Process | None:
        """The process, if it still runs and is the one that was recorded."""
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            process = psutil.Process(self.pid)
            is_same = abs(process.create_time() - self.created) < _CLOCK_SECONDS
            has_ended = process.status() == psutil.STATUS_ZOMBIE
            if is_same and not has_ended and shlex.join(process.cmdline()) == self.command:
                return process
        return None


def record(file: Path, processes: Sequence[BackgroundProcess]) -> None:
    """Write which processes were left running."""
    file.write_text(json.dumps([asdict(process) for process in processes], indent=2) + "\n")


def running(file: Path) -> list[BackgroundProcess]:
    """Recorded processes that still run; none without a file.

    Raises StorageError where the file isn't a record.
    """
    if not file.exists():
        return []
    try:
        found = [BackgroundProcess(**value) for value in json.loads(file.read_text())]
    except (ValueError, TypeError) as error:
        raise StorageError(
            f"{file} isn't a record of running processes: {error}",
            expected="the JSON that this command wrote",
            action=f"remove it: rm {shlex.quote(str(file))}",
        ) from error
    return [process for process in found if process.find()]


def stop(file: Path) -> list[BackgroundProcess]:
    """Stop the recorded processes that still run, and forget them; those that were stopped."""
    stopped = running(file)
    for background in stopped:
        process = background.find()
        if process is None:
            continue
        with suppress(psutil.NoSuchProcess):
            process.terminate()
            try:
                process.wait(_STOP_SECONDS)
            except psutil.TimeoutExpired:
                process.kill()
    file.unlink(missing_ok=True)
    return stopped


def listener(port: int) -> str:
    """The process that listens on a TCP port, as ``process 123 (its command)``; "" if unknown."""
    with suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            is_it = connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
            if is_it and connection.pid:
                command = shlex.join(psutil.Process(connection.pid).cmdline())
                return f"process {connection.pid} ({command[:_SHOWN_CHARACTERS]})"
    return ""
