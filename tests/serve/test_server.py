"""A real server over HTTP. What it answers must be what its Predictor gives."""

import base64
import json
import struct
import urllib.error
import urllib.request
from http.client import HTTPMessage
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from clipmill.errors import ServerError
from clipmill.serve.client import binary_request, query, read_answer, v1_request
from clipmill.serve.launch import ServerProcess
from clipmill.tasks.predictor import Predictor
from clipmill.tasks.visualization import encode_png

LENGTH = "Inference-Header-Content-Length"


def post(
    url: str, body: bytes, headers: dict[str, str] | None = None
) -> tuple[int, bytes, HTTPMessage]:
    request = urllib.request.Request(url, body, headers or {})
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, response.read(), response.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read(), error.headers


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=30) as response:
        data: bytes = response.read()
    return data


def test_pixels_in_array_out(
    server: ServerProcess, name: str, picture: np.ndarray, expected: np.ndarray
) -> None:
    found_HW = query(server.url, name, picture)
    assert found_HW.dtype == expected.dtype
    np.testing.assert_array_equal(found_HW, expected)


def test_a_file_in_array_out(
    server: ServerProcess, name: str, picture: np.ndarray, expected: np.ndarray
) -> None:
    body, headers = binary_request(encode_png(picture))
    status, data, answer = post(f"{server.url}/v2/models/{name}/infer", body, headers)
    assert status == 200
    assert answer["Content-Type"] == "application/octet-stream"
    np.testing.assert_array_equal(read_answer(data, int(answer[LENGTH]))[0], expected)
    assert len(data) - int(answer[LENGTH]) == expected.nbytes


@pytest.mark.parametrize("encoded", [False, True])
def test_plain_json_in_and_out(
    server: ServerProcess,
    name: str,
    picture: np.ndarray,
    expected: np.ndarray,
    encoded: bool,
) -> None:
    tensor: dict[str, Any] = {"name": "image", "datatype": "UINT8", "shape": [48, 64, 3]}
    tensor["data"] = picture.ravel().tolist()
    if encoded:
        text = base64.b64encode(encode_png(picture)).decode()
        tensor |= {"datatype": "BYTES", "shape": [1], "data": [text]}
    body = json.dumps({"id": "7", "inputs": [tensor]}).encode()
    status, data, headers = post(
        f"{server.url}/v2/models/{name}/infer", body, {"Content-Type": "application/json"}
    )
    assert (status, headers["Content-Type"]) == (200, "application/json")
    answer = json.loads(data)
    (output,) = answer["outputs"]
    assert (answer["id"], answer["model_name"]) == ("7", name)
    assert output["shape"] == [1, 48, 64]
    found_HW = np.array(output["data"], expected.dtype).reshape(48, 64)
    np.testing.assert_array_equal(found_HW, expected)


def test_v1(
    server: ServerProcess,
    name: str,
    picture: np.ndarray,
    predictors: dict[str, Predictor],
    expected: np.ndarray,
) -> None:
    instances = [
        json.loads(v1_request(encode_png(i)))["instances"][0] for i in (picture, picture[:, :50])
    ]
    body = json.dumps({"instances": instances}).encode()
    status, data, headers = post(f"{server.url}/v1/models/{name}:predict", body)
    assert (status, headers["Content-Type"]) == (200, "application/json")
    key = predictors[name].outputs[0].name
    first, second = (np.array(p[key], expected.dtype) for p in json.loads(data)["predictions"])
    np.testing.assert_array_equal(first, expected)
    assert second.shape == (48, 50)


def test_a_batch_of_one_size(
    server: ServerProcess, picture: np.ndarray, predictors: dict[str, Predictor]
) -> None:
    batch = np.stack([picture, picture[::-1], picture[:, ::-1]])
    header = {
        "inputs": [
            {
                "name": "image",
                "datatype": "UINT8",
                "shape": list(batch.shape),
                "parameters": {"binary_data_size": batch.nbytes},
            }
        ],
        "outputs": [{"name": "classes", "parameters": {"binary_data": True}}],
    }
    text = json.dumps(header).encode()
    status, data, headers = post(
        f"{server.url}/v2/models/seg/infer", text + batch.tobytes(), {LENGTH: str(len(text))}
    )
    assert status == 200
    found = read_answer(data, int(headers[LENGTH]))
    np.testing.assert_array_equal(
        found, np.stack([p["classes"] for p in predictors["seg"].predict(list(batch))])
    )


def _tensor(**changes: Any) -> bytes:
    tensor = {"name": "image", "datatype": "UINT8", "shape": [2, 2, 3], "data": [0] * 12}
    return json.dumps({"inputs": [tensor | changes]}).encode()


def _file(data: bytes) -> bytes:
    return _tensor(datatype="BYTES", shape=[1], data=[base64.b64encode(data).decode()])


_NOISE = np.random.default_rng(3).integers(0, 256, (64, 64, 3), np.uint8)


def _bad_bodies() -> dict[str, bytes]:
    wrong_output = json.loads(_tensor()) | {"outputs": [{"name": "depth"}]}
    # A PNG of which only the header is read: 30000 x 30000 pixels.
    huge = encode_png(_NOISE)
    huge = huge[:16] + struct.pack(">II", 30_000, 30_000) + huge[24:]
    return {
        "empty": b"",
        "no JSON": b"{",
        "no object": b"[1]",
        "no inputs": b"{}",
        "truncated file": _file(encode_png(_NOISE)[:2000]),
        "empty file": _file(b""),
        "huge header": _file(huge),
        "wrong datatype": _tensor(datatype="FP64"),
        "unknown datatype": _tensor(datatype="COMPLEX"),
        "wrong shape": _tensor(shape=[12]),
        "shape without its values": _tensor(shape=[2, 3, 3]),
        "values out of range": _tensor(data=[256] * 12),
        "ragged values": _tensor(data=[[0] * 11, [0]]),
        "too thin": _tensor(shape=[1, 5, 3], data=[0] * 15),
        "too many": _tensor(shape=[33, 1, 1, 3], data=[0] * 99),
        "unknown output": json.dumps(wrong_output).encode(),
    }


@pytest.mark.parametrize("kind", _bad_bodies())
def test_a_bad_v2_request_gets_a_400_that_says_why(server: ServerProcess, kind: str) -> None:
    status, data, headers = post(f"{server.url}/v2/models/seg/infer", _bad_bodies()[kind])
    assert (status, headers["Content-Type"]) == (400, "application/json")
    message = json.loads(data)["error"]
    assert 0 < len(message) < 200
    assert "Traceback" not in message
    assert ".py" not in message


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b'{"instances": 3}',
        b'{"instances": []}',
        b'{"instances": [{"b64": ""}]}',
        b'{"instances": [{"image_bytes": {"b64": "?"}}]}',
        v1_request(b"no image"),
    ],
)
def test_a_bad_v1_request_gets_a_400_that_says_why(server: ServerProcess, body: bytes) -> None:
    status, data, _ = post(f"{server.url}/v1/models/seg:predict", body)
    assert status == 400
    assert 0 < len(json.loads(data)["error"]) < 200


def test_other_refusals(server: ServerProcess, picture: np.ndarray) -> None:
    status, data, _ = post(f"{server.url}/v2/models/nobody/infer", _tensor())
    assert (status, "nobody" in json.loads(data)["error"]) == (404, True)
    with pytest.raises(ServerError, match="404"):
        query(server.url, "nobody", picture)
    # Whoever may ask a model may not remove it.
    status, _, _ = post(f"{server.url}/v2/repository/models/seg/unload", b"")
    assert status == 501
    assert query(server.url, "seg", picture).shape == (48, 64)


def test_it_describes_its_models(
    server: ServerProcess, name: str, predictors: dict[str, Predictor], picture: np.ndarray
) -> None:
    predictor = predictors[name]
    described = json.loads(get(f"{server.url}/v2/models/{name}"))
    assert described["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1]}]
    datatype = {"seg": "UINT8", "depth": "FP32"}[name]
    output = {"name": predictor.outputs[0].name, "datatype": datatype, "shape": [-1, -1, -1]}
    sizes = {"name": "sizes", "datatype": "INT64", "shape": [-1, 2]}
    assert described["outputs"] == [output, sizes]

    lineage = json.loads(get(f"{server.url}/v2/models/{name}/lineage"))
    assert lineage["digest"] == predictor.metadata.digest
    assert tuple(lineage["classes"]) == predictor.classes
    assert lineage["outputs"][0]["unit"] == predictor.outputs[0].unit
    body, headers = binary_request(encode_png(picture))
    _, data, answer = post(f"{server.url}/v2/models/{name}/infer", body, headers)
    header = json.loads(data[: int(answer[LENGTH])])
    assert header["parameters"] == {"digest": predictor.metadata.digest}

    assert json.loads(get(f"{server.url}/v2/health/ready")) == {"ready": True}
    assert json.loads(get(f"{server.url}/v2/models/{name}/ready"))["ready"] is True


def test_its_metrics_count_what_happened(server: ServerProcess, picture: np.ndarray) -> None:
    def scrape() -> dict[tuple[str, ...], float]:
        text = get(f"{server.url}/metrics").decode()
        return {
            (sample.name, *(f"{k}={v}" for k, v in sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    digest = json.loads(get(f"{server.url}/v2/models/depth/lineage"))["digest"]
    version = f"version={digest[:12]}"
    before = scrape()
    query(server.url, "depth", picture)
    post(f"{server.url}/v2/models/depth/infer", _file(b"no image"))
    post(f"{server.url}/v2/models/nobody/infer", b"")
    after = scrape()

    def grown(metric: str, *labels: str) -> float:
        key = (f"clipmill_serve_{metric}", *labels)
        return after[key] - before.get(key, 0.0)

    assert grown("requests_total", "code=200", "model=depth", version) == 1
    assert grown("requests_total", "code=400", "model=depth", version) == 1
    assert grown("requests_total", "code=404", "model=unknown", "version=") == 1
    assert grown("requests_rejected_total", "model=depth", "reason=image_unreadable") == 1
    assert grown("batch_size_count", "model=depth") == 1
    for stage in ("request", "queue_wait", "infer", "postprocess"):
        assert grown(f"{stage}_seconds_count", "model=depth") == 1
    assert grown("preprocess_seconds_count", "model=depth") == 2
    assert after["clipmill_serve_queue_depth", "model=depth"] == 0
    info = ("clipmill_serve_model_info", f"digest={digest}", "model=depth", "task=depth", version)
    assert after[info] == 1
