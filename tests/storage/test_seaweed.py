"""The embedded SeaweedFS: start, restart, refusals, and its end with its parent."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from clipmill.errors import ServerError, StorageError
from clipmill.storage import SeaweedServer
from clipmill.storage.s3 import S3Settings, S3Store


def _store(environment: dict[str, str]) -> S3Store:
    return S3Store("bucket", "", S3Settings.from_environment(environment))


def _answers(endpoint: str) -> bool:
    url = urlsplit(endpoint)
    try:
        socket.create_connection((url.hostname or "", url.port or 0), timeout=1).close()
    except OSError:
        return False
    return True


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_second_run_has_the_same_objects_and_credentials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It needs nothing of the user's: not their PATH, and none of their keys.
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "another")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "another")
    with SeaweedServer(tmp_path / "store") as server:
        first = server.environment
        _store(first).put("a", b"kept")
        assert _answers(first["AWS_ENDPOINT_URL"])
        # Killed, not stopped: what was put must survive that too.
        os.kill(server.pid, signal.SIGKILL)
    assert not _answers(first["AWS_ENDPOINT_URL"])
    assert (tmp_path / "store" / "credentials.json").stat().st_mode & 0o777 == 0o600

    with SeaweedServer(tmp_path / "store") as server:
        assert _store(server.environment).get("a") == b"kept"
    assert server.environment["AWS_ACCESS_KEY_ID"] == first["AWS_ACCESS_KEY_ID"]
    assert server.environment["AWS_SECRET_ACCESS_KEY"] == first["AWS_SECRET_ACCESS_KEY"]
    log = (tmp_path / "store" / "weed.log").read_text()
    assert server.environment["AWS_SECRET_ACCESS_KEY"] not in log


def test_only_the_loopback_interface_is_listened_on(s3: dict[str, str]) -> None:
    port = urlsplit(s3["AWS_ENDPOINT_URL"]).port
    listening = Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()
    addresses = [
        line.split()[1].split(":")[0]
        for line in listening.splitlines()
        if line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "0A"
    ]
    assert addresses == ["0100007F"]


def test_the_port_asked_for_is_used_or_refused(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for number in (port, 55_536, 0, -1, 70_000):
            with pytest.raises(ServerError, match=f"port {number},") as caught:
                SeaweedServer(tmp_path, port=number).start()
            assert "another port" in caught.value.action


def test_the_grpc_twin_of_a_port_must_be_free_too(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServerError, match=f"or {port} which goes with it"):
            SeaweedServer(tmp_path, port=port - 10_000).start()


def test_a_foreign_credentials_file_is_refused_and_kept(tmp_path: Path) -> None:
    for text in ('{"type": "service_account", "project_id": "x"}', "[1, 2]", "not JSON"):
        (tmp_path / "credentials.json").write_text(text)
        with pytest.raises(StorageError, match=r"credentials\.json doesn't hold"):
            SeaweedServer(tmp_path).start()
        assert (tmp_path / "credentials.json").read_text() == text


def test_a_folder_has_one_server(tmp_path: Path) -> None:
    with SeaweedServer(tmp_path) as first:
        with pytest.raises(ServerError, match="another SeaweedFS is running on"):
            SeaweedServer(tmp_path).start()
        _store(first.environment).put("a", b"it goes on")


def test_a_server_that_ends_while_starting_shows_its_log(tmp_path: Path) -> None:
    (tmp_path / "filerldb2").write_text("a file where it wants a folder")
    with pytest.raises(ServerError, match="ended with code") as caught:
        SeaweedServer(tmp_path).start()
    assert "filerldb2" in caught.value.what
    assert str(tmp_path / "weed.log") in caught.value.what


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="credentials"):
        SeaweedServer(tmp_path / "file" / "below").start()


def test_a_full_disk_is_an_error_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nobody's disk is filled for a test.
    disk = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk._replace(free=disk.total // 100))
    with pytest.raises(StorageError, match="GiB free") as caught:
        SeaweedServer(tmp_path).start()
    assert "under 1%" in caught.value.expected


PARENT = """
import sys, time
from pathlib import Path
from clipmill.storage import SeaweedServer
server = SeaweedServer(Path(sys.argv[1]), detach=sys.argv[2] == "detach")
server.start()
print(server.pid, server.environment["AWS_ENDPOINT_URL"], flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("mode", ["attach", "detach"])
def test_it_ends_with_its_parent_unless_detached(tmp_path: Path, mode: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path), mode], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout
        process_id, endpoint = parent.stdout.readline().split()
        assert _answers(endpoint)
        parent.send_signal(signal.SIGKILL)
    if mode == "detach":
        time.sleep(0.3)
        assert _answers(endpoint)
        with pytest.raises(ServerError, match="another SeaweedFS is running on"):
            SeaweedServer(tmp_path).start()
        os.kill(int(process_id), signal.SIGKILL)
    _wait_until(lambda: not _answers(endpoint))
