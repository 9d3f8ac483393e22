"""KServe's own clients, over REST and gRPC, against the library's answers."""

import asyncio
import io
from typing import Any

import numpy as np
import pytest
from kserve import InferenceGRPCClient, InferenceRESTClient
from kserve.inference_client import RESTConfig
from PIL import Image

from clipmill.serve.kserve_compat import InferInput, InferRequest
from clipmill.serve.launch import ServerProcess
from clipmill.tasks.visualization import encode_png


def request_for(model: str, values: np.ndarray, datatype: str, **parameters: Any) -> InferRequest:
    tensor = InferInput("image", list(values.shape), datatype)
    tensor.set_data_from_numpy(values, binary_data=True)
    return InferRequest(model, [tensor], parameters=parameters)


def file_of(picture: np.ndarray) -> np.ndarray:
    return np.array([encode_png(picture)], object)


async def over_rest(server: ServerProcess, request: InferRequest) -> Any:
    async with InferenceRESTClient(RESTConfig(protocol="v2")) as client:
        assert await client.is_server_live(server.url)
        assert await client.is_server_ready(server.url)
        assert await client.is_model_ready(server.url, request.model_name)
        return await client.infer(server.url, request, model_name=request.model_name)


async def over_grpc(server: ServerProcess, request: InferRequest) -> Any:
    async with InferenceGRPCClient(f"{server.host}:{server.grpc_port}") as client:
        assert await client.is_server_live()
        assert await client.is_server_ready()
        assert await client.is_model_ready(request.model_name)
        return await client.infer(request)


@pytest.mark.parametrize("send", [over_rest, over_grpc])
@pytest.mark.parametrize("datatype", ["UINT8", "BYTES"])
def test_raw(
    server: ServerProcess,
    name: str,
    send: Any,
    datatype: str,
    picture: np.ndarray,
    expected: np.ndarray,
) -> None:
    values = picture if datatype == "UINT8" else file_of(picture)
    wishes = {"binary_data_output": True} if send is over_rest else {}
    answer = asyncio.run(send(server, request_for(name, values, datatype, **wishes)))
    np.testing.assert_array_equal(answer.outputs[0].as_numpy()[0], expected)


def test_png(server: ServerProcess, picture: np.ndarray, predictors: dict[str, Any]) -> None:
    # Over gRPC alone: KServe's REST client makes text of BYTES that it gets, and fails.
    request = request_for("seg", file_of(picture), "BYTES", output="png")
    (data,) = asyncio.run(over_grpc(server, request)).outputs[0].as_numpy()
    found = np.asarray(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(found, predictors["seg"].predict([picture])[0]["classes"])
