"""Versions side by side, a swap and a stop under load, deadlines, clients that leave."""

import asyncio
import dataclasses
import http.client
import json
import os
import shutil
import signal
import socket
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self
from unittest.mock import Mock

import numpy as np
import pytest

from clipmill.errors import ServerError
from clipmill.models.checkpoint import load_checkpoint, save_checkpoint
from clipmill.serve.client import Client, binary_request
from clipmill.serve.config import ServingConfig
from clipmill.serve.launch import ServerProcess
from clipmill.serve.server.registry import ModelReloader
from clipmill.tasks.visualization import encode_png

PIXELS = np.random.default_rng(5).integers(0, 256, (32, 32, 3), np.uint8)
BODY, HEADERS = binary_request(encode_png(PIXELS))
CONFIG = ServingConfig(reload_interval_seconds=0.1, unready_before_shutdown_seconds=1.0)


@pytest.fixture(scope="module")
def other(models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """URI of the segmentation model with other weights."""
    from dataclasses import replace

    metadata, tensors = load_checkpoint(models["seg"])
    uri = str(tmp_path_factory.mktemp("other"))
    turned = {name: -tensor for name, tensor in tensors.items()}
    save_checkpoint(uri, replace(metadata, recipe={"of": "another"}), turned)
    return uri


class Load:
    """Clients that ask one after another over connections they keep, until told to stop."""

    def __init__(self, server: ServerProcess, is_wanted: Callable[[], bool]) -> None:
        self.codes: list[int] = []
        self.failures: list[str] = []
        self.versions: list[str] = []
        self._server, self._is_wanted = server, is_wanted
        self._threads = [threading.Thread(target=self._run) for _ in range(3)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for thread in self._threads:
            thread.join(60)

    def _run(self) -> None:
        host, port = self._server.host, self._server.http_port
        connection = http.client.HTTPConnection(host, port, timeout=60)
        try:
            while self._is_wanted():
                self._ask(connection)
        finally:
            connection.close()

    def _ask(self, connection: http.client.HTTPConnection) -> None:
        """Over the kept connection; it opens another itself where the server closed it."""
        try:
            connection.request("POST", "/v2/models/seg/infer", BODY, HEADERS)
            response = connection.getresponse()
            data = response.read()
        except (OSError, http.client.HTTPException) as error:
            self.failures.append(repr(error))
            connection.close()
            return
        self.codes.append(response.status)
        length = int(response.headers.get("Inference-Header-Content-Length", 0))
        if length:
            self.versions.append(json.loads(data[:length])["model_version"])


def test_versions_side_by_side_and_a_swap_that_drops_nothing(
    models: dict[str, str], other: str, tmp_path: Path
) -> None:
    listing = tmp_path / "models.json"

    def write(content: dict[str, str] | str) -> None:
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / "new").write_text(text)
        (tmp_path / "new").replace(listing)

    write({"seg@1": models["seg"], "seg@2": other})
    with ServerProcess({}, models_file=listing, log_path=tmp_path / "log", config=CONFIG) as server:
        client = Client(server.url)
        assert client.metadata("seg")["versions"] == ["1", "2"]
        first = client.dense("seg", [PIXELS], version="1")[0]
        second = client.dense("seg", [PIXELS], version="2")[0]
        assert not np.array_equal(first, second)
        np.testing.assert_array_equal(client.dense("seg", [PIXELS])[0], first)
        with pytest.raises(ServerError, match=r"404.*no version '3'"):
            client.dense("seg", [PIXELS], version="3")

        is_done = threading.Event()
        with Load(server, lambda: not is_done.is_set()) as load:
            try:
                until(lambda: len(load.versions) > 5)
                write({"seg@3": other, "depth": models["depth"]})
                until(lambda: "3" in load.versions)
                write("{nonsense")
                until(lambda: 'reloads_total{outcome="failure"} 1.0' in metrics(server))
                seen = len(load.versions)
                until(lambda: len(load.versions) > seen + 5)
            finally:
                is_done.set()
        assert (load.failures, set(load.codes)) == ([], {200})
        assert set(load.versions) == {"1", "3"}
        assert client.models() == ["seg", "depth"]
        np.testing.assert_array_equal(client.dense("seg", [PIXELS])[0], second)
        with pytest.raises(ServerError, match="404"):
            client.dense("seg", [PIXELS], version="1")
        assert 'version="3"' in metrics(server)
        assert 'version="1"' not in metrics(server)
        write({"depth": models["depth"]})
        until(lambda: 'model="seg"' not in metrics(server))
        assert 'model="depth"' in metrics(server)


def test_the_file_is_followed_as_a_new_server_would_read_it(
    models: dict[str, str], tmp_path: Path
) -> None:
    listing, late = tmp_path / "models.json", tmp_path / "late"
    listing.write_text(json.dumps({"seg@canary": models["seg"]}))
    config = dataclasses.replace(CONFIG, max_reload_wait_seconds=0.4)
    with ServerProcess({}, models_file=listing, log_path=tmp_path / "log", config=config) as server:
        client = Client(server.url)
        digest = client.metadata("seg")["parameters"]["digest"]

        def versions() -> list[str]:
            return list(client.metadata("seg")["versions"])

        def stale() -> bool:
            return "clipmill_serve_models_file_stale 1.0" in metrics(server)

        assert versions() == ["canary"]
        listing.write_text(json.dumps({"seg": models["seg"]}))
        until(lambda: versions() == [digest[:12]])
        with pytest.raises(ServerError, match="404"):
            client.dense("seg", [PIXELS], version="canary")

        # A name twice, whether the file or a digest says so.
        for content in (
            f'{{"seg": "{models["seg"]}", "seg": "{models["depth"]}"}}',
            json.dumps({"seg": models["seg"], f"seg@{digest[:12]}": models["seg"]}),
        ):
            listing.write_text(content)
            until(stale)
            listing.write_text(json.dumps({"seg": models["seg"]}))
            until(lambda: not stale())

        # A model that isn't there yet is served once it is, without a change of the file.
        listing.write_text(json.dumps({"seg@late": str(late)}))
        until(lambda: 'reloads_total{outcome="failure"} 5.0' in metrics(server))
        assert stale()
        assert versions() == [digest[:12]]
        shutil.copytree(models["depth"], tmp_path / "copy")
        (tmp_path / "copy").rename(late)
        until(lambda: versions() == ["late"])
        until(lambda: not stale())
        assert client.metadata("seg")["parameters"]["task"] == "depth"

        # A change finds other content at the same URI, as a new server would.
        shutil.rmtree(late)
        shutil.copytree(models["seg"], tmp_path / "copy")
        (tmp_path / "copy").rename(late)
        listing.write_text(json.dumps({"seg@late": str(late), "other": models["depth"]}))
        until(lambda: client.models() == ["seg", "other"])
        assert client.metadata("seg")["parameters"]["task"] == "segmentation"


def test_waits_between_tries_double() -> None:
    async def waits() -> list[float]:
        config = ServingConfig(reload_interval_seconds=0.5, max_reload_wait_seconds=5)
        reloader = ModelReloader(None, Mock(), Mock(), config)
        return [reloader._schedule_retry() for _ in range(6)]

    assert asyncio.run(waits()) == [0.5, 1, 2, 4, 5, 5]


def until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def metrics(server: ServerProcess) -> str:
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=30) as response:
        return str(response.read().decode())


def is_ready(server: ServerProcess) -> bool:
    try:
        with urllib.request.urlopen(f"{server.url}/v2/health/ready", timeout=30) as response:
            return bool(json.loads(response.read())["ready"])
    except urllib.error.HTTPError:
        return False


def test_a_stop_under_load_fails_no_request(models: dict[str, str], log_path: Path) -> None:
    """Clients behave as a load balancer: they send until they see that it isn't ready."""
    with ServerProcess({"seg": models["seg"]}, log_path=log_path, config=CONFIG) as server:
        is_seen = threading.Event()
        with Load(server, lambda: not is_seen.is_set()) as load:
            try:
                until(lambda: len(load.codes) > 5)
                before = len(load.codes)
                os.kill(server.pid, signal.SIGTERM)
                until(lambda: not is_ready(server))
                until(lambda: len(load.codes) > before)
            finally:
                is_seen.set()
    assert (load.failures, set(load.codes)) == ([], {200})


def test_a_deadline_that_cant_be_met(slow_model: str, log_path: Path) -> None:
    with ServerProcess({"slow": slow_model}, log_path=log_path) as server:
        client = Client(server.url)
        with pytest.raises(ServerError, match=r"answered 503.*deadline"):
            client.infer("slow", images=[PIXELS], parameters={"deadline_milliseconds": 1})
        assert client.dense("slow", [PIXELS])[0].shape == (32, 32)
        assert 'rejected_total{model="slow",reason="deadline"} 1.0' in metrics(server)


def test_a_client_that_leaves_isnt_answered(slow_model: str, log_path: Path) -> None:
    config = ServingConfig(max_batch_size=1, max_queue_size=3)
    with ServerProcess({"slow": slow_model}, log_path=log_path, config=config) as server:
        leavers: list[Any] = []
        for _ in range(3):
            connection = socket.create_connection((server.host, server.http_port))
            head = "".join(f"{name}: {value}\r\n" for name, value in HEADERS.items())
            connection.sendall(
                f"POST /v2/models/slow/infer HTTP/1.1\r\nHost: x\r\n{head}"
                f"Content-Length: {len(BODY)}\r\n\r\n".encode()
                + BODY
            )
            leavers.append(connection)
        until(lambda: 'batch_size_count{model="slow"} 1.0' in metrics(server))
        for connection in leavers:
            connection.close()
        until(lambda: 'reason="disconnected"} 3.0' in metrics(server))
        assert Client(server.url).dense("slow", [PIXELS])[0].shape == (32, 32)
        # One was running when they left; of the others none was run.
        assert 'batch_size_count{model="slow"} 2.0' in metrics(server)
