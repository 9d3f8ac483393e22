"""Whatever comes over REST and gRPC gets the right refusal, and the server goes on."""

import http.client
import json
from collections import Counter
from pathlib import Path

import grpc
import numpy as np
import pytest
from kserve.protocol.grpc import grpc_predict_v2_pb2 as messages
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

from clipmill.serve.client import binary_request, query
from clipmill.serve.launch import ServerProcess
from clipmill.tasks.visualization import encode_png
from helpers.hostile_requests import LENGTH, PIXELS, PNG, REFUSED, Hostile, hostile, hostile_image

REFUSED_RPC = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.UNIMPLEMENTED,
}
LEAKS = ("Traceback", ".py", "site-packages", "/tmp", "0x")


def ask(server: ServerProcess, number: int, request: Hostile) -> str:
    connection = http.client.HTTPConnection(server.host, server.http_port, timeout=30)
    try:
        connection.request(request.method, request.path, request.body, request.headers)
        response = connection.getresponse()
        data = response.read()
    finally:
        connection.close()
    told = (
        f"request {number}: {request.method} {request.path[:80]}: {response.status} {data[:200]!r}"
    )
    if response.status == 200:
        return "REST 200"  # a change that changed nothing, or a right GET
    if response.status == 503 and b"deadline_milliseconds" in request.body:
        assert b"the deadline passed" in data, told
        return "REST 503, its own deadline"
    assert response.status in REFUSED, told
    message = json.dumps(json.loads(data))
    assert 0 < len(message) < 400, told
    assert not any(leak in message for leak in LEAKS), told
    return f"REST {response.status}"


def ask_rpc(stub: GRPCInferenceServiceStub, number: int) -> str:
    draw = np.random.default_rng([78, number])
    datatype = ["BYTES", "UINT8", "FP32", "FP64", "", "é"][draw.integers(6)]
    shape = [int(n) for n in draw.choice([1, 3, 0, -1, 2**40, 24], draw.integers(0, 5))]
    image = hostile_image(draw)
    raw = [len(image).to_bytes(4, "little") + image, image, b"", draw.bytes(9)][draw.integers(4)]
    request = messages.ModelInferRequest(
        model_name=["seg", "depth", "nobody", "", "../seg"][draw.integers(5)],
        model_version=["", "", "9"][draw.integers(3)],
        inputs=[
            messages.ModelInferRequest.InferInputTensor(
                name=["image", "text", "x"][draw.integers(3)], datatype=datatype, shape=shape
            )
        ]
        * int(draw.choice([1, 1, 1, 0, 2])),
        raw_input_contents=[raw] * int(draw.choice([1, 1, 1, 0, 2])),
    )
    refusal = stub.ModelInfer.future(request, timeout=30).exception()
    if refusal is None:
        return "gRPC OK"
    told = f"request {number}: {refusal.code()} {refusal.details()}"
    assert refusal.code() in REFUSED_RPC, told
    assert not any(leak in (refusal.details() or "") for leak in LEAKS), told
    return f"gRPC {refusal.code().name}"


def resident_bytes(server: ServerProcess) -> int:
    pages = int(Path(f"/proc/{server.pid}/statm").read_text().split()[1])
    return pages * 4096


def fuzz(server: ServerProcess, numbers: range) -> Counter[str]:
    """How often each status came."""
    found: Counter[str] = Counter()
    expected = query(server.url, "seg", PIXELS)
    with grpc.insecure_channel(f"{server.host}:{server.grpc_port}") as channel:
        stub = GRPCInferenceServiceStub(channel)
        for number in numbers:
            if number % 4:
                found[ask(server, number, hostile(number))] += 1
            else:
                found[ask_rpc(stub, number)] += 1
    np.testing.assert_array_equal(query(server.url, "seg", PIXELS), expected)
    assert not [line for line in server.log_path.read_text().splitlines() if " 500" in line[-6:]]
    return found


def test_hundreds_of_hostile_requests(server: ServerProcess) -> None:
    found = fuzz(server, range(400))
    assert found.total() == 400
    assert {"REST 200", "REST 400", "REST 404", "gRPC INVALID_ARGUMENT", "gRPC NOT_FOUND"} <= set(
        found
    )


@pytest.mark.slow
def test_ten_thousand_hostile_requests_leave_no_trace(server: ServerProcess) -> None:
    found = fuzz(server, range(1000, 3000))
    before = resident_bytes(server)
    found += fuzz(server, range(3000, 11_000))
    after = resident_bytes(server)
    print(dict(sorted(found.items())), f"{before / 2**20:.0f} then {after / 2**20:.0f} MiB")
    assert found.total() == 10_000
    assert after < before + 64 * 2**20


def test_hundreds_of_requests_leave_memory_flat(server: ServerProcess) -> None:
    """An image kept of every three would show: each is 192 KiB."""
    image = encode_png(np.random.default_rng(6).integers(0, 256, (256, 256, 3), np.uint8))
    answer_many(server, 50, image)
    before = resident_bytes(server)
    answer_many(server, 250, image)
    assert resident_bytes(server) < before + 16 * 2**20


@pytest.mark.slow
def test_a_hundred_thousand_requests_leave_memory_flat(server: ServerProcess) -> None:
    answer_many(server, 10_000)
    before = resident_bytes(server)
    for _ in range(9):
        answer_many(server, 10_000)
        print(f"{resident_bytes(server) / 2**20:.1f} MiB")
    assert resident_bytes(server) < before + 32 * 2**20


def answer_many(server: ServerProcess, number: int, image: bytes = PNG) -> None:
    """Right requests, over a connection that is kept."""
    body, headers = binary_request(image)
    connection = http.client.HTTPConnection(server.host, server.http_port, timeout=30)
    for _ in range(number):
        connection.request("POST", "/v2/models/seg/infer", body, headers)
        response = connection.getresponse()
        response.read()
        assert response.status == 200
    connection.close()


def test_a_path_with_a_slash_too_many_isnt_redirected(server: ServerProcess) -> None:
    assert ask(server, 0, Hostile("GET", "/playground/%2e%2e%2f", b"", {})) == "REST 404"
    assert ask(server, 0, Hostile("POST", "/v2/models/seg/infer/", b"", {})) == "REST 404"


@pytest.mark.parametrize("length", ["9" * 5000, "٣", "1_0", "+5"])
def test_a_length_that_is_no_length(server: ServerProcess, length: str) -> None:
    headers = {LENGTH: length.encode()}
    assert ask(server, 0, Hostile("POST", "/v2/models/seg/infer", b"{}", headers)) == "REST 400"


def test_it_refuses_a_flood_of_headers(server: ServerProcess) -> None:
    connection = http.client.HTTPConnection(server.host, server.http_port, timeout=30)
    headers = {f"X-{n}": "v" * 1000 for n in range(99)}
    connection.request("POST", "/v2/models/seg/infer", b"{}", headers)
    assert connection.getresponse().status in {400, 431}
    connection.close()
    assert query(server.url, "seg", PIXELS).shape == PIXELS.shape[:2]
