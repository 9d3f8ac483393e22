"""Processes and ports of this machine: CPUs, pools, child servers, processes left running."""

import ctypes
import json
import multiprocessing
import os
import platform
import random
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from clipmill.errors import LostWorkerError, ServerError, StorageError

if TYPE_CHECKING:
    import psutil

LOCALHOST: Final = "127.0.0.1"


def local_rank() -> int:
    """Return this process's index on its machine, as torchrun sets it; 0 without torchrun."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_first_rank() -> bool:
    """Return whether this process is rank 0, or the only one; torchrun sets ranks."""
    return os.environ.get("RANK", "0") == "0"


_CGROUPS = Path("/sys/fs/cgroup")
_V1_FILES = ("quota", "period")
# glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT_BYTES: Final = 2**30
_POLL_SECONDS: Final = 0.05
_NUM_LOG_LINES: Final = 20
# Below the ports that Linux gives to outgoing connections, which could take a free port meanwhile.
_PORTS: Final = range(11_000, 21_000)
_STOP_SECONDS: Final = 15.0
_SHOWN_CHARACTERS: Final = 80
# The system's clock may be set between the record and the look.
_CLOCK_SECONDS: Final = 5.0


def available_cpus(cgroups: Path = _CGROUPS, memberships: str | None = None) -> int:
    """Return the CPUs that this process may use: its affinity, within its cgroups' limits.

    A container's CPU limit leaves it every CPU of its node, each for a share of the time: as
    many threads as CPUs would then wait for each other. A limit of 2.5 CPUs counts as 2, below
    1 as 1. ``memberships`` is what /proc/self/cgroup holds. Cgroups of both versions are read.
    """
    if memberships is None:
        with suppress(OSError):
            memberships = Path("/proc/self/cgroup").read_text("ascii")
    limits = _limits(cgroups, memberships or "")
    return max(1, int(min([len(os.sched_getaffinity(0)), *limits])))


def cpu_model() -> str:
    """Return the name of this machine's CPUs, or their architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def _limits(cgroups: Path, memberships: str) -> Iterator[float]:
    """Yield the CPU limits of the cgroups that a process is in, and of those above them."""
    for line in memberships.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = cgroups / controllers if controllers else cgroups
        # Within a container its own cgroup may be what is mounted as the root.
        for folder in (root / path.lstrip("/"), *(root / path.lstrip("/")).parents):
            with suppress(OSError, ValueError):
                if controllers:
                    quota, period = ((folder / f"cpu.cfs_{n}_us").read_text() for n in _V1_FILES)
                else:
                    quota, period = (folder / "cpu.max").read_text().split()
                if int(quota) > 0:
                    yield int(quota) / int(period)
            if folder == root:
                break


@contextmanager
def process_pool(num_processes: int = 0) -> Iterator[ProcessPoolExecutor]:
    """Yield a pool of spawned processes, one per CPU if 0; they end with this one, even if killed.

    Pending work is canceled where the block raises. Forked processes, Linux's default, may hang
    where torch has started threads before.

    Raises:
        LostWorkerError: a process was killed.
    """
    pool = ProcessPoolExecutor(
        num_processes or available_cpus(),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_exit_with_parent,
    )
    try:
        yield pool
    except BaseException as error:
        pool.shutdown(cancel_futures=True)
        if not isinstance(error, BrokenProcessPool):
            raise
        raise LostWorkerError(
            "a worker process was killed, as the kernel does where memory is short",
            expected="workers that run to their end",
            action="run the same command again, which resumes; with fewer --workers if it recurs",
        ) from error
    pool.shutdown()


def lower_thread_priority(niceness: int = 5) -> None:
    """Let the process's other threads, such as an event loop that answers probes, run first."""
    if sys.platform == "linux":  # where a thread has a priority of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)


def tune_malloc() -> None:
    """Let freed memory stay with the process, for its next allocations.

    glibc returns large blocks to the system at once, so that each pass of a network on a CPU would
    map and zero the pages of its feature maps again. With another C library nothing changes.
    """
    with suppress(AttributeError, OSError):
        library = ctypes.CDLL(None)
        for parameter in (_TRIM_THRESHOLD, _MMAP_THRESHOLD):
            library.mallopt(parameter, _KEPT_BYTES)


@contextmanager
def exiting_on_sigterm() -> Iterator[None]:
    """Let SIGTERM unwind the stack, so that what was begun is undone; in the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: object) -> None:
        del frame
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


# End with the parent, even where it is killed. There are three ways, as no single one fits all:
# a pool's workers watch multiprocessing's sentinel (their standard input is /dev/null), clipmill's
# own servers their standard input, and other programs are killed by Linux's PR_SET_PDEATHSIG, which
# is bound to the thread that started them.


def stop_with_parent(stop: Callable[[], object] | None = None) -> None:
    """Call ``stop`` when standard input closes: with a pipe there, that's when the parent ends.

    By default the process sends itself SIGTERM.
    """

    def wait() -> None:
        while os.read(sys.stdin.fileno(), 1):
            pass

    _call_after(wait, stop or (lambda: os.kill(os.getpid(), signal.SIGTERM)))


def command_killed_with_parent(command: Sequence[str]) -> list[str]:
    """Return a command line that runs ``command``, any program, and kills it with its parent.

    The parent is the calling thread. Linux only. A wrapper rather than ``preexec_fn``, which may
    deadlock in a process with threads.
    """
    return [sys.executable, "-I", "-S", "-c", _KILLED_WITH_PARENT, str(os.getpid()), *command]


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    _call_after(parent.join, lambda: os._exit(1))


def _call_after(wait: Callable[[], object], stop: Callable[[], object]) -> None:
    def follow() -> None:
        wait()
        stop()

    threading.Thread(target=follow, name="end-with-parent", daemon=True).start()


_KILLED_WITH_PARENT: Final = """
import ctypes, os, sys
if ctypes.CDLL(None, use_errno=True).prctl(1, 9) != 0:
    raise OSError(ctypes.get_errno(), "prctl")
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


class EarlyExitError(ServerError):
    """A child process ended before it was ready."""


class ChildProcess(ABC):
    """A server in a child process; as a context manager it is ready inside and stopped after.

    A detached child is left running by the context manager, in a session of its own.
    """

    def __init__(
        self, name: str, *, log_path: Path, start_seconds: float, stop_seconds: float, detach: bool
    ) -> None:
        """``name`` is its name in errors; it has so long to become ready, and to stop."""
        self.log_path = log_path
        self._name = name
        self._start_seconds = start_seconds
        self._stop_seconds = stop_seconds
        self._detach = detach
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The child's process id."""
        assert self._process is not None, "not started"
        return self._process.pid

    @abstractmethod
    def start(self) -> Self:
        """Start the child and return once it is ready; raises ServerError where it isn't."""

    @abstractmethod
    def _is_ready(self) -> bool:
        """Return whether the child answers."""

    def stop(self) -> None:
        """Ask the child to stop, and kill it where it takes too long; nothing if none runs."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(self._stop_seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._detach:
            self.stop()

    def _launch(
        self,
        command: Sequence[str],
        *,
        stdin: int = subprocess.DEVNULL,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        new_session: bool = False,
        pass_fds: Sequence[int] = (),
    ) -> None:
        """Start ``command``, its output in the log, and wait until it is ready.

        Raises:
            EarlyExitError: it ended.
            ServerError: it wasn't ready in time.
        """
        assert self._process is None, "already started"
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=stdin,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                env=env,
                start_new_session=new_session,
                pass_fds=pass_fds,
            )
        try:
            self._wait_until_ready(self._process)
        except BaseException:
            self.stop()
            raise

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + self._start_seconds
        while time.monotonic() < deadline:
            if process.poll() is not None:
                what = f"ended with code {process.returncode} before it was ready"
                raise self._start_error(EarlyExitError, what)
            if self._is_ready():
                return
            time.sleep(_POLL_SECONDS)
        what = f"wasn't ready within {self._start_seconds:g} seconds"
        raise self._start_error(ServerError, what)

    def _start_error(self, kind: type[ServerError], what: str) -> ServerError:
        lines = self.log_path.read_text("utf-8", "replace").splitlines()[-_NUM_LOG_LINES:]
        return kind(
            "\n    ".join([f"{self._name} {what}; the end of {self.log_path}:", *lines]),
            expected=f"{self._name} that starts on this machine",
            action=f"fix what {self.log_path} reports, then start it again",
        )


def free_ports(
    num_ports: int,
    *,
    host: str = LOCALHOST,
    offsets: Sequence[int] = (0,),
    exclude: Collection[int] = (),
) -> list[int]:
    """Return ports that nothing listens on: each is free at all ``offsets`` from it.

    Their order is random, so that servers which start at the same moment seldom get the same ones.
    """
    ports: list[int] = []
    taken = set(exclude)
    for port in random.SystemRandom().sample(_PORTS, len(_PORTS)):
        if len(ports) == num_ports:
            break
        numbers = {port + offset for offset in offsets}
        if numbers.isdisjoint(taken) and all(is_port_free(host, number) for number in numbers):
            ports.append(port)
            taken |= numbers
    return ports


def free_port(host: str = LOCALHOST) -> int:
    """Return a port of ``host`` that nothing listens on."""
    return free_ports(1, host=host)[0]


def is_port_free(host: str, port: int) -> bool:
    """Return whether a server could listen on the port."""
    try:
        _bind(host, port)
    except (OSError, OverflowError):
        return False
    return True


def require_free(host: str, port: int) -> None:
    """Raise ServerError if ``port`` can't be listened on: servers notice only after loading."""
    try:
        _bind(host, port)
    except (OSError, OverflowError) as error:
        process = port_owner(port)
        raise ServerError(
            f"{host}:{port} can't be listened on: {error}"
            + (f"; {process} listens there" if process else ""),
            expected="an address of this machine and a free port",
            action="stop what listens there, or choose another port, e.g. --port 8081",
        ) from error


def url_host(host: str) -> str:
    """Return an address as URLs have it: IPv6 in brackets."""
    return f"[{host}]" if ":" in host else host


def _bind(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        # As servers do: a connection that's closing down doesn't hold a port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))


def port_owner(port: int) -> str:
    """Return the process that listens on a TCP port, as ``process 123 (its command)``, or ""."""
    import psutil

    with suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            is_it = connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
            if is_it and connection.pid:
                command = shlex.join(psutil.Process(connection.pid).cmdline())
                return f"process {connection.pid} ({command[:_SHOWN_CHARACTERS]})"
    return ""


@dataclass(frozen=True, kw_only=True, slots=True)
class BackgroundProcess:
    """A process that a command leaves running, and its identity: process ids are reused."""

    name: str
    """Its role, such as ``endpoints``."""
    pid: int
    """Its process id."""
    created: float
    """Start, Unix time in seconds."""
    command: str
    """Its command line."""
    url: str
    """Its address."""

    @classmethod
    def of(cls, name: str, pid: int, url: str) -> Self:
        """Return the running process of this id; raises psutil.NoSuchProcess where it has ended."""
        import psutil

        process = psutil.Process(pid)
        command = shlex.join(process.cmdline())
        return cls(name=name, pid=pid, created=process.create_time(), command=command, url=url)

    def find(self) -> "psutil.Process | None":
        """Return the process if it still runs and is the one that was recorded."""
        import psutil

        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            process = psutil.Process(self.pid)
            is_same = abs(process.create_time() - self.created) < _CLOCK_SECONDS
            has_ended = process.status() == psutil.STATUS_ZOMBIE
            if is_same and not has_ended and shlex.join(process.cmdline()) == self.command:
                return process
        return None


def record_processes(file: Path, processes: Sequence[BackgroundProcess]) -> None:
    """Write the processes that are left running, so that a later command can stop them."""
    file.write_text(json.dumps([asdict(process) for process in processes], indent=2) + "\n")


def running_processes(file: Path) -> list[BackgroundProcess]:
    """Return the recorded processes that still run; none without a file.

    Raises StorageError where the file isn't a record.
    """
    if not file.exists():
        return []
    try:
        processes = [BackgroundProcess(**value) for value in json.loads(file.read_text())]
    except (ValueError, TypeError) as error:
        raise StorageError(
            f"{file} isn't a record of running processes: {error}",
            expected="the JSON that this command wrote",
            action=f"remove it: rm {shlex.quote(str(file))}",
        ) from error
    return [process for process in processes if process.find()]


def stop_processes(file: Path) -> list[BackgroundProcess]:
    """Stop the recorded processes that still run, remove the record, and return them."""
    import psutil

    stopped = running_processes(file)
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
