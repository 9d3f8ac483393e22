"""Codings of answers, sizes, texts and labels, over a real server, against the library."""

import io
import json
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from clipmill.models.checkpoint import CheckpointMetadata, load_checkpoint, save_checkpoint
from clipmill.models.config import ClipConfig, TextConfig, VisionConfig
from clipmill.models.encoders import Normalize
from clipmill.models.preprocess import center_crop_resize
from clipmill.models.tokenizer import Tokenizer
from clipmill.models.towers import build_clip
from clipmill.serve.client import Client, _from_png
from clipmill.serve.launch import ServerProcess
from clipmill.serve.protocol.png import encode_output_png
from clipmill.tasks.config import DepthConfig
from clipmill.tasks.depth.task import DepthTask
from clipmill.tasks.predictor import Predictor
from clipmill.tasks.visualization import class_palette, encode_png

CONFIG = ClipConfig(
    embed_dim=16,
    vision=VisionConfig(image_size=32, patch_size=8, width=32, layers=2, head_width=16),
    text=TextConfig(context_length=16, vocab_size=1000, width=32, heads=2, layers=2),
)
LABELS = ["a ball", "a box", "two cones"]


@pytest.fixture(scope="module", params=["softmax", "sigmoid"])
def clip(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """URI of a CLIP with random weights, its model, and a server of it."""
    from dataclasses import replace

    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    config = replace(CONFIG, loss=request.param)
    model = build_clip(config).eval()
    metadata = CheckpointMetadata(kind="clip", architecture=config.to_json(), recipe={})
    save_checkpoint(str(folder / "model"), metadata, model.state_dict())
    models = {"clip": str(folder / "model")}
    with ServerProcess(models, log_path=folder / "server.log") as server:
        yield model, Client(server.url), str(folder / "model")


def embed(model: Any, image_HW3: np.ndarray) -> np.ndarray:
    pixels = torch.from_numpy(center_crop_resize(Image.fromarray(image_HW3), 32).copy())
    with torch.inference_mode():
        found = model.encode_image(
            Normalize()(pixels.permute(2, 0, 1)[None].float() / 255), normalize=True
        )
    return found[0].numpy()


def embed_texts(model: Any, texts: list[str]) -> np.ndarray:
    with torch.inference_mode():
        return model.encode_text(Tokenizer.from_config(CONFIG.text)(texts), normalize=True).numpy()


def test_embeddings_are_the_towers(clip: Any, picture: np.ndarray) -> None:
    model, client, _ = clip
    found = client.infer("clip", images=[picture, picture[:, :40]], texts=LABELS)
    expected = np.stack([embed(model, picture), embed(model, picture[:, :40])])
    np.testing.assert_allclose(found["image_embedding"], expected, atol=1e-5)
    np.testing.assert_allclose(found["text_embedding"], embed_texts(model, LABELS), atol=1e-5)
    half = client.infer("clip", images=[picture], output="float16")["image_embedding"]
    assert half.dtype == np.float16
    np.testing.assert_allclose(half, expected[:1], atol=1e-3)


def test_zero_shot_takes_the_callers_labels(clip: Any, picture: np.ndarray) -> None:
    model, client, uri = clip
    found = client.infer(
        "clip", images=[picture], labels=LABELS, parameters={"template": "a photo of {}"}
    )["probabilities"]
    texts = embed_texts(model, [f"a photo of {label}" for label in LABELS])
    logits = model.logit_scale.exp().item() * texts @ embed(model, picture)
    if model.logit_bias is not None:
        expected = torch.sigmoid(torch.from_numpy(logits) + model.logit_bias).detach().numpy()
    else:
        expected = torch.softmax(torch.from_numpy(logits), 0).numpy()
    np.testing.assert_allclose(found[0], expected, rtol=1e-3, atol=1e-6)

    best = client.infer("clip", images=[picture], labels=LABELS, parameters={"top_k": 2})
    plain = client.infer("clip", images=[picture], labels=LABELS)["probabilities"][0]
    order = np.argsort(-plain)[:2]
    assert best["top_labels"][0].tolist() == [LABELS[i].encode() for i in order]
    np.testing.assert_allclose(best["top_probabilities"][0], plain[order])
    assert client.metadata("clip")["parameters"]["digest"] == load_checkpoint(uri)[0].digest


def test_v1_takes_texts_and_labels(clip: Any, picture: np.ndarray) -> None:
    model, client, _ = clip
    body = {"instances": [{"text": label} for label in LABELS]}
    found = v1(client.url, "clip", body)
    texts = np.array([each["text_embedding"] for each in found])
    np.testing.assert_allclose(texts, embed_texts(model, LABELS), atol=1e-5)
    (best,) = v1(
        client.url,
        "clip",
        {"instances": [instance(picture)], "labels": LABELS, "parameters": {"top_k": 1}},
    )
    expected = client.infer("clip", images=[picture], labels=LABELS)["probabilities"][0]
    assert best["top_labels"] == [LABELS[int(np.argmax(expected))]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": LABELS}, "go with 'image'"),
        ({"images": [np.zeros((8, 8, 3), np.uint8)], "output": "png"}, "no PNG"),
        ({"texts": ["x" * 2000]}, "1 to 1000 characters"),
        ({"texts": ["x"] * 300}, "at most 256"),
        ({"texts": ["x"], "parameters": {"top_k": 1}}, "goes with 'labels'"),
    ],
)
def test_what_a_clip_cant_answer(clip: Any, changes: dict[str, Any], message: str) -> None:
    from clipmill.errors import ServerError

    with pytest.raises(ServerError, match=f"answered 400.*{message}"):
        clip[1].infer("clip", **changes)


def instance(image_HW3: np.ndarray) -> dict[str, Any]:
    from clipmill.serve.client import v1_request

    return dict(json.loads(v1_request(encode_png(image_HW3)))["instances"][0])


def v1(url: str, model: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    request = urllib.request.Request(f"{url}/v1/models/{model}:predict", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=30) as response:
        return list(json.loads(response.read())["predictions"])


def test_classes_as_png_have_their_palette(
    server: ServerProcess, picture: np.ndarray, predictors: dict[str, Predictor]
) -> None:
    (data,) = Client(server.url).infer("seg", images=[picture], output="png")["classes"]
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(
            np.asarray(image), predictors["seg"].predict([picture])[0]["classes"]
        )
        colors = class_palette()[np.asarray(image)]
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), colors)


def test_depth_as_png_is_in_millimeters(
    server: ServerProcess, picture: np.ndarray, predictors: dict[str, Predictor]
) -> None:
    (data,) = Client(server.url).infer("depth", images=[picture], output="png")["depth_meters"]
    expected = predictors["depth"].predict([picture])[0]["depth_meters"]
    with Image.open(io.BytesIO(data)) as image:
        found = np.asarray(image)
        assert image.info["values_per_meter"] == "1000"
    assert found.max() > 255
    np.testing.assert_allclose(found, expected * 1000, atol=0.5001)


@pytest.mark.parametrize(
    ("range_meters", "scale"), [(10, 1000), (65.5, 1000), (80, 256), (300, 100), (5000, 10)]
)
def test_depth_beyond_65_meters_as_png(range_meters: float, scale: int) -> None:
    (output,) = DepthTask().outputs_of(DepthConfig(max_depth_meters=range_meters))
    assert output.png_scale == scale
    depth_HW = np.linspace(0, range_meters, 12, dtype=np.float32).reshape(3, 4)
    data = encode_output_png(depth_HW, scale)
    with Image.open(io.BytesIO(data)) as image:
        assert image.info["values_per_meter"] == str(scale)
    np.testing.assert_allclose(_from_png(data), depth_HW, atol=0.5001 / scale)


def test_depth_at_half_the_size(
    server: ServerProcess, picture: np.ndarray, predictors: dict[str, Predictor]
) -> None:
    found = Client(server.url).infer("depth", images=[picture], output="float16")["depth_meters"]
    assert found.dtype == np.float16
    expected = predictors["depth"].predict([picture])[0]["depth_meters"]
    np.testing.assert_array_equal(found[0], expected.astype(np.float16))


@pytest.mark.parametrize("output", ["raw", "png"])
def test_images_of_several_sizes_in_a_request(
    server: ServerProcess,
    name: str,
    output: str,
    picture: np.ndarray,
    predictors: dict[str, Predictor],
) -> None:
    images = [picture, picture[:40], picture, picture[:, :33]]
    found = Client(server.url).dense(name, images, output=output)
    for one, prediction in zip(found, predictors[name].predict(images), strict=True):
        (expected,) = prediction.values()
        if output == "png" and name == "depth":
            np.testing.assert_allclose(one, expected, atol=0.00051)
        else:
            np.testing.assert_array_equal(one, expected)


def test_floats_in(
    server: ServerProcess, name: str, picture: np.ndarray, expected: np.ndarray
) -> None:
    tensor = {
        "name": "image",
        "datatype": "FP32",
        "shape": list(picture.shape),
        "data": (picture.ravel() / 255).tolist(),
    }
    request = urllib.request.Request(
        f"{server.url}/v2/models/{name}/infer", json.dumps({"inputs": [tensor]}).encode()
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        (output,) = json.loads(response.read())["outputs"]
    np.testing.assert_array_equal(
        np.array(output["data"], expected.dtype).reshape(expected.shape), expected
    )


def test_a_file_alone_is_a_request(
    server: ServerProcess, name: str, picture: np.ndarray, expected: np.ndarray
) -> None:
    request = urllib.request.Request(
        f"{server.url}/v2/models/{name}/infer?output=png",
        encode_png(picture),
        {"Content-Type": "image/png"},
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        assert response.headers["Content-Type"] == "image/png"
        found = np.asarray(Image.open(io.BytesIO(response.read())))
    if name == "depth":
        np.testing.assert_allclose(found / 1000, expected, atol=0.00051)
    else:
        np.testing.assert_array_equal(found, expected)


def test_metadata_says_what_an_answer_means(server: ServerProcess, models: dict[str, str]) -> None:
    client = Client(server.url)
    assert client.models() == ["seg", "depth"]
    seg = client.metadata("seg")["parameters"]
    assert seg["classes"] == ["ground", "cube", "ball"]
    assert seg["palette"] == class_palette(3).tolist()
    assert client.metadata("depth")["parameters"]["outputs"][0]["unit"] == "meters"
    with urllib.request.urlopen(f"{server.url}/v2/models/seg/lineage", timeout=30) as response:
        lineage = json.loads(response.read())
    assert lineage["ancestry"]["digest"] == seg["digest"]
    assert str(Path(models["seg"]).parent) not in json.dumps(lineage)
    with urllib.request.urlopen(f"{server.url}/openapi.json", timeout=30) as response:
        paths = json.loads(response.read())["paths"]
    assert "requestBody" in paths["/v2/models/{name}/infer"]["post"]


@pytest.mark.parametrize(
    "parameters",
    [
        {"output": "jpeg"},
        {"output": 3},
        {"top_k": -1},
        {"top_k": True},
        {"template": "none"},
        {"nonsense": 1},
    ],
)
def test_a_wish_that_cant_be_granted(
    server: ServerProcess, parameters: dict[str, Any], picture: np.ndarray
) -> None:
    from clipmill.errors import ServerError

    with pytest.raises(ServerError, match="answered 400"):
        Client(server.url).infer("seg", images=[picture], parameters=parameters)
