"""An endpoint in a child process, as the demo and the tests start it."""

import dataclasses
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from clipmill.config import Config
from clipmill.errors import ServerError
from clipmill.serve.config import ServeConfig
from clipmill.serve.ports import free_port, require_free

_LAST_LINES: Final = 20
_STOP_SECONDS: Final = 10.0


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ProcessSettings(Config):
    """What the child is told."""

    models: dict[str, str]
    """URI of a model by the name, or ``NAME@VERSION``, under which it is served."""
    models_file: str | None = None
    """Path of a file that lists them instead."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    http_port: int
    """Port for REST."""
    grpc_port: int | None = None
    """Port for gRPC; none without one."""
    config: ServeConfig = dataclasses.field(default_factory=ServeConfig)
    """Limits."""
    json_logs: bool = False
    """Whether each log line is a JSON object."""
    stop_with_parent: bool = True
    """Whether the end of standard input stops the server."""


class ServerProcess:
    """A server in a child process; as a context manager it is up inside and stopped after.

    It ends when this process ends, however that is, unless ``detach`` is set: then it runs on
    in a session of its own, after the ``with`` too, until ``stop`` or a SIGTERM to ``pid``.
    """

    def __init__(
        self,
        models: Mapping[str, str],
        *,
        log_path: Path,
        models_file: Path | None = None,
        host: str = "127.0.0.1",
        http_port: int | None = None,
        grpc_port: int | None = None,
        config: ServeConfig | None = None,
        start_seconds: float = 120.0,
        detach: bool = False,
    ) -> None:
        """Say what to serve; a free port is taken for REST where none is given."""
        self.host = host
        self.http_port = free_port(host) if http_port is None else http_port
        self.grpc_port = grpc_port
        self.log_path = log_path
        self._settings = ProcessSettings(
            models=dict(models),
            models_file=None if models_file is None else str(models_file),
            host=host,
            http_port=self.http_port,
            grpc_port=grpc_port,
            config=config or ServeConfig(),
            stop_with_parent=not detach,
        )
        self._start_seconds = start_seconds
        self._detach = detach
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Base of the REST routes, without a slash at the end."""
        return f"http://{self.host}:{self.http_port}"

    @property
    def pid(self) -> int:
        """The child's process id."""
        assert self._process is not None, "not started"
        return self._process.pid

    def start(self) -> Self:
        """Start the child and return once it is ready.

        Raises:
            ServerError: its port is taken, it ended, or it wasn't ready in time.
        """
        assert self._process is None, "already started"
        require_free(self.host, self.http_port)
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "clipmill.serve",
                    json.dumps(self._settings.to_json()),
                ],
                stdin=subprocess.DEVNULL if self._detach else subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=self._detach,
            )
        try:
            self._wait_until_ready(self._process)
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Let it finish what it has taken in, then end it; nothing if it isn't running."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(_STOP_SECONDS)
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

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + self._start_seconds
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise self._failure(f"ended with code {process.returncode} before it was ready")
            if self._is_ready():
                return
            time.sleep(0.1)
        raise self._failure(f"wasn't ready within {self._start_seconds:g} seconds")

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/v2/health/ready", timeout=5) as response:  # noqa: S310
                return bool(response.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def _failure(self, what: str) -> ServerError:
        lines = self.log_path.read_text("utf-8", "replace").splitlines()[-_LAST_LINES:]
        return ServerError(
            "\n    ".join([f"the server {what}; the end of {self.log_path}:", *lines]),
            expected=f"a server at {self.url}",
            action="read the log and mend what it complains of",
        )
