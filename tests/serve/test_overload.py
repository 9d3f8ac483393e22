"""A real server that has too much to do stays quick to say so."""

import json
import socket
import urllib.request
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
import pytest

from clipmill.errors import ServerError
from clipmill.serve.client import query
from clipmill.serve.config import ServingConfig
from clipmill.serve.launch import ServerProcess

PIXELS = np.random.default_rng(5).integers(0, 256, (32, 32, 3), np.uint8)


CONFIG = ServingConfig(
    max_batch_size=1, max_queue_size=2, read_timeout_seconds=3, max_request_bytes=10_000
)


@pytest.fixture(scope="module")
def slow_server(
    slow_model: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """A slow model with places for two images."""
    log_path = tmp_path_factory.mktemp("slow") / "server.log"
    with ServerProcess({"slow": slow_model}, log_path=log_path, config=CONFIG) as process:
        yield process


def is_up(server: ServerProcess, what: str) -> bool:
    with urllib.request.urlopen(f"{server.url}/v2/health/{what}", timeout=30) as response:
        return bool(json.loads(response.read())[what])


def ask_at_once(server: ServerProcess, pool: ThreadPoolExecutor, number: int) -> list[Future]:
    return [pool.submit(query, server.url, "slow", PIXELS) for _ in range(number)]


def test_more_requests_than_places(slow_server: ServerProcess) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = ask_at_once(slow_server, pool, 8)
        # The first answers are the refusals; the probes come through while the model works.
        while not any(answer.done() for answer in answers):
            wait(answers, timeout=0.05)
        assert is_up(slow_server, "live")
        assert is_up(slow_server, "ready")
        assert not all(answer.done() for answer in answers)
        errors = [answer.exception() for answer in answers]
    refusals = [error for error in errors if error is not None]
    assert 1 <= len(refusals) <= 6
    assert all(isinstance(error, ServerError) and "503" in error.what for error in refusals)
    # Once they are through there is room again.
    assert query(slow_server.url, "slow", PIXELS).shape == (32, 32)


def test_clients_that_stall_hold_places_for_a_while_only(slow_server: ServerProcess) -> None:
    head = b"POST /v2/models/slow/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"
    address = (slow_server.host, slow_server.http_port)
    with socket.create_connection(address) as one, socket.create_connection(address) as two:
        one.sendall(head)
        two.sendall(head)
        assert is_up(slow_server, "live")
        request = urllib.request.Request(f"{slow_server.url}/v2/models/slow/infer", b"{}")
        with pytest.raises(urllib.error.HTTPError) as refusal:
            urllib.request.urlopen(request, timeout=30)
        assert refusal.value.code == 503
        assert refusal.value.headers["Retry-After"] == "1"
        assert "error" in json.loads(refusal.value.read())
        for stalled in (one, two):
            stalled.settimeout(30)
            assert stalled.recv(100).startswith(b"HTTP/1.1 400")
    assert query(slow_server.url, "slow", PIXELS).shape == (32, 32)


def test_a_refused_connection_goes_on_after_its_body(slow_server: ServerProcess) -> None:
    with ExitStack() as stack:
        *holding, stalled, refused = (
            stack.enter_context(
                closing(HTTPConnection(slow_server.host, slow_server.http_port, timeout=30))
            )
            for _ in range(4)
        )
        for connection in holding:
            begin(connection, 100)
        assert is_up(slow_server, "live")
        for connection in (stalled, refused):
            begin(connection, 2_000_000)
            answer = connection.getresponse()  # before the body came
            assert answer.status == 503
            answer.read()
        refused.send(bytes(2_000_000))
        refused.request("GET", "/v2/health/live")
        assert refused.getresponse().status == 200
    assert query(slow_server.url, "slow", PIXELS).shape == (32, 32)


def begin(connection: HTTPConnection, num_bytes: int) -> None:
    """Say that a body will come."""
    connection.putrequest("POST", "/v2/models/slow/infer")
    connection.putheader("Content-Length", str(num_bytes))
    connection.endheaders()


def test_a_body_beyond_the_limit_isnt_read_to_its_end(slow_server: ServerProcess) -> None:
    address = (slow_server.host, slow_server.http_port)
    with socket.create_connection(address, timeout=30) as connection:
        head = b"POST /v2/models/slow/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"
        connection.sendall(head + bytes(20_000))
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


def test_stopping_finishes_what_was_taken_in(slow_model: str, log_path: Path) -> None:
    with (
        ServerProcess({"slow": slow_model}, log_path=log_path, config=CONFIG) as server,
        ThreadPoolExecutor(1) as pool,
    ):
        (answer,) = ask_at_once(server, pool, 1)
        started = 'clipmill_serve_batch_size_count{model="slow"} 1.0'
        while started not in _metrics(server):
            assert not answer.done()
        server.stop()
        assert answer.result().shape == (32, 32)


def _metrics(server: ServerProcess) -> str:
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=30) as response:
        return str(response.read().decode())
