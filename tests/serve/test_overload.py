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
from clipmill.serve.client import pixels_request, query
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


def test_clients_that_stall_take_no_places_and_are_cut_off(slow_server: ServerProcess) -> None:
    head = b"POST /v2/models/slow/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"
    address = (slow_server.host, slow_server.http_port)
    with ExitStack() as stack:
        stalled = [stack.enter_context(socket.create_connection(address)) for _ in range(6)]
        for connection in stalled:
            connection.sendall(head + b"{")
        assert is_up(slow_server, "live")
        assert query(slow_server.url, "slow", PIXELS).shape == (32, 32)
        for connection in stalled:
            connection.settimeout(30)
            answer = connection.recv(1000)
            assert answer.startswith(b"HTTP/1.1 400")
            # Headers and body may come in packets of their own.
            if answer.endswith(b"\r\n\r\n"):
                answer += connection.recv(1000)
            assert b"read_timeout_seconds" in answer


def test_one_model_that_is_full_leaves_the_others_their_places(
    slow_model: str, models: dict[str, str], log_path: Path
) -> None:
    served = {"slow": slow_model, "depth": models["depth"]}
    with (
        ServerProcess(served, log_path=log_path, config=CONFIG) as server,
        ThreadPoolExecutor(4) as pool,
    ):
        answers = ask_at_once(server, pool, 4)
        while not any(answer.done() for answer in answers):
            wait(answers, timeout=0.01)
        assert query(server.url, "depth", PIXELS).shape == (32, 32)
        assert not all(answer.done() for answer in answers)


def test_bodies_in_memory_are_bounded_for_all_models_together(
    slow_model: str, log_path: Path
) -> None:
    config = ServingConfig(max_buffered_bytes=20_000, max_request_bytes=15_000)
    with (
        ServerProcess({"slow": slow_model}, log_path=log_path, config=config) as server,
        closing(HTTPConnection(server.host, server.http_port, timeout=30)) as first,
        closing(HTTPConnection(server.host, server.http_port, timeout=30)) as second,
    ):
        begin(first, 15_000)
        first.send(bytes(14_000))
        begin(second, 15_000)
        second.send(bytes(14_000))
        refusal = second.getresponse()
        assert refusal.status == 503
        assert b"max_buffered_bytes" in refusal.read()
        first.send(bytes(1_000))
        assert first.getresponse().status == 400  # no request, but read
        assert query(server.url, "slow", PIXELS).shape == (32, 32)


def test_the_depth_of_a_queue_is_zero_once_its_clients_left(slow_server: ServerProcess) -> None:
    body, headers = pixels_request(PIXELS)
    connections = [
        HTTPConnection(slow_server.host, slow_server.http_port, timeout=30) for _ in range(2)
    ]
    for connection in connections:
        connection.request("POST", "/v2/models/slow/infer", body, headers)
    depth = 'clipmill_serve_queue_depth{model="slow"} '
    while depth + "1.0" not in _metrics(slow_server):  # one is computed, one waits
        pass
    for connection in connections:
        connection.close()
    while depth + "1.0" in _metrics(slow_server):
        pass
    assert depth + "0.0" in _metrics(slow_server)


def test_a_refused_connection_goes_on_after_its_body(slow_server: ServerProcess) -> None:
    with (
        ThreadPoolExecutor(8) as pool,
        closing(HTTPConnection(slow_server.host, slow_server.http_port, timeout=30)) as refused,
    ):
        answers = ask_at_once(slow_server, pool, 8)
        while not any(answer.done() for answer in answers):
            wait(answers, timeout=0.01)
        begin(refused, 2_000_000)
        answer = refused.getresponse()  # before the body came
        assert answer.status == 503
        assert answer.headers["Retry-After"] == "1"
        assert "max_queue_size" in json.loads(answer.read())["error"]
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
