"""Detection and classification over a real server, against the library's own predictions."""

import asyncio
import io
import json
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from kserve import InferenceGRPCClient
from PIL import Image
from pycocotools import mask as coco
from test_answers import v1

from clipmill.errors import ServerError
from clipmill.processes import free_port
from clipmill.serve.client import Client, predict_image, v1_request
from clipmill.serve.kserve_compat import InferInput, InferRequest
from clipmill.serve.launch import ServerProcess
from clipmill.tasks.predictor import Predictor
from clipmill.tasks.visualization import encode_png
from helpers.small_models import save_model

# pycocotools 2.0.11 hands NumPy 2 an array in the way of NumPy 1.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ServerProcess, Any]]:
    """A server of a detection and a classification model, and the same models here."""
    folder = tmp_path_factory.mktemp("objects")
    uris = {task: save_model(str(folder / task), task) for task in ("detection", "classification")}
    port = free_port("127.0.0.1")
    with ServerProcess(uris, log_path=folder / "server.log", grpc_port=port) as server:
        yield server, {task: Predictor.open(uri) for task, uri in uris.items()}


@pytest.fixture
def found(objects: Any, picture: np.ndarray) -> Any:
    """What the library finds in the picture: several objects, of several scores."""
    (prediction,) = objects[1]["detection"].predict([picture])
    assert len(np.unique(prediction["scores"])) > 3
    return prediction


def assert_equal(objects_found: Any, expected: Any) -> None:
    assert objects_found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(objects_found[name], array, rtol=1e-5, atol=1e-4, err_msg=name)


def test_all_objects_of_several_images(objects: Any, found: Any, picture: np.ndarray) -> None:
    images = [picture, picture[:40], np.zeros_like(picture)]
    each = Client(objects[0].url).detect("detection", images)
    for one, expected in zip(each, objects[1]["detection"].predict(images), strict=True):
        if len(expected["scores"]):
            assert_equal(one, expected)
        else:
            assert len(one["scores"]) == 0


def test_a_threshold_and_the_best(objects: Any, found: Any, picture: np.ndarray) -> None:
    client = Client(objects[0].url)
    threshold = float(np.sort(found["scores"])[len(found["scores"]) // 2])
    likely = {name: array[found["scores"] >= threshold] for name, array in found.items()}
    assert 0 < len(likely["scores"]) < len(found["scores"])
    assert_equal(client.detect("detection", [picture], threshold=threshold)[0], likely)
    best = {name: array[:2] for name, array in found.items()}
    assert_equal(client.detect("detection", [picture], top_k=2)[0], best)
    raw = client.infer("detection", images=[picture], parameters={"top_k": 2})
    assert raw.pop("counts").tolist() == [2]
    assert_equal(raw, best)


def test_v1_gives_cocos_form(objects: Any, found: Any, picture: np.ndarray) -> None:
    body = json.loads(v1_request(encode_png(picture))) | {"parameters": {"output": "rle"}}
    (one,) = v1(objects[0].url, "detection", body)
    masks = np.stack([coco.decode(rle) for rle in one.pop("masks")])
    assert_equal({**one, "masks": masks}, found)


def test_a_file_alone(objects: Any, found: Any, picture: np.ndarray) -> None:
    request = urllib.request.Request(
        f"{objects[0].url}/v2/models/detection/infer?output=rle&threshold=0.0&top_k=3",
        encode_png(picture),
        {"Content-Type": "image/png"},
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        outputs = {o["name"]: o["data"] for o in json.loads(response.read())["outputs"]}
    np.testing.assert_allclose(outputs["scores"], found["scores"][:3], rtol=1e-5)
    masks = np.stack([coco.decode(json.loads(text)) for text in outputs["masks"]])
    np.testing.assert_array_equal(masks, found["masks"][:3])


def test_over_grpc(objects: Any, found: Any, picture: np.ndarray) -> None:
    server = objects[0]

    async def send() -> Any:
        tensor = InferInput("image", list(picture.shape), "UINT8")
        tensor.set_data_from_numpy(picture, binary_data=True)
        request = InferRequest("detection", [tensor], parameters={"output": "rle", "top_k": 3})
        async with InferenceGRPCClient(f"{server.host}:{server.grpc_port}") as client:
            return await client.infer(request)

    outputs = {output.name: output.as_numpy() for output in asyncio.run(send()).outputs}
    masks = np.stack([coco.decode(json.loads(data)) for data in outputs.pop("masks")])
    assert outputs.pop("counts").tolist() == [3]
    assert_equal({**outputs, "masks": masks}, {name: a[:3] for name, a in found.items()})


def test_the_likeliest_classes(objects: Any, picture: np.ndarray) -> None:
    client = Client(objects[0].url)
    (expected,) = objects[1]["classification"].predict([picture])
    every = client.infer("classification", images=[picture])["probabilities"][0]
    np.testing.assert_allclose(every, expected["probabilities"], rtol=1e-5)
    best = client.infer("classification", images=[picture], parameters={"top_k": 2})
    order = np.argsort(-expected["probabilities"])[:2]
    classes = objects[1]["classification"].classes
    assert best["top_labels"][0].tolist() == [classes[i].encode() for i in order]
    np.testing.assert_allclose(best["top_probabilities"][0], every[order], rtol=1e-5)


def test_query_draws_objects_and_names_classes(objects: Any, picture: np.ndarray) -> None:
    answer = predict_image(objects[0].url, encode_png(picture), model="detection")
    with Image.open(io.BytesIO(answer.overlay_png)) as drawn:
        assert drawn.size == (256, 192)  # enlarged, so that names fit
    lines = predict_image(objects[0].url, encode_png(picture), model="classification").lines
    assert sum(float(line.split("%")[0]) for line in lines) == pytest.approx(100, abs=0.3)


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        ("detection", {"threshold": 2}),
        ("detection", {"threshold": "much"}),
        ("detection", {"output": "png"}),
        ("classification", {"threshold": 0.5}),
        ("classification", {"output": "rle"}),
    ],
)
def test_wishes_that_arent_granted(
    objects: Any, model: str, parameters: Any, picture: np.ndarray
) -> None:
    with pytest.raises(ServerError, match="answered 400"):
        Client(objects[0].url).infer(model, images=[picture], parameters=parameters)
