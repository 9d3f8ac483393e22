"""Two small task models with real architectures and random weights, and a server of both."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from clipmill.processes import free_port
from clipmill.serve.launch import ServerProcess
from clipmill.tasks.predictor import Predictor
from helpers.small_models import save_model


@pytest.fixture(scope="session")
def slow_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """URI of a model that takes a good part of a second for an image."""
    return save_model(str(tmp_path_factory.mktemp("slow")), "segmentation", crop_size=512)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """URIs of a segmentation and a depth model, by the names under which they are served."""
    folder = tmp_path_factory.mktemp("models")
    return {
        "seg": save_model(str(folder / "seg"), "segmentation"),
        "depth": save_model(str(folder / "depth"), "depth"),
    }


@pytest.fixture(scope="session")
def server(
    models: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """A server of both, REST and gRPC."""
    log_path = tmp_path_factory.mktemp("server") / "server.log"
    grpc_port = free_port("127.0.0.1")
    with ServerProcess(models, log_path=log_path, grpc_port=grpc_port) as process:
        yield process


@pytest.fixture(scope="session")
def predictors(models: dict[str, str]) -> dict[str, Predictor]:
    """The same models in this process: what the server must answer."""
    return {name: Predictor.open(uri) for name, uri in models.items()}


@pytest.fixture(scope="session")
def picture() -> np.ndarray:
    """An RGB image (48, 64, 3): noise over a ramp, so that outputs differ across it."""
    noise = np.random.default_rng(7).integers(0, 128, (48, 64, 3))
    return (noise + np.linspace(0, 127, 64).astype(int)[:, None]).astype(np.uint8)


@pytest.fixture
def log_path(tmp_path: Path) -> Path:
    """Where a test's own server logs."""
    return tmp_path / "server.log"


@pytest.fixture(params=["seg", "depth"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def expected(name: str, predictors: dict[str, Predictor], picture: np.ndarray) -> np.ndarray:
    (output_HW,) = predictors[name].predict([picture])[0].values()
    assert len(np.unique(output_HW)) > 1, "an answer that can't be mistaken for another"
    return output_HW
