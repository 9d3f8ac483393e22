"""The lines of docs/serving.md run as pasted, against a server as the page starts it."""

import base64
import io
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipmill.serve.launch import ServerProcess
from helpers.small_models import save_model

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text("utf-8")
(PYTHON,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
BLOCKS = [block for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) if "curl --" in block]


@pytest.fixture(scope="module")
def page_server(
    models: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """A server of models under the names that the page gives them."""
    folder = tmp_path_factory.mktemp("page")
    detection = save_model(str(folder / "detection"), "detection")
    named = {"segmentation": models["seg"], "depth": models["depth"], "detection": detection}
    with ServerProcess(named, log_path=folder / "server.log") as process:
        yield process


def run(block: str, server: ServerProcess, folder: Path) -> str:
    """What the block prints; it runs in a folder with a picture."""
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(folder / "image.jpg")
    script = block.replace("http://localhost:8080", server.url)
    assert server.url in script
    done = subprocess.run(
        ["bash", "-euc", script], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_lines_run_as_pasted(page_server: ServerProcess, tmp_path: Path) -> None:
    pictures, objects, about, v1 = BLOCKS
    run(pictures, page_server, tmp_path)
    for file, mode in (("classes.png", "P"), ("depth.png", "I;16")):
        with Image.open(tmp_path / file) as image:
            assert (image.size, image.mode) == ((60, 40), mode)

    run(objects, page_server, tmp_path)
    outputs = json.loads((tmp_path / "objects.json").read_text())["outputs"]
    assert [o["name"] for o in outputs] == ["boxes", "counts", "scores", "labels", "masks"]

    answers = json.JSONDecoder()
    text, found = run(about, page_server, tmp_path), []
    while text:
        value, end = answers.raw_decode(text)
        found.append(value)
        text = text[end:].lstrip()
    listed, metadata, lineage = found
    assert listed == {"models": ["segmentation", "depth", "detection"]}
    assert metadata["parameters"]["digest"] == lineage["digest"]

    run(v1, page_server, tmp_path)
    (prediction,) = json.loads((tmp_path / "answer.json").read_text())["predictions"]
    with Image.open(io.BytesIO(base64.b64decode(prediction["depth_meters"]["b64"]))) as image:
        assert image.size == (60, 40)


def test_python_runs_as_pasted(
    page_server: ServerProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(tmp_path / "image.jpg")
    monkeypatch.chdir(tmp_path)
    found: dict[str, np.ndarray] = {}
    exec(PYTHON.replace("http://localhost:8080", page_server.url), found)
    assert found["classes_HW"].shape == (40, 60)
