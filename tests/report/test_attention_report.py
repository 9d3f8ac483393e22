"""The attention page and command, on encoders from scratch."""

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from clipmill.cli import app
from clipmill.errors import ConfigError, SourceError
from clipmill.report.attention import attention_json, attention_page, measure_attention


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    random = np.random.default_rng(0)
    for i in range(5):
        Image.fromarray(random.integers(0, 256, (40, 50, 3), np.uint8)).save(folder / f"{i}.jpg")
        (folder / f"{i}.txt").write_text(f"picture {i}")
    (folder / "broken.jpg").write_text("<html>")
    (folder / "broken.txt").write_text("broken")
    return folder


def test_command_prints_layers_and_writes_the_page(pictures, tmp_path):
    page = tmp_path / "heads.html"
    arguments = ["eval", "attention", "random:timm/test_vit", "--data", str(pictures), "--json"]
    done = CliRunner().invoke(app, [*arguments, "--page", str(page), "--num-images", "9"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)["random:timm/test_vit"]
    assert found["num_images"] == 5
    heads = np.array(found["distance_px"])
    assert heads.shape == (len(found["spread_px"]), 2)
    assert (heads > 0).all()
    assert (heads < found["image_size"]).all()
    html = page.read_text()
    assert html.count("<circle") == heads.size
    assert "random:timm/test_vit" in html


def test_page_of_two_encoders_shares_an_axis(pictures):
    report = lambda *_: None  # noqa: E731
    found = {
        name: measure_attention(f"random:timm/{name}", str(pictures), num_images=2, report=report)
        for name in ("test_vit", "test_vit2")
    }
    html = attention_page(found)
    for one in found.values():
        assert attention_json(one)["num_images"] == 2
        for spread in one.head_distance_std_L.tolist():
            assert f"<td>{spread:.3f}</td>" in html


def test_what_cannot_be_looked_at_is_refused(pictures, tmp_path):
    report = lambda *_: None  # noqa: E731
    with pytest.raises(ConfigError, match="maps of strides"):
        measure_attention("random:timm/test_resnet", str(pictures), num_images=2, report=report)
    for path in pictures.glob("[0-9].jpg"):
        path.write_text("<html>")
    with pytest.raises(SourceError, match="no image that can be used"):
        measure_attention("random:timm/test_vit", str(pictures), num_images=2, report=report)
