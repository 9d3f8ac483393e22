"""A real server over gRPC."""

import grpc
import numpy as np
import pytest

from clipmill.serve.kserve_compat import InferInput, InferRequest, InferResponse
from clipmill.serve.launch import ServerProcess
from clipmill.serve.smoke_test import scrape_metrics
from clipmill.tasks.visualization import encode_png


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
