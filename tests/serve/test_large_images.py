"""Images that are scaled down for the network: outputs have the size of the image that was sent."""

import asyncio
import http.client
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from grpc.aio import AioRpcError
from kserve import InferenceGRPCClient

from clipmill.processes import free_port
from clipmill.serve.client import Client, predict_image, v1_request
from clipmill.serve.config import ServingConfig
from clipmill.serve.kserve_compat import InferInput, InferRequest, InferResponse
from clipmill.serve.launch import ServerProcess
from clipmill.serve.protocol.images import decode_image
from clipmill.tasks.predictor import Predictor
from clipmill.tasks.visualization import encode_png
from helpers.small_models import save_model

TASKS = ("segmentation", "depth", "detection")
CONFIG = ServingConfig(max_network_pixels=48 * 64, max_response_bytes=150_000)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ServerProcess, Any]]:
    """A server that scales images down to 48 x 64 pixels, and the same models without one."""
    folder = tmp_path_factory.mktemp("large")
    uris = {task: save_model(str(folder / task), task) for task in TASKS}
    port = free_port("127.0.0.1")
    log_path = folder / "server.log"
    with ServerProcess(uris, log_path=log_path, grpc_port=port, config=CONFIG) as server:
        yield server, {task: Predictor.open(uri) for task, uri in uris.items()}


@pytest.fixture
def large(picture: np.ndarray) -> np.ndarray:
    """The picture at twice its size, 96 x 128."""
    return doubled(picture)


def doubled(array: np.ndarray) -> np.ndarray:
    return array.repeat(2, axis=0).repeat(2, axis=1)


def expected_for(served: Any, task: str, large: np.ndarray) -> Any:
    """What the network predicts for the image as it gets it."""
    found, size = decode_image(encode_png(large), CONFIG)
    assert (found.shape[:2], size) == ((48, 64), (96, 128))
    return served[1][task].predict([found])[0]


@pytest.mark.parametrize("output", ["raw", "png"])
@pytest.mark.parametrize(("task", "name"), [("segmentation", "classes"), ("depth", "depth_meters")])
def test_dense_outputs_have_the_images_size(
    served: Any, large: np.ndarray, task: str, name: str, output: str
) -> None:
    expected = doubled(expected_for(served, task, large)[name])
    (found,) = Client(served[0].url).dense(task, [encode_png(large)], output=output)
    tolerance = {"rtol": 1e-5} if output == "raw" else {"atol": 0.0006}
    np.testing.assert_allclose(found, expected, **tolerance)
    assert predict_image(served[0].url, encode_png(large), model=task).overlay_png


def test_objects_have_the_images_coordinates(served: Any, large: np.ndarray) -> None:
    expected = expected_for(served, "detection", large)
    assert len(expected["scores"]) > 3
    (found,) = Client(served[0].url).detect("detection", [encode_png(large)])
    np.testing.assert_allclose(found["boxes"], 2 * expected["boxes"], rtol=1e-5)
    masks = np.stack([doubled(mask) for mask in expected["masks"]])
    np.testing.assert_array_equal(found["masks"], masks)
    raw = Client(served[0].url).infer(
        "detection", images=[encode_png(large)], parameters={"top_k": 2}
    )
    np.testing.assert_array_equal(raw["masks"], masks[:2])


def test_responses_say_that_an_image_was_scaled_down(
    served: Any, large: np.ndarray, picture: np.ndarray
) -> None:
    server = served[0]
    connection = http.client.HTTPConnection(server.host, server.http_port, timeout=30)
    sizes = []
    for image in (large, picture):
        for path, body in (
            ("/v2/models/depth/infer", encode_png(image)),
            ("/v1/models/depth:predict", v1_request(encode_png(image))),
        ):
            connection.request("POST", path, body)
            response = connection.getresponse()
            data = json.loads(response.read())
            assert response.status == 200
            header = response.headers["Clipmill-Network-Size"]
            if path.startswith("/v2"):
                assert data["parameters"].get("network_size") == header
            sizes.append(header)
    connection.close()
    assert sizes == ["48x64", "48x64", None, None]


def infer(server: ServerProcess, task: str, image: np.ndarray) -> InferResponse:
    async def send() -> Any:
        tensor = InferInput("image", [1], "BYTES")
        tensor.set_data_from_numpy(np.array([encode_png(image)], object), binary_data=True)
        async with InferenceGRPCClient(f"{server.host}:{server.grpc_port}") as client:
            return await client.infer(InferRequest(task, [tensor]))

    return asyncio.run(send())


def test_grpc_does_the_same(served: Any, large: np.ndarray) -> None:
    response = infer(served[0], "segmentation", large)
    expected = expected_for(served, "segmentation", large)["classes"]
    np.testing.assert_array_equal(response.outputs[0].as_numpy()[0], doubled(expected))
    assert response.parameters["network_size"].string_param == "48x64"


def test_responses_beyond_the_limit_are_refused_before_they_are_built(
    served: Any, large: np.ndarray
) -> None:
    server = served[0]
    connection = http.client.HTTPConnection(server.host, server.http_port, timeout=30)
    bodies = {
        "/v2/models/detection/infer": encode_png(large),
        "/v1/models/detection:predict": v1_request(encode_png(large)),
    }
    for path, body in bodies.items():
        connection.request("POST", path, body)
        response = connection.getresponse()
        assert response.status == 400
        assert "max_response_bytes" in json.loads(response.read())["error"]
    connection.close()
    with pytest.raises(AioRpcError, match="max_response_bytes"):
        infer(server, "detection", large)
