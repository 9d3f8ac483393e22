"""A real server over gRPC."""

import asyncio
import contextlib
import os
import signal
import socket
import struct
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from clipmill.processes import free_port
from clipmill.serve.config import ServingConfig
from clipmill.serve.kserve_compat import InferInput, InferRequest, InferResponse
from clipmill.serve.launch import ServerProcess
from clipmill.serve.protocol.bodies import length_prefixed
from clipmill.serve.protocol.grpc_messages import message_type
from clipmill.serve.server.app import BufferLimit
from clipmill.serve.server.grpc_server import InferenceServicer
from clipmill.serve.smoke_test import scrape_metrics
from clipmill.tasks.visualization import encode_png
from clipmill.telemetry import serving_metrics


class _Rpc:
    """KServe's gRPC client in its simplest form."""

    def __init__(self, server: ServerProcess) -> None:
        from kserve.protocol.grpc import grpc_predict_v2_pb2 as messages
        from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

        self.messages = messages
        self.channel = grpc.insecure_channel(f"{server.host}:{server.grpc_port}")
        self.stub = GRPCInferenceServiceStub(self.channel)

    def infer(self, model: str, values: np.ndarray, datatype: str) -> np.ndarray:
        tensor = InferInput("image", list(values.shape), datatype)
        tensor.set_data_from_numpy(values, binary_data=True)
        request = InferRequest(model, [tensor]).to_grpc()
        answer = InferResponse.from_grpc(self.stub.ModelInfer(request, timeout=30))
        array: np.ndarray = answer.outputs[0].as_numpy()
        return array


def test_grpc(server: ServerProcess, name: str, picture: np.ndarray, expected: np.ndarray) -> None:
    rpc, before = _Rpc(server), _num_answered(server, name)
    with rpc.channel:
        for values, datatype in (
            (picture, "UINT8"),
            (np.array([encode_png(picture)], object), "BYTES"),
        ):
            np.testing.assert_array_equal(rpc.infer(name, values, datatype)[0], expected)
        assert rpc.stub.ServerReady(rpc.messages.ServerReadyRequest(), timeout=30).ready
    assert _num_answered(server, name) == before + 2


def _num_answered(server: ServerProcess, model: str) -> float:
    """Requests whose whole time was noted."""
    series = f'clipmill_serve_request_seconds_count{{model="{model}"}} '
    values = [line.removeprefix(series) for line in scrape_metrics(server.url).splitlines()]
    return sum(map(float, (v for v in values if v[0].isdigit())))


@pytest.mark.parametrize(
    ("model", "values", "status"),
    [
        ("seg", np.array([b"no image"], object), grpc.StatusCode.INVALID_ARGUMENT),
        ("nobody", np.array([b"no image"], object), grpc.StatusCode.NOT_FOUND),
    ],
)
def test_grpc_refuses(
    server: ServerProcess, model: str, values: np.ndarray, status: grpc.StatusCode
) -> None:
    rpc = _Rpc(server)
    with rpc.channel, pytest.raises(grpc.RpcError) as refusal:
        rpc.infer(model, values, "BYTES")
    assert refusal.value.code() == status
    assert "Traceback" not in refusal.value.details()


def test_a_failure_after_inference_is_counted_as_one() -> None:
    class Model:
        name, version = "broken", "1"

        def in_flight(self) -> Any:
            return contextlib.nullcontext()

        async def predict(self, _body: Any) -> bytes:
            raise ValueError("an array that can't be encoded")

    class AbortedError(Exception):
        pass

    class Context:
        def invocation_metadata(self) -> tuple[()]:
            return ()

        async def abort(self, code: grpc.StatusCode, message: str) -> None:
            raise AbortedError(code, message)

    registry: Any = SimpleNamespace(get=lambda _name, _version: Model())
    dataplane: Any = None
    handler = InferenceServicer(dataplane, registry, BufferLimit(ServingConfig())).handler()
    details = SimpleNamespace(method="/inference.GRPCInferenceService/ModelInfer")
    answer = handler.service(details).unary_stream
    with pytest.raises(AbortedError) as aborted:
        asyncio.run(answer(message_type("ModelInferRequest")(model_name="broken"), Context()))
    assert aborted.value.args[0] is grpc.StatusCode.INTERNAL
    assert "can't be encoded" not in aborted.value.args[1], "details are for the log"
    counted = serving_metrics().requests.labels("broken", "1", "500")
    assert counted._value.get() == 1


def test_health_of_server_and_models_until_it_stops(models: dict[str, str], tmp_path: Path) -> None:
    port = free_port("127.0.0.1")
    config = ServingConfig(unready_before_shutdown_seconds=1.5)
    uris = {"seg@1": models["seg"], "seg@2": models["seg"]}
    statuses = health_pb2.HealthCheckResponse
    with (
        ServerProcess(uris, log_path=tmp_path / "log", grpc_port=port, config=config) as server,
        grpc.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        stub = health_pb2_grpc.HealthStub(channel)

        def check(service: str) -> int:
            request = health_pb2.HealthCheckRequest(service=service)
            return int(stub.Check(request, timeout=30).status)

        for service in ("", "inference.GRPCInferenceService", "seg", "seg@2"):
            assert check(service) == statuses.SERVING
        for service in ("depth", "seg@3", "other.Service"):
            with pytest.raises(grpc.RpcError) as unknown:
                check(service)
            assert unknown.value.code() is grpc.StatusCode.NOT_FOUND

        watches = [
            stub.Watch(health_pb2.HealthCheckRequest(service=service), timeout=60)
            for service in ("seg", "none")
        ]
        seen = [next(watch).status for watch in watches]
        os.kill(server.pid, signal.SIGTERM)
        stopping = time.monotonic()
        assert seen == [statuses.SERVING, statuses.SERVICE_UNKNOWN]
        assert [answer.status for answer in watches[0]] == [statuses.NOT_SERVING]
        assert list(watches[1]) == []
        assert time.monotonic() - stopping < config.shutdown_timeout_seconds / 2


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """A frame of HTTP/2 (RFC 9113, section 4.1)."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def stalled_call(port: int, message: bytes) -> socket.socket:
    """Send a request to infer over a connection that takes no byte of its response."""
    headers = {
        ":method": "POST",
        ":scheme": "http",
        ":path": "/inference.GRPCInferenceService/ModelInfer",
        ":authority": "test",
        "content-type": "application/grpc",
        "te": "trailers",
    }
    block = b"".join(  # literals without Huffman coding (RFC 7541, section 6.2.2)
        bytes([0, len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in headers.items()
    )
    body = b"\0" + struct.pack(">I", len(message)) + message
    assert len(body) < 2**14, "beyond the first frame"
    connection = socket.create_connection(("127.0.0.1", port))
    no_window = struct.pack(">HI", 4, 0)
    connection.sendall(
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        + frame(4, 0, 0, no_window)
        + frame(1, 4, 1, block)
        + frame(0, 1, 1, body)
    )
    return connection


def test_a_client_that_takes_nothing_holds_memory_for_a_limited_time(
    models: dict[str, str], tmp_path: Path
) -> None:
    request = message_type("ModelInferRequest")(model_name="seg")
    tensor = request.inputs.add(name="image", datatype="BYTES")
    tensor.shape.append(1)
    request.raw_input_contents.append(
        length_prefixed(encode_png(np.zeros((600, 600, 3), np.uint8)))
    )
    message = request.SerializeToString()
    port = free_port("127.0.0.1")
    config = ServingConfig(write_timeout_seconds=6, max_buffered_bytes=300_000)
    with (
        ServerProcess(models, log_path=tmp_path / "log", grpc_port=port, config=config),
        grpc.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        assert len(infer(message)) > config.max_buffered_bytes, "one of them fills the buffer"
        with stalled_call(port, message):
            wait_for_status(infer, message, grpc.StatusCode.UNAVAILABLE)
            live = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
            assert live(b"")
            wait_for_status(infer, message, grpc.StatusCode.OK)


def wait_for_status(call: Any, message: bytes, status: grpc.StatusCode) -> None:
    code = None
    for _ in range(200):
        try:
            call(message)
            code = grpc.StatusCode.OK
        except grpc.RpcError as error:
            code = error.code()
        if code is status:
            return
        time.sleep(0.1)
    pytest.fail(f"still {code}, not {status}")
