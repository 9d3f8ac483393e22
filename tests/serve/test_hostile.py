"""Whatever comes over REST and gRPC gets the right refusal, and the server goes on."""

import http.client
import json
from pathlib import Path

import grpc
import numpy as np
import pytest
from hostile import PIXELS, REFUSED, Hostile, hostile, hostile_image
from kserve.protocol.grpc import grpc_predict_v2_pb2 as messages
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

from clipmill.serve.client import query
from clipmill.serve.process import ServerProcess

REFUSED_RPC = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.UNIMPLEMENTED,
}
LEAKS = ("Traceback", ".py", "site-packages", "/tmp", "0x")


def ask(server: ServerProcess, number: int, request: Hostile) -> None:
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
        return  # a change that changed nothing, or a right GET
    assert response.status in REFUSED, told
    message = json.dumps(json.loads(data))
    assert 0 < len(message) < 400, told
    assert not any(leak in message for leak in LEAKS), told


def ask_rpc(stub: GRPCInferenceServiceStub, number: int) -> None:
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
        return
    told = f"request {number}: {refusal.code()} {refusal.details()}"
    assert refusal.code() in REFUSED_RPC, told
    assert not any(leak in (refusal.details() or "") for leak in LEAKS), told


def resident_bytes(server: ServerProcess) -> int:
    pages = int(Path(f"/proc/{server.pid}/statm").read_text().split()[1])
    return pages * 4096


def fuzz(server: ServerProcess, numbers: range) -> None:
    expected = query(server.url, "seg", PIXELS)
    with grpc.insecure_channel(f"{server.host}:{server.grpc_port}") as channel:
        stub = GRPCInferenceServiceStub(channel)
        for number in numbers:
            if number % 4:
                ask(server, number, hostile(number))
            else:
                ask_rpc(stub, number)
    np.testing.assert_array_equal(query(server.url, "seg", PIXELS), expected)
    assert not [line for line in server.log_path.read_text().splitlines() if " 500" in line[-6:]]


def test_hundreds_of_hostile_requests(server: ServerProcess) -> None:
    fuzz(server, range(400))


@pytest.mark.slow
def test_ten_thousand_hostile_requests_leave_no_trace(server: ServerProcess) -> None:
    fuzz(server, range(1000, 3000))
    before = resident_bytes(server)
    fuzz(server, range(3000, 11_000))
    assert resident_bytes(server) < before + 64 * 2**20


def test_it_refuses_a_flood_of_headers(server: ServerProcess) -> None:
    connection = http.client.HTTPConnection(server.host, server.http_port, timeout=30)
    headers = {f"X-{n}": "v" * 1000 for n in range(99)}
    connection.request("POST", "/v2/models/seg/infer", b"{}", headers)
    assert connection.getresponse().status in {400, 431}
    connection.close()
    assert query(server.url, "seg", PIXELS).shape == PIXELS.shape[:2]
