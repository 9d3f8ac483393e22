"""Start a server: in this process (``serve``), or in a child process (``ServerProcess``).

Libraries and models are loaded only after everything else was checked.
"""

import dataclasses
import gc
import json
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Self

from clipmill.config import Config
from clipmill.errors import ConfigError
from clipmill.lazy_imports import lazy_imports
from clipmill.processes import (
    LOCALHOST,
    ChildProcess,
    free_port,
    require_free,
    tune_malloc,
    url_host,
)
from clipmill.serve.config import ServingConfig, parse_model_specs, read_models_file

_STOP_SECONDS: Final = 10.0
_SWITCH_SECONDS: Final = 0.0005
_UNUSED: Final = (
    "httpx._main",  # its command line, with rich
    "huggingface_hub",  # of timm; we load weights from our own store
    "kubernetes",  # of KServe's client of clusters
    "pandas",  # of KServe, for requests as data frames
    "tabulate",  # of KServe's client of clusters
    "torch._dynamo",  # of torchvision; nothing is compiled here
    "torchvision.datasets",
    "transformers",  # of open_clip, for text towers that we don't have
)
"""Modules that libraries import and a server doesn't use: half of the time to its start."""


def serve(
    models: Mapping[str, str],
    *,
    models_file: Path | None = None,
    host: str = LOCALHOST,
    http_port: int,
    grpc_port: int | None,
    config: ServingConfig,
) -> None:
    """Serve checkpoints, given as URI by ``NAME`` or ``NAME@VERSION``, until SIGTERM or SIGINT.

    ``models_file`` lists them instead, as a JSON object: when it changes, what is served does.

    Raises:
        ConfigError: there are no models, or a name doesn't fit a URL.
        ServerError: a port is taken; nothing was loaded then.
        NotFoundError: nothing lies at a model's URI.
        ArtifactError: what lies there is cut, changed, or of a kind that can't be served.
    """
    if models and models_file is not None:
        raise ConfigError(
            "models were given, and a file that lists models",
            expected="one of the two",
            action="put all models into the file",
        )
    specs = parse_model_specs(read_models_file(models_file) if models_file is not None else models)
    for port in (http_port, grpc_port):
        if port is not None:
            require_free(host, port)

    tune_malloc()
    with lazy_imports(*_UNUSED):
        # Seconds of torch, timm and KServe; models would import the first two later.
        import open_clip  # noqa: F401

        from clipmill.serve.server.inference_server import InferenceServer

    server = InferenceServer(
        specs,
        models_file=models_file,
        host=host,
        http_port=http_port,
        grpc_port=grpc_port,
        config=config,
    )
    # A collection that looked at all that libraries have made would stall probes.
    gc.freeze()
    # Threads that decode give way to the event loop sooner than Python's 5 ms.
    sys.setswitchinterval(_SWITCH_SECONDS)
    server.run()


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ProcessSettings(Config):
    """Settings that the child process gets as JSON."""

    models: dict[str, str]
    """URI of a model by the name, or ``NAME@VERSION``, under which it is served."""
    models_file: str | None = None
    """Path of a file that lists them instead."""
    host: str = LOCALHOST
    """Address to listen on."""
    http_port: int
    """Port for REST."""
    grpc_port: int | None = None
    """Port for gRPC; none without one."""
    config: ServingConfig = dataclasses.field(default_factory=ServingConfig)
    """Limits."""
    json_logs: bool = False
    """Write each log line as a JSON object."""
    stop_with_parent: bool = True
    """Stop the server at the end of standard input."""


class ServerProcess(ChildProcess):
    """A server in a child process; as a context manager it is up inside and stopped after.

    It ends when this process ends, even if killed, unless ``detach`` is set: then it runs on in a
    session of its own, after the ``with`` too, until ``stop`` or a SIGTERM to ``pid``.

    Example:
        >>> with clipmill.ServerProcess({"segmentation": model}) as server:
        ...     clipmill.Client(server.url).models()
        ['segmentation']
    """

    def __init__(
        self,
        models: Mapping[str, str],
        *,
        log_path: Path | None = None,
        models_file: Path | None = None,
        host: str = LOCALHOST,
        http_port: int | None = None,
        grpc_port: int | None = None,
        config: ServingConfig | None = None,
        start_seconds: float = 120.0,
        detach: bool = False,
    ) -> None:
        """Serve ``models``, URI by name; REST gets a free port where none is given.

        Without ``log_path`` the log goes to a file of its own among the temporary files.
        """
        if log_path is None:
            log_path = Path(tempfile.mkdtemp(prefix="clipmill-serve-")) / "server.log"
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
            config=config or ServingConfig(),
            stop_with_parent=not detach,
        )

    @property
    def url(self) -> str:
        """Base of the REST routes, without a slash at the end."""
        return f"http://{url_host(self.host)}:{self.http_port}"

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
