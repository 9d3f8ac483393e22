"""A ViT-B/16 segmenter behind servers, with one client and with 32 that ask one after another.

KServe and LitServe serve the same network as their documentation does. The limit is the network
called in a loop, without a server; so is ONNX Runtime. All get the same pixels, and their maps are
compared. CPU time and memory are those of the server's processes.
"""

import http.client
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from harness.case import LIMIT, Case, Contender, Sizes
from harness.processes import ContenderError, tree
from harness.session import Session
from numpy.typing import NDArray

from parts.models import save_segmenter

HOST = "127.0.0.1"
_MODEL = "model"
_IMAGE, _REFERENCE = "image.npy", "reference.npy"
_START_SECONDS = 120
_REQUEST_SECONDS = 300
_BENCHMARKS = Path(__file__).parents[1]
_LENGTH = "Inference-Header-Content-Length"

Ask = Callable[[http.client.HTTPConnection], NDArray[np.uint8]]
"""Send the image over a connection; return its map of class ids."""


def write_model(folder: Path, sizes: Sizes) -> None:
    """Write the model, an image, and its map by the network alone."""
    from clipmill.tasks.predictor import Predictor

    save_segmenter(folder / _MODEL, is_base=bool(sizes["base"]))
    shape = (sizes["side"], sizes["side"], 3)
    image_HW3 = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    np.save(folder / _IMAGE, image_HW3)
    predictor = Predictor.open(str(folder / _MODEL), num_threads=1)
    np.save(folder / _REFERENCE, next(iter(predictor.predict([image_HW3])[0].values())))


def agreement(folder: Path, output_HW: NDArray[Any]) -> float:
    """Return the share of pixels whose class is the reference's."""
    reference_HW = np.load(folder / _REFERENCE)
    return float((output_HW.reshape(reference_HW.shape) == reference_HW).mean())


def run_clients(
    port: int, ask: Ask, pid: int, folder: Path, sizes: Sizes, session: Session
) -> None:
    """Let clients ask a server, each over a connection that it opens for a lap."""
    session.pid = pid

    def connect() -> http.client.HTTPConnection:
        return http.client.HTTPConnection(HOST, port, timeout=_REQUEST_SECONDS)

    connection = connect()
    first = [ask(connection) for _ in range(3)]
    connection.close()
    session.answer(agreement=agreement(folder, first[-1]))
    each = sizes["requests"] // sizes["clients"]

    def client(_: int) -> int:
        connection = connect()
        for _ in range(each):
            ask(connection)
        connection.close()
        return each

    with ThreadPoolExecutor(sizes["clients"]) as pool:
        session.run(lambda: sum(pool.map(client, range(sizes["clients"]))))


def infer(image_HW3: NDArray[np.uint8]) -> Ask:
    """Return a V2 request with binary pixels."""
    from clipmill.serve.client import pixels_request, read_answer

    body, headers = pixels_request(image_HW3)

    def ask(connection: http.client.HTTPConnection) -> NDArray[np.uint8]:
        connection.request("POST", f"/v2/models/{_MODEL}/infer", body, headers)
        response = connection.getresponse()
        data = response.read()
        if response.status != 200:
            raise ContenderError(f"status {response.status}: {data[:200]!r}")
        array: NDArray[np.uint8] = read_answer(data, int(response.headers[_LENGTH]))
        return array

    return ask


def clipmill(folder: Path, sizes: Sizes, session: Session) -> None:
    """``clipmill serve`` with its defaults."""
    from clipmill.serve.launch import ServerProcess

    server = ServerProcess({_MODEL: str(folder / _MODEL)}, log_path=folder / "server.log")
    ask = infer(np.load(folder / _IMAGE))
    with server:
        run_clients(server.http_port, ask, server.pid, folder, sizes, session)


@contextmanager
def peer_server(module: str, folder: Path, path: str) -> Iterator[tuple[int, int]]:
    """Start a peer's server; yield its port and process id once ``path`` answers."""
    from clipmill.processes import free_port

    port = free_port(HOST)
    log_path = folder / f"{module}.log"
    command = [sys.executable, "-m", f"parts.{module}", str(port), str(folder / _MODEL)]
    with log_path.open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=_BENCHMARKS)
    try:
        _wait(port, path, process, log_path)
        yield port, process.pid
    finally:
        children = tree(process.pid)[1:]
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for child in children:
            subprocess.run(["kill", "-9", str(child)], check=False, stderr=subprocess.DEVNULL)


def _wait(port: int, path: str, process: "subprocess.Popen[bytes]", log_path: Path) -> None:
    import time

    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        connection = http.client.HTTPConnection(HOST, port, timeout=5)
        try:
            connection.request("GET", path)
            if connection.getresponse().status == 200:
                return
        except (OSError, http.client.HTTPException):
            pass
        finally:
            connection.close()
        time.sleep(0.1)
    raise ContenderError(f"the server doesn't answer:\n{log_path.read_text(errors='replace')}")


def kserve(folder: Path, sizes: Sizes, session: Session) -> None:
    """A KServe model with a synchronous ``predict``."""
    ask = infer(np.load(folder / _IMAGE))
    with peer_server("serve_kserve", folder, "/v2/health/ready") as (port, pid):
        run_clients(port, ask, pid, folder, sizes, session)


def litserve(folder: Path, sizes: Sizes, session: Session) -> None:
    """LitServe with batches as large, and as long waited for, as ours."""
    image_HW3 = np.load(folder / _IMAGE)
    head = b'--b\r\nContent-Disposition: form-data; name="image"; filename="i"\r\n\r\n'
    body = head + image_HW3.tobytes() + b"\r\n--b--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=b"}

    def ask(connection: http.client.HTTPConnection) -> NDArray[np.uint8]:
        connection.request("POST", "/predict", body, headers)
        response = connection.getresponse()
        data = response.read()
        if response.status != 200:
            raise ContenderError(f"status {response.status}: {data[:200]!r}")
        return np.frombuffer(data, np.uint8)

    with peer_server("serve_litserve", folder, "/health") as (port, pid):
        run_clients(port, ask, pid, folder, sizes, session)


def model_loop(folder: Path, sizes: Sizes, session: Session) -> None:
    """The network in the form in which it's served, on as many images at once as a batch has."""
    from clipmill.serve.config import ServingConfig
    from clipmill.tasks.predictor import Predictor

    predictor = Predictor.open(str(folder / _MODEL))
    batch = [np.load(folder / _IMAGE)] * min(sizes["clients"], ServingConfig().max_batch_size)
    first = predictor.predict(batch)[0]
    session.answer(agreement=agreement(folder, next(iter(first.values()))))

    def lap() -> float:
        for _ in range(sizes["requests"] // len(batch)):
            predictor.predict(batch)
        return sizes["requests"]

    session.run(lap)


def onnx_loop(folder: Path, sizes: Sizes, session: Session) -> None:
    """The same network exported for images of this size, one at a time."""
    import os

    import onnxruntime
    import torch

    from clipmill.tasks.predictor import Predictor

    network = Predictor.open(str(folder / _MODEL))._network  # noqa: SLF001
    image_HW3 = np.load(folder / _IMAGE)
    pixels_13HW = torch.from_numpy(image_HW3.transpose(2, 0, 1)[None].copy()).float() / 255
    path = folder / "network.onnx"
    torch.onnx.export(network, (pixels_13HW,), str(path), dynamo=True, external_data=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    runtime = onnxruntime.InferenceSession(str(path), options)
    name = runtime.get_inputs()[0].name

    def predict() -> NDArray[Any]:
        pixels = image_HW3.transpose(2, 0, 1)[None].astype(np.float32) / 255
        output: NDArray[Any] = runtime.run(None, {name: pixels})[0]
        return output

    session.answer(agreement=agreement(folder, predict()))

    def lap() -> float:
        for _ in range(sizes["requests"]):
            predict()
        return sizes["requests"]

    session.run(lap)


def _case(
    title: str, sizes: Sizes, tiny: Sizes, *, is_loaded: bool, over_seconds: float | None
) -> Case:
    return Case(
        name=title,
        unit="images",
        prepare=write_model,
        contenders=(
            Contender(name="clipmill", run=clipmill, packages=("torch",), settings="defaults"),
            Contender(
                name="KServe",
                run=kserve,
                packages=("kserve",),
                settings="a Model with a synchronous predict, binary tensors",
                at_least=10 if is_loaded else None,
            ),
            Contender(
                name="LitServe",
                run=litserve,
                packages=("litserve",),
                settings="batches as large, and as long waited for, as ours; network on a stack",
                at_least=1.2 if is_loaded else None,
            ),
            Contender(
                name="ONNX Runtime loop",
                run=onnx_loop,
                packages=("onnxruntime",),
                settings="no server; one image at a time, a thread a core",
            ),
            Contender(
                name=LIMIT,
                run=model_loop,
                packages=("torch",),
                settings="no server; the network as it's served, in a loop",
                at_least=0.9,
            ),
        ),
        sizes=sizes,
        tiny=tiny,
        tolerances={"agreement": 0.001},
        over_limit_seconds=over_seconds,
    )


CASES = (
    _case(
        "ViT-B/16 segmentation at 128 px, 1 client",
        {"base": 1, "side": 128, "clients": 1, "requests": 8},
        {"base": 0, "side": 64, "clients": 1, "requests": 2},
        is_loaded=False,
        over_seconds=0.002,
    ),
    _case(
        "ViT-B/16 segmentation at 128 px, 32 clients",
        {"base": 1, "side": 128, "clients": 32, "requests": 32},
        {"base": 0, "side": 64, "clients": 2, "requests": 4},
        is_loaded=True,
        over_seconds=None,
    ),
)
