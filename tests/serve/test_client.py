import io
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipmill.errors import ServerError
from clipmill.processes import free_port
from clipmill.serve.client import (
    binary_request,
    curl_command,
    query,
    read_answer,
    v1_request,
)
from clipmill.serve.launch import ServerProcess
from clipmill.tasks.predictor import Predictor

needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl isn't installed")


@pytest.fixture
def jpeg(picture: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=90)
    return file.getvalue()


@pytest.fixture
def expected(jpeg: bytes, predictors: dict[str, Predictor]) -> np.ndarray:
    decoded = np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))
    return predictors["depth"].predict([decoded])[0]["depth_meters"]


def run(command: str) -> str:
    done = subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout


@needs_curl
def test_curl_with_a_binary_body(
    server: ServerProcess, jpeg: bytes, expected: np.ndarray, tmp_path: Path
) -> None:
    body, headers = binary_request(jpeg)
    body_path, output_path = tmp_path / "it's a body", tmp_path / "answer"
    body_path.write_bytes(body)
    command = curl_command(
        server.url,
        "depth",
        body_path=body_path,
        header_length=int(headers["Inference-Header-Content-Length"]),
        output_path=output_path,
    )
    shown = dict(line.lower().split(": ") for line in run(command).splitlines() if ": " in line)
    answer = output_path.read_bytes()
    header_length = int(shown["inference-header-content-length"])
    np.testing.assert_array_equal(read_answer(answer, header_length)[0], expected)
    # The raw tensor is what comes last, so the shell can cut it.
    cut = tmp_path / "tensor"
    run(f"tail -c {expected.nbytes} {output_path} > {cut}")
    found = np.frombuffer(cut.read_bytes(), "<f4").reshape(expected.shape)
    np.testing.assert_array_equal(found, expected)


@needs_curl
def test_curl_with_plain_json(
    server: ServerProcess, jpeg: bytes, expected: np.ndarray, tmp_path: Path
) -> None:
    body_path, output_path = tmp_path / "body.json", tmp_path / "answer.json"
    body_path.write_bytes(v1_request(jpeg))
    command = (
        f"curl --silent --show-error --dump-header - --header 'Content-Type: application/json' "
        f"--data-binary @{body_path} --output {output_path} {server.url}/v1/models/depth:predict"
    )
    assert "200" in run(command).splitlines()[0]
    (prediction,) = json.loads(output_path.read_text())["predictions"]
    np.testing.assert_array_equal(np.array(prediction["depth_meters"], np.float32), expected)


def test_a_refusal_names_its_reason(server: ServerProcess) -> None:
    with pytest.raises(ServerError, match=r"answered 400.*factor of 4"):
        query(server.url, "seg", np.zeros((2, 20, 3), np.uint8))


def test_nobody_there() -> None:
    with pytest.raises(ServerError, match="can't be queried"):
        query(f"http://127.0.0.1:{free_port('127.0.0.1')}", "seg", np.zeros((2, 2, 3), np.uint8))
