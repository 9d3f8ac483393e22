import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from clipmill.errors import ConfigError, NotFoundError, ServerError
from clipmill.processes import free_port, require_free
from clipmill.serve.client import query
from clipmill.serve.config import ServingConfig
from clipmill.serve.launch import ProcessSettings, ServerProcess, serve

PIXELS = np.zeros((32, 32, 3), np.uint8)


def wait_until_refused(process: ServerProcess) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            require_free(process.host, process.http_port)
        except ServerError:
            time.sleep(0.05)
        else:
            return
    pytest.fail("the server still listens")


def test_a_port_in_use_is_said_at_once(log_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = ServerProcess({"seg": "/nowhere"}, log_path=log_path, http_port=port)
        with pytest.raises(ServerError, match=str(port)):
            server.start()
    assert not log_path.exists(), "no child was started"


def test_the_server_itself_checks_its_ports_before_it_loads() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for ports in ((port, None), (free_port("127.0.0.1"), port)):
            with pytest.raises(ServerError, match=str(port)):
                serve(
                    # Loading would raise NotFoundError.
                    {"seg": "/nowhere/at/all"},
                    http_port=ports[0],
                    grpc_port=ports[1],
                    config=ServingConfig(),
                )


def test_a_missing_model_is_the_stores_error(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        serve(
            {"seg": str(tmp_path / "nothing")},
            http_port=free_port("127.0.0.1"),
            grpc_port=None,
            config=ServingConfig(),
        )


@pytest.mark.parametrize("models", [{}, {"a/b": "x"}, {"": "x"}, {"a:predict": "x"}, {"a@": "x"}])
def test_a_name_that_fits_no_url_is_refused(models: dict[str, str]) -> None:
    with pytest.raises(ConfigError):
        serve(models, http_port=free_port("127.0.0.1"), grpc_port=None, config=ServingConfig())


def test_limits_are_above_zero() -> None:
    with pytest.raises(ConfigError, match="max_batch_size was 0"):
        ServingConfig(max_batch_size=0)


def test_settings_survive_the_command_line() -> None:
    settings = ProcessSettings(models={"seg": "s3://b/m"}, http_port=1, config=ServingConfig())
    assert ProcessSettings.from_json(settings.to_json()) == settings


def test_a_child_that_fails_shows_its_log(tmp_path: Path, log_path: Path) -> None:
    missing = str(tmp_path / "nothing")
    server = ServerProcess({"seg": missing}, log_path=log_path)
    with pytest.raises(ServerError, match="ended with code 2") as failure:
        server.start()
    assert missing in failure.value.what
    assert "Traceback" not in failure.value.what


def test_a_child_that_isnt_ready_in_time_is_ended(models: dict[str, str], log_path: Path) -> None:
    server = ServerProcess(models, log_path=log_path, start_seconds=0.01)
    with pytest.raises(ServerError, match="wasn't ready within"):
        server.start()
    require_free(server.host, server.http_port)


_PARENT = """
import sys
from pathlib import Path
from clipmill.serve.launch import ServerProcess

uri, log, port, detach = sys.argv[1:]
server = ServerProcess(
    {"seg": uri}, log_path=Path(log), http_port=int(port), detach=detach == "detach"
)
with server:
    print(server.pid, flush=True)
    if detach == "stay":
        sys.stdin.read()
"""


def start_in_a_process_of_its_own(uri: str, log_path: Path, how: str) -> tuple[int, ServerProcess]:
    """Have another process start a server; its id, and a handle to address it by."""
    server = ServerProcess({"seg": uri}, log_path=log_path)
    command = [sys.executable, "-c", _PARENT, uri, str(log_path), str(server.http_port), how]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert query(server.url, "seg", PIXELS).shape == (32, 32)
        if how == "stay":
            # No chance to clean up: the child must notice by itself.
            parent.kill()
    return child, server


def test_it_ends_with_its_parent_however_that_ends(models: dict[str, str], log_path: Path) -> None:
    _, server = start_in_a_process_of_its_own(models["seg"], log_path, "stay")
    wait_until_refused(server)


def test_detached_it_outlives_its_parent(models: dict[str, str], log_path: Path) -> None:
    child, server = start_in_a_process_of_its_own(models["seg"], log_path, "detach")
    try:
        assert query(server.url, "seg", PIXELS).shape == (32, 32)
    finally:
        os.kill(child, signal.SIGTERM)
    wait_until_refused(server)


def test_serving_needs_neither_training_nor_its_data() -> None:
    code = """
import sys
sys.argv += ["--http_port", "x", "--model"]  # KServe would end the process over these
import clipmill.serve.server.inference_server
foreign = {"mmcv", "mmengine", "mmseg", "mmdet", "clipmill.data", "clipmill.engine"}
print(sorted(foreign & sys.modules.keys()))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_it_starts_without_what_it_doesnt_use(
    models: dict[str, str], log_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the time to readiness; it goes when a library imports these in another way."""
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
    with ServerProcess(models, log_path=log_path) as server:
        query(server.url, "seg", np.zeros((32, 32, 3), np.uint8))
    imported = {line.rpartition("|")[2].strip() for line in log_path.read_text().splitlines()}
    assert {"torch", "timm", "kserve.model_server"} <= imported
    heavy = {"torch._dynamo.convert_frame", "sympy", "pandas.core", "kubernetes.client", "scipy"}
    heavy |= {"transformers.utils", "huggingface_hub.hf_api", "rich.console"}
    assert not heavy & imported
