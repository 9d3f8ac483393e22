import io

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from clipmill.cli import app
from clipmill.errors import ConfigError
from clipmill.serve.client import predict_image
from clipmill.serve.launch import ServerProcess
from clipmill.tasks.predictor import Predictor
from clipmill.tasks.visualization import class_palette, encode_png


def test_the_answer_is_drawn_over_the_picture(
    server: ServerProcess, picture: np.ndarray, predictors: dict[str, Predictor]
) -> None:
    answer = predict_image(server.url, encode_png(picture), model="seg")
    classes_HW = predictors["seg"].predict([picture])[0]["classes"]
    expected = np.rint(0.4 * picture + 0.6 * class_palette()[classes_HW])
    found = np.asarray(Image.open(io.BytesIO(answer.overlay_png)))
    np.testing.assert_allclose(found, expected, atol=1)
    ids, counts = np.unique(classes_HW, return_counts=True)
    top_k_labels = predictors["seg"].classes[ids[np.argmax(counts)]]
    assert answer.lines[0] == f"{counts.max() / classes_HW.size:7.1%}  {top_k_labels}"


def test_depth_is_told_in_meters(
    server: ServerProcess, picture: np.ndarray, predictors: dict[str, Predictor], tmp_path
) -> None:
    (tmp_path / "in.png").write_bytes(encode_png(picture))
    output = tmp_path / "out.png"
    command = ["predict", server.url, str(tmp_path / "in.png"), "--model", "depth"]
    done = CliRunner().invoke(app, [*command, "--output", str(output)], catch_exceptions=False)
    assert done.exit_code == 0
    depth_HW = predictors["depth"].predict([picture])[0]["depth_meters"]
    assert f"nearest  {depth_HW.min():.2f} m" in done.stdout
    with Image.open(output) as drawn:
        assert drawn.size == (64, 48)


def test_with_several_models_one_must_be_named(server: ServerProcess, picture: np.ndarray) -> None:
    with pytest.raises(ConfigError, match="serves seg, depth"):
        predict_image(server.url, encode_png(picture))
