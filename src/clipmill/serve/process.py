"""A server in a child process, as the demo, the smoke test and the tests start it."""

import dataclasses
import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from clipmill.config import Config
from clipmill.processes import LOCALHOST, ChildProcess, free_port, require_free
from clipmill.serve.config import ServeConfig

_STOP_SECONDS = 10.0


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ProcessSettings(Config):
    """Settings that the child process gets as JSON."""

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


class ServerProcess(ChildProcess):
    """A server in a child process; as a context manager it is up inside and stopped after.

    It ends when this process ends, even if killed, unless ``detach`` is set: then it runs on in a
    session of its own, after the ``with`` too, until ``stop`` or a SIGTERM to ``pid``.
    """

    def __init__(
        self,
        models: Mapping[str, str],
        *,
        log_path: Path,
        models_file: Path | None = None,
        host: str = LOCALHOST,
        http_port: int | None = None,
        grpc_port: int | None = None,
        config: ServeConfig | None = None,
        start_seconds: float = 120.0,
        detach: bool = False,
    ) -> None:
        """Serve ``models``, URI by name; REST gets a free port where none is given."""
        super().__init__(
            "the server",
            log_path=log_path,
            start_seconds=start_seconds,
            stop_seconds=_STOP_SECONDS,
            detach=detach,
        )
        self.host = host
        self.http_port = free_port(host) if http_port is None else http_port
        self.grpc_port = grpc_port
        self._settings = ProcessSettings(
            models=dict(models),
            models_file=None if models_file is None else str(models_file),
            host=host,
            http_port=self.http_port,
            grpc_port=grpc_port,
            config=config or ServeConfig(),
            stop_with_parent=not detach,
        )

    @property
    def url(self) -> str:
        """Base of the REST routes, without a slash at the end."""
        return f"http://{self.host}:{self.http_port}"

    def start(self) -> Self:
        """Start the child and return once it is ready.

        Raises:
            ServerError: its port is taken, it ended, or it wasn't ready in time.
        """
        require_free(self.host, self.http_port)
        self._launch(
            [sys.executable, "-m", "clipmill.serve", json.dumps(self._settings.to_json())],
            stdin=subprocess.DEVNULL if self._detach else subprocess.PIPE,
            new_session=self._detach,
        )
        return self

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/v2/health/ready", timeout=5) as response:  # noqa: S310
                return bool(response.status == 200)
        except (urllib.error.URLError, OSError):
            return False
